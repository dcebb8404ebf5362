"""What of a provider's chat stream is text, a finish, progress, usage or an error."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.relay.chunks import MAX_EVENT_BYTES, ChatCompletion
from relayd.relay.errors import ErrorCode, RelayError
from relayd.relay.ndjson import Usage
from relayd.relay.redact import Redactor
from tests.relay.harness import FINISH, PROVIDER_KEY, STREAM_DONE, cut, delta, event

_TRUNCATED = "The provider's answer ended before it was finished"


def _read(*pieces: bytes) -> tuple[ChatCompletion, list[str]]:
    completion = ChatCompletion(Redactor(PROVIDER_KEY))
    return completion, [text for piece in pieces for text in completion.feed(piece)]


def _failure(*pieces: bytes) -> RelayError:
    error = _read(*pieces)[0].end()
    assert error is not None
    return error


def test_text_comes_in_order_and_the_finish_makes_it_whole() -> None:
    """The role chunk and empty deltas are no text; the reason is kept; `[DONE]` ends the reading."""
    completion, texts = _read(delta("", role="assistant"), delta("a"), delta("b"), FINISH)
    assert texts == ["a", "b"]
    assert (completion.finished, completion.finish_reason, completion.done) == (True, "stop", False)
    assert completion.end() is None
    assert completion.feed(STREAM_DONE + delta("never")) == []
    assert completion.done
    assert completion.feed(delta("never")) == []


@pytest.mark.parametrize("reason", ["stop", "length", "content_filter", "tool_calls", "something new"])
def test_any_word_but_null_and_error_finishes_an_answer(reason: str) -> None:
    """Whatever a provider calls it."""
    completion, _ = _read(delta("a", finish_reason=reason))
    assert completion.end() is None
    assert completion.finish_reason == reason


@pytest.mark.parametrize("reason", [None, "null", "", 7, {}, ["stop"], True])
def test_what_is_no_reason_finishes_nothing(reason: object) -> None:
    """Some providers write the text "null" into every chunk."""
    completion, texts = _read(delta("a", finish_reason=reason), STREAM_DONE)
    assert texts == ["a"]
    assert not completion.finished
    error = completion.end()
    assert error is not None
    assert (error.code, error.message) == (ErrorCode.UPSTREAM_TRUNCATED, f"{_TRUNCATED}.")


def test_a_reason_in_every_chunk_cuts_nothing_off() -> None:
    """Each text needs a finish behind it, and the next text takes it back."""
    words = [f"{n} " for n in range(16)]
    completion, texts = _read(*(delta(word, finish_reason="stop") for word in words))
    assert texts == words
    assert completion.end() is None


def test_text_behind_the_finish_is_relayed_and_needs_a_new_one() -> None:
    """Without it the answer is cut short, and has no reason either."""
    completion, texts = _read(delta("a"), FINISH, delta("b"))
    assert texts == ["a", "b"]
    assert [completion.finished, completion.finish_reason] == [False, None]
    assert _failure(delta("a"), FINISH, delta("b")).code is ErrorCode.UPSTREAM_TRUNCATED
    assert completion.feed(delta("", finish_reason="length")) == []
    assert (completion.end(), completion.finish_reason) == (None, "length")


_SPOILERS = [
    b"data: {broken\n\n",
    b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n',
    b"data: " + b"[" * 100_000 + b"\n\n",
    b"data: ping\n\n",
    b"event: error\ndata: boom\n\n",
    event({"error": {"message": "too late"}}),
    b": comment\n\n",
]


@pytest.mark.parametrize("spoiler", _SPOILERS, ids=range(len(_SPOILERS)))
def test_nothing_behind_the_finish_spoils_an_answer(spoiler: bytes) -> None:
    """What cannot be read is passed over; usage and further text behind it still count."""
    used = event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}})
    completion, texts = _read(delta("a"), FINISH, spoiler, used)
    assert texts == ["a"]
    assert completion.end() is None
    assert completion.usage == Usage(3, 4, 7)
    assert completion.feed(delta("b") + FINISH) == ["b"]
    assert completion.end() is None


def test_an_event_without_end_behind_the_finish_ends_the_answer() -> None:
    """Nothing more can be read, and the answer is whole."""
    completion, _ = _read(delta("a"), FINISH, b"data: " + b"x" * (MAX_EVENT_BYTES + 1))
    assert (completion.done, completion.end()) == (True, None)


def test_an_event_without_end_fails_an_answer() -> None:
    """What came before it counts."""
    completion, texts = _read(delta("a"), b"data: " + b"x" * (MAX_EVENT_BYTES + 1))
    error = completion.end()
    assert texts == ["a"]
    assert error is not None
    assert error.code is ErrorCode.UPSTREAM_FAILED
    assert str(MAX_EVENT_BYTES) in error.message


@pytest.mark.parametrize("spoiler", _SPOILERS[:3], ids=range(3))
def test_an_event_that_cannot_be_read_fails_an_answer_without_its_finish(spoiler: bytes) -> None:
    """Text is lost in it; its own words, which may be of the conversation, are in no message."""
    error = _failure(delta("a"), spoiler, FINISH)
    assert error.code is ErrorCode.UPSTREAM_FAILED
    assert error.message == "The provider sent an event that is not a chat completion chunk."


@pytest.mark.parametrize("data", [b"ping", b"   ", b"OK", b"17", b'"text"', b"null", b"[]", b"{}"])
def test_an_event_that_is_no_chunk_and_no_error_is_passed_over(data: bytes) -> None:
    """Keep-alives come in many forms."""
    completion, texts = _read(delta("a"), b"data: " + data + b"\n\n", delta("b"), FINISH, STREAM_DONE)
    assert texts == ["a", "b"]
    assert completion.end() is None


@pytest.mark.parametrize("data", [b"data: [DONE] \n\n", b"data:[DONE]\n\n", b"data:  [DONE]\n\n"])
def test_done_is_known_with_spaces_around_it(data: bytes) -> None:
    """It ends the reading like the form of the reference."""
    completion, _ = _read(delta("a"), FINISH, data)
    assert completion.done


def test_done_without_a_finish_is_no_success() -> None:
    """Only the reason makes an answer whole."""
    error = _failure(delta("a"), STREAM_DONE, FINISH)
    assert error.code is ErrorCode.UPSTREAM_TRUNCATED


@pytest.mark.parametrize(
    ("usage", "counted"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}, Usage(3, 4, 7)),
        ({"prompt_tokens": 3.0, "completion_tokens": 9.0}, Usage(3, 9, 0)),
        ({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, Usage(0, 0, 0)),
        ({"prompt_tokens": -1, "completion_tokens": 4}, Usage(0, 4, 0)),
        ({"prompt_tokens": "3", "completion_tokens": True}, None),
        ({"prompt_tokens": None, "more": {"odd": []}}, None),
        ({"prompt_tokens": 10**400, "completion_tokens": 1}, Usage(0, 1, 0)),
        ({"prompt_tokens": 1 << 53, "completion_tokens": (1 << 53) + 1}, Usage(1 << 53, 0, 0)),
        ({"prompt_tokens": float("nan"), "completion_tokens": float("inf")}, None),
        (None, None),
        ("many", None),
        ([1, 2], None),
        (9.0, None),
    ],
)
@pytest.mark.parametrize("choices", [[], [{"delta": {"content": "b"}}], None])
def test_usage_counts_what_is_a_count_and_never_spoils_an_answer(
    usage: object, counted: Usage | None, choices: object
) -> None:
    """Whatever type a provider gives it, alone or beside text."""
    completion, texts = _read(delta("a"), event({"choices": choices, "usage": usage}), FINISH)
    assert texts == (["a", "b"] if choices else ["a"])
    assert completion.end() is None
    assert completion.usage == counted


def test_later_usage_replaces_earlier_and_an_empty_one_does_not() -> None:
    """Some providers count along in each chunk, with null in the last."""
    first, last = ({"prompt_tokens": 1, "completion_tokens": n} for n in (1, 2))
    completion, _ = _read(*(event({"choices": [], "usage": usage}) for usage in (first, last, None)))
    assert completion.usage == Usage(1, 2, 0)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "ab"),
        (["a", "b"], "ab"),
        ([{"type": "image_url", "image_url": {}}, {"type": "text", "text": "a"}], "a"),
        ([{"type": "text", "text": 7}], ""),
        ({"text": "a"}, ""),
        (7, ""),
        (None, ""),
    ],
)
def test_content_as_a_list_of_parts_gives_its_text(content: object, text: str) -> None:
    """Other types give none, and spoil nothing."""
    completion, texts = _read(event({"choices": [{"delta": {"content": content}}]}), FINISH)
    assert "".join(texts) == text
    assert completion.end() is None


@pytest.mark.parametrize("field", ["unknown", "created", "model", "system_fingerprint"])
@pytest.mark.parametrize(
    "value", [None, 1.5, [], {"deep": {"er": 1}}, "text", {"error": None}, {"error": {}}]
)
def test_other_fields_of_a_chunk_may_be_anything(field: str, value: object) -> None:
    """A chunk is judged only by what is needed; an empty error is none."""
    choice = {"delta": {"content": "a", field: value}, field: value, "finish_reason": "stop"}
    completion, texts = _read(event({"choices": [choice], field: value}))
    assert texts == ["a"]
    assert completion.end() is None


@pytest.mark.parametrize("choices", [{}, "text", 7, [None], ["text"], [{"delta": "text"}], [{"delta": []}]])
def test_odd_choices_have_no_text(choices: object) -> None:
    """The next chunk may be well again."""
    completion, texts = _read(event({"choices": choices}), delta("a"), FINISH)
    assert texts == ["a"]
    assert completion.end() is None


@pytest.mark.parametrize(
    ("json_text", "text"),
    [
        (rb"\ud83d", "\ufffd"),
        (rb"a\udc00b", "a\ufffdb"),
        (rb"\ud83d\ude00", "😀"),
        (rb"\ude00\ud83d", "\ufffd\ufffd"),
        (rb"\ud83d \ude00", "\ufffd \ufffd"),
    ],
)
def test_half_a_surrogate_pair_becomes_a_replacement_character(json_text: bytes, text: str) -> None:
    """It has no UTF-8; the rest of the text is untouched, and so is the answer."""
    chunk = b'data: {"choices":[{"delta":{"content":"%b"}}],"\\ud800":1}\n\n' % json_text
    completion, texts = _read(chunk, FINISH)
    assert texts == [text]
    assert completion.end() is None


def test_a_refusal_of_the_model_is_text() -> None:
    """It stands in a field of its own."""
    _, texts = _read(event({"choices": [{"delta": {"content": None, "refusal": "No."}}]}))
    assert texts == ["No."]


@pytest.mark.parametrize(
    ("fields", "progress"),
    [
        ({"content": "a"}, True),
        ({"reasoning_content": "Hm"}, True),
        ({"reasoning": "Hm"}, True),
        ({"reasoning": [{"text": "Hm"}]}, True),
        ({"refusal": "No"}, True),
        ({"role": "assistant", "content": ""}, False),
        ({"reasoning_content": "", "reasoning": None}, False),
    ],
)
def test_reasoning_is_progress_but_not_text(fields: dict[str, Any], progress: bool) -> None:  # noqa: FBT001 - a parameter
    """A model that thinks is at work, although the client sees nothing of it."""
    completion, texts = _read(event({"choices": [{"delta": fields}]}))
    assert completion.has_progressed is progress
    assert texts == [fields[name] for name in ("content", "refusal") if fields.get(name)]


_SAID = "The model is overloaded."


@pytest.mark.parametrize(
    "chunk",
    [
        {"error": {"message": _SAID}},
        {"error": _SAID},
        {"error": {"message": _SAID, "type": "server_error", "code": 503}},
        {"error": {"error": {"message": _SAID}}},
        [{"error": {"message": _SAID, "status": "UNAVAILABLE"}}],
        {"object": "error", "message": _SAID, "code": 500},
        {"error": True, "message": _SAID},
        {"choices": [{"delta": {"content": ""}, "error": {"message": _SAID}}]},
        {"choices": [{"delta": {"error": {"message": _SAID}}}]},
        {"choices": [{"delta": {}, "finish_reason": "stop", "error": {"message": _SAID}}]},
        {"choices": [], "x_groq": {"id": "x", "error": _SAID}},
        {"choices": [], "x_groq": {"error": {"message": _SAID}}},
        {"choices": [{"delta": {}, "finish_reason": "error"}], "error": {"message": _SAID}},
    ],
)
def test_an_error_anywhere_in_a_chunk_fails_the_answer_with_its_sentence(chunk: object) -> None:
    """At the top, in a choice, or in a field of the provider's own, also beside a finish."""
    error = _failure(delta("a"), event(chunk), FINISH, STREAM_DONE)
    assert error.code is ErrorCode.UPSTREAM_FAILED
    assert error.message == f"The provider reported an error in the middle of its answer: {_SAID}"
    assert error.recorded == error.message


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b'{"message":"%b"}' % _SAID.encode(), _SAID),
        (b'{"type":"error","error":{"message":"%b"}}' % _SAID.encode(), _SAID),
        (b'"%b"' % _SAID.encode(), _SAID),
        (_SAID.encode(), _SAID),
        (b"{broken", "{broken"),
    ],
)
def test_an_event_of_the_type_error_fails_the_answer_with_its_sentence(data: bytes, said: str) -> None:
    """Whatever form its data has."""
    error = _failure(delta("a"), b"event: error\ndata: " + data + b"\n\n", FINISH)
    assert error.code is ErrorCode.UPSTREAM_FAILED
    assert error.message.endswith(said)


def test_an_error_without_a_sentence_is_told_as_one() -> None:
    """The type of the event or of the object is enough."""
    for failing in (b"event: error\ndata: {}\n\n", event({"object": "error"})):
        error = _failure(failing, FINISH)
        assert error.message == "The provider reported an error in the middle of its answer."


def test_the_finish_reason_error_fails_the_answer() -> None:
    """It is no finish; the text before it counts."""
    completion, texts = _read(delta("a", finish_reason="error"), STREAM_DONE)
    error = completion.end()
    assert texts == ["a"]
    assert error is not None
    assert (error.code, completion.finish_reason) == (ErrorCode.UPSTREAM_FAILED, None)


def test_a_filter_that_was_out_of_order_is_no_error_of_the_answer() -> None:
    """Azure writes it beside a choice whose text is whole."""
    results = {"error": {"code": "content_filter_error", "message": "The contents are not filtered"}}
    completion, texts = _read(delta("a", content_filter_results=results), FINISH)
    assert texts == ["a"]
    assert completion.end() is None


@pytest.mark.parametrize("kind", [{"type": "invalid_request_error"}, {"code": "400"}, {"code": 422}])
def test_an_error_that_judges_the_request_is_recorded_without_its_sentence(kind: dict[str, object]) -> None:
    """It may quote the conversation: the client reads it, log and database do not."""
    error = _failure(event({"error": {"message": "Bad: my secret plan", "param": "messages", **kind}}))
    assert error.message.endswith(": Bad: my secret plan")
    assert "secret" not in error.recorded
    assert str(next(iter(kind.values()))) in error.recorded
    assert "parameter messages" in error.recorded


@pytest.mark.parametrize(
    "last_words", [b"data: The model is overloaded.\n\n", event({"detail": _SAID}), event({"message": _SAID})]
)
def test_the_last_words_before_an_early_end_are_passed_on(last_words: bytes) -> None:
    """They are no error by their form, but the only reason there is."""
    error = _failure(delta("a"), last_words)
    assert error.code is ErrorCode.UPSTREAM_TRUNCATED
    assert error.message == f"{_TRUNCATED}; it said: {_SAID}"


@pytest.mark.parametrize("where", ["error", "finish", "words"])
def test_what_the_provider_says_is_bounded_and_without_its_key(where: str) -> None:
    """In messages, in the reason, in the last words."""
    words = f"{PROVIDER_KEY} \x1b[2J " + "x" * 900_000
    sent = {
        "error": event({"error": {"message": words}}),
        "finish": delta("a", finish_reason=words),
        "words": b"data: " + words.encode() + b"\n\n",
    }[where]
    completion, _ = _read(sent)
    error = completion.end()
    said = completion.finish_reason if error is None else error.message
    assert said is not None
    assert "[key]" in said
    assert PROVIDER_KEY not in said
    assert "\x1b" not in said
    assert len(said) <= (100 if where == "finish" else 600)


_EVENTS = [
    *(delta("a"), delta("é😀"), delta("b", finish_reason="stop"), FINISH, STREAM_DONE),
    *(b": comment\n\n", b"data: ping\r\n\r\n", b"data: {broken\n\n", b"event: error\rdata: no\r\r"),
    *(event({"error": "no"}), event({"usage": {"prompt_tokens": 1}}), b'data: {"choices":\ndata: []}\n\n'),
]


@given(st.lists(st.sampled_from(_EVENTS), max_size=8), st.lists(st.integers(0, 10_000), max_size=12))
def test_where_the_bytes_are_cut_changes_nothing(events: list[bytes], places: list[int]) -> None:
    """Any split at all gives the same text, reason, usage and end."""
    stream = b"".join(events)
    whole, texts = _read(stream)
    split, split_texts = _read(*cut(stream, places))
    assert split_texts == texts
    for name in ("finish_reason", "finished", "usage", "done", "has_progressed", "events"):
        assert getattr(split, name) == getattr(whole, name), name
    assert str(split.end()) == str(whole.end())


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["choices", "delta", "content", "finish_reason", "usage", "error", "prompt_tokens"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)


@given(_JSON)
def test_no_json_at_all_breaks_the_reading(value: object) -> None:
    """A chunk of any shape is text, an error, or passed over; text is never empty and always has UTF-8."""
    completion, texts = _read(b"data: " + json.dumps(value).encode() + b"\n\n")
    completion.end()
    assert all(text and text.encode() for text in texts)
