"""What of a provider's chat stream is text, a finish, progress, usage or an error."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.relay.chunks import MAX_EVENT_BYTES, ChatCompletion, Usage
from relayd.relay.errors import ErrorCode, RelayError
from relayd.relay.redact import Redactor
from tests.relay.harness import FINISH, PROVIDER_KEY, STREAM_DONE, USAGE, cut, delta, event

_SAID = "The model is overloaded."
_TRUNCATED = "The provider's answer ended before it was finished"
_NO_CHUNK = "The provider sent an event that is not a chat completion chunk."
_TOO_LARGE = f"The provider sent an event of more than {MAX_EVENT_BYTES} bytes."
_REPORTED = "The provider reported an error in the middle of its answer"
_ENDLESS = b"data: " + b"x" * (MAX_EVENT_BYTES + 1)


def _read(*pieces: bytes) -> tuple[ChatCompletion, list[str]]:
    completion = ChatCompletion(Redactor(PROVIDER_KEY))
    return completion, [text for piece in pieces for text in completion.feed(piece)]


def _failure(*pieces: bytes) -> RelayError:
    error = _read(*pieces)[0].end()
    assert error is not None
    return error


def _choice(**fields: Any) -> bytes:
    return event({"choices": [fields]})


def _content(content: object) -> bytes:
    return _choice(delta={"content": content})


def _raw(data: bytes) -> bytes:
    return b"data: " + data + b"\n\n"


_ODD_CHOICES: list[Any] = [{}, "text", 7, [None], ["text"], [{"delta": "text"}], [{"delta": []}]]
# Each reads as these pieces of text; a finish behind them makes the answer whole.
_TEXTS: dict[str, tuple[bytes, list[str]]] = {
    "the role and an empty delta": (delta("", role="assistant") + delta("a") + delta("b"), ["a", "b"]),
    "a refusal of the model": (_choice(delta={"content": None, "refusal": "No."}), ["No."]),
    "parts": (_content([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]), ["ab"]),
    "parts that are texts": (_content(["a", "b"]), ["ab"]),
    "parts of another kind": (_content([{"image_url": {}}, {"text": 7}, {"text": "a"}]), ["a"]),
    "content of another type": (b"".join(map(_content, ({"text": "a"}, 7, None, [{"text": 7}]))), []),
    **{f"choices {choices!r}": (event({"choices": choices}) + delta("a"), ["a"]) for choices in _ODD_CHOICES},
    **{
        f"the event {data!r}": (_raw(data) + delta("a"), ["a"])
        for data in (b"ping", b"   ", b"OK", b"17", b'"text"', b"null", b"[]", b"{}")
    },
    **{
        f"half a pair: {escaped!r}": (
            _raw(b'{"choices":[{"delta":{"content":"%b"}}],"\\ud800":1}' % escaped),
            [text],
        )
        for escaped, text in (
            (rb"\ud83d", "\ufffd"),
            (rb"a\udc00b", "a\ufffdb"),
            (rb"\ud83d\ude00", "😀"),
            (rb"\ude00\ud83d", "\ufffd\ufffd"),
            (rb"\ud83d \ude00", "\ufffd \ufffd"),
        )
    },
    # Azure writes it beside a choice whose text is whole.
    "a filter that was out of order": (
        delta("a", content_filter_results={"error": {"code": "content_filter_error", "message": "No."}}),
        ["a"],
    ),
}


@pytest.mark.parametrize("name", _TEXTS)
def test_the_text_of_a_chunk_is_found_and_nothing_else_spoils_it(name: str) -> None:
    """Keep-alives, odd types and unknown parts are passed over."""
    chunks, texts = _TEXTS[name]
    completion, found = _read(chunks, FINISH)
    assert (found, completion.end(), completion.finish_reason) == (texts, None, "stop")


@pytest.mark.parametrize("field", ["unknown", "created", "model"])
@pytest.mark.parametrize(
    "value", [None, 1.5, [], {"deep": {"er": 1}}, "text", {"error": None}, {"error": {}}]
)
def test_other_fields_of_a_chunk_may_be_anything(field: str, value: object) -> None:
    """A chunk is judged only by what is needed; an empty error is none."""
    choice = {"delta": {"content": "a", field: value}, field: value, "finish_reason": "stop"}
    completion, texts = _read(event({"choices": [choice], field: value}))
    assert (texts, completion.end()) == (["a"], None)


# The finish.


@pytest.mark.parametrize("reason", ["stop", "length", "content_filter", "tool_calls", "something new"])
def test_any_word_but_null_and_error_finishes_an_answer(reason: str) -> None:
    """Whatever a provider calls it, and also if each chunk has one: the next text takes it back."""
    words = [f"{n} " for n in range(16)]
    completion, texts = _read(*(delta(word, finish_reason=reason) for word in words))
    assert (texts, completion.end(), completion.finish_reason) == (words, None, reason)


@pytest.mark.parametrize("reason", [None, "null", "", 7, {}, ["stop"], True])
@pytest.mark.parametrize("after", [b"", STREAM_DONE, STREAM_DONE + FINISH])
def test_what_is_no_reason_finishes_nothing(reason: object, after: bytes) -> None:
    """Some providers write the text "null" into every chunk; `[DONE]` is no finish, and ends the reading."""
    completion, texts = _read(delta("a", finish_reason=reason), after)
    error = completion.end()
    assert (texts, completion.finished) == (["a"], False)
    assert error is not None
    assert (error.code, error.message) == (ErrorCode.UPSTREAM_TRUNCATED, f"{_TRUNCATED}.")


def test_text_behind_the_finish_is_relayed_and_needs_a_new_one() -> None:
    """Without it the answer is cut short, and has no reason either."""
    completion, texts = _read(delta("a"), FINISH, delta("b"))
    assert (texts, completion.finished, completion.finish_reason) == (["a", "b"], False, None)
    assert completion.end() is not None
    assert completion.feed(delta("", finish_reason="length")) == []
    assert (completion.end(), completion.finish_reason) == (None, "length")


@pytest.mark.parametrize("data", [b"[DONE]", b"[DONE] ", b" [DONE]"])
def test_done_ends_the_reading(data: bytes) -> None:
    """Also with spaces around it."""
    completion, texts = _read(delta("a"), FINISH, _raw(data) + delta("never"))
    assert (texts, completion.done) == (["a"], True)
    assert completion.feed(delta("never")) == []
    assert completion.end() is None


_SPOILERS = {
    b"data: {broken\n\n": _NO_CHUNK,
    b'data: {"choices":[{"delta":{"content":"\xff"}}]}\n\n': _NO_CHUNK,
    _raw(b"[" * 100_000): _NO_CHUNK,
    delta("b", finish_reason="error"): "The provider broke off its answer with an error.",
    b"event: error\ndata: boom\n\n": f"{_REPORTED}: boom",
    b"event: error\ndata: {}\n\n": f"{_REPORTED}.",
    event({"object": "error"}): f"{_REPORTED}.",
    event({"error": {"message": "Late."}}): f"{_REPORTED}: Late.",
    _ENDLESS: _TOO_LARGE,
}


@pytest.mark.parametrize(("spoiler", "said"), _SPOILERS.items(), ids=range(len(_SPOILERS)))
def test_what_cannot_be_read_fails_an_answer_but_not_a_finished_one(spoiler: bytes, said: str) -> None:
    """What came before counts. An unreadable event's own words may be of the conversation: none is told."""
    completion, texts = _read(delta("a"), spoiler, FINISH)
    error = completion.end()
    assert texts[0] == "a"
    assert error is not None
    assert (error.code, error.message) == (ErrorCode.UPSTREAM_FAILED, said)
    assert completion.feed(delta("never")) == []
    if "finish_reason" not in spoiler.decode("latin-1"):
        finished, texts = _read(delta("a"), FINISH, spoiler, USAGE)
        assert (texts, finished.end()) == (["a"], None)
        if spoiler == _ENDLESS:
            assert finished.done
        else:
            assert (finished.usage, finished.feed(delta("b") + FINISH)) == (Usage(7, 2, 9), ["b"])


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
@pytest.mark.parametrize("piece_bytes", [16 << 10, 2 << 20])
def test_an_event_of_exactly_the_limit_is_read(end: bytes, piece_bytes: int) -> None:
    """One byte more is too long, and what follows is not read; where the bytes are cut changes neither."""
    start = delta("").rstrip(b"\n")
    for over in (0, 1):
        text = "x" * (MAX_EVENT_BYTES + over - len(start + end))
        stream = delta(text).rstrip(b"\n") + end + delta("b", finish_reason="stop")
        pieces = [stream[at : at + piece_bytes] for at in range(0, len(stream), piece_bytes)]
        completion, texts = _read(*pieces)
        error = completion.end()
        assert (texts, error and error.message) == (([], _TOO_LARGE) if over else ([text, "b"], None))


def test_an_endless_event_is_given_up_at_the_limit() -> None:
    """Memory is bounded by it, however long the event goes on."""
    completion, piece = ChatCompletion(Redactor(PROVIDER_KEY)), b"x" * (MAX_EVENT_BYTES // 8)
    for _ in range(8):
        completion.feed(piece)
    assert (completion.done, completion.error) == (False, None)
    completion.feed(piece)
    assert completion.done
    assert completion.error is not None
    assert completion.error.message == _TOO_LARGE


# Errors.


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
        b'event: error\ndata: {"message":"%b"}\n\n' % _SAID.encode(),
        b'event: error\ndata: {"type":"error","error":{"message":"%b"}}\n\n' % _SAID.encode(),
        b'event: error\ndata: "%b"\n\n' % _SAID.encode(),
        b"event: error\ndata: %b\n\n" % _SAID.encode(),
    ],
)
def test_an_error_anywhere_in_a_chunk_fails_the_answer_with_its_sentence(chunk: object) -> None:
    """At the top, in a choice, in a field of the provider's own, or as an event of its own type."""
    sent = chunk if isinstance(chunk, bytes) else event(chunk)
    error = _failure(delta("a"), sent, FINISH, STREAM_DONE)
    assert error.code is ErrorCode.UPSTREAM_FAILED
    assert error.message == error.recorded == f"{_REPORTED}: {_SAID}"


@pytest.mark.parametrize("kind", [{"type": "invalid_request_error"}, {"code": "400"}, {"code": 422}])
def test_an_error_that_judges_the_request_is_recorded_without_its_sentence(kind: dict[str, object]) -> None:
    """It may quote the conversation: the client reads it, log and database do not."""
    error = _failure(event({"error": {"message": "Bad: my secret plan", "param": "messages", **kind}}))
    assert error.message == f"{_REPORTED}: Bad: my secret plan"
    assert error.recorded == f"{_REPORTED}: {next(iter(kind.values()))}, parameter messages"


@pytest.mark.parametrize(
    "last_words", [_raw(_SAID.encode()), event({"detail": _SAID}), event({"message": _SAID})]
)
def test_the_last_words_before_an_early_end_are_passed_on(last_words: bytes) -> None:
    """They are no error by their form, but the only reason there is."""
    error = _failure(delta("a"), last_words)
    assert (error.code, error.message) == (ErrorCode.UPSTREAM_TRUNCATED, f"{_TRUNCATED}; it said: {_SAID}")


@pytest.mark.parametrize("ends", ["", "\n", "\n\n", "\r\n\r\n"])
@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (f'{{"error":{{"message":"{_SAID}"}}}}', f"{_REPORTED}: {_SAID}"),
        (f'[{{"error":{{"message":"{_SAID}"}}}}]', f"{_REPORTED}: {_SAID}"),
        (f'{{"detail":"{_SAID}"}}', f"{_TRUNCATED}; it said: {_SAID}"),
        (f"<html><body>{_SAID}</body></html>", f"{_TRUNCATED}; it said: {_SAID}"),
        ('{"error":{"mess', f"{_TRUNCATED}."),
        ('{"choices":[]}', f"{_TRUNCATED}."),
        (f"<think>{_SAID}</think> and so on", f"{_TRUNCATED}."),
    ],
)
@pytest.mark.parametrize("before", [b"", delta("a"), b": comment\n\n"])
def test_an_error_in_place_of_an_event_is_passed_on(before: bytes, sent: str, said: str, ends: str) -> None:
    """A provider that fails behind `text/event-stream` may forget the `data:` before its error."""
    error = _failure(before, f"{sent}{ends}".encode())
    assert error.message == error.recorded == said
    completion, _ = _read(before, FINISH, f"{sent}{ends}".encode())
    assert completion.end() is None


def test_a_reply_in_plain_text_is_not_recorded() -> None:
    """Several texts that are no chunks are a reply, not a reason."""
    error = _failure(_raw(b"The secret"), _raw(b"is this."))
    assert error.message == f"{_TRUNCATED}; it said: is this."
    assert error.recorded == f"{_TRUNCATED}; its last words were plain text."


_LONG = f"{PROVIDER_KEY} \x1b[2J " + "x" * 900_000


@pytest.mark.parametrize(
    ("sent", "max_chars"),
    [
        (event({"error": {"message": _LONG}}), 600),
        (delta("a", finish_reason=_LONG), 100),
        (_raw(_LONG.encode()), 600),
    ],
)
def test_what_the_provider_says_is_bounded_and_without_its_key(sent: bytes, max_chars: int) -> None:
    """In messages, in the reason, in the last words."""
    completion, _ = _read(sent)
    error = completion.end()
    said = str(completion.finish_reason if error is None else error.message)
    assert "[key]" in said
    assert "\x1b" not in said
    assert len(said) <= max_chars


# Usage and progress.


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
    """Whatever type a provider gives it, alone or beside text; a later one without counts replaces none."""
    empty = event({"choices": [], "usage": None})
    completion, texts = _read(delta("a"), event({"choices": choices, "usage": usage}), empty, FINISH)
    assert (texts, completion.end()) == (["a", "b"] if choices else ["a"], None)
    assert completion.usage == counted
    completion.feed(USAGE)
    assert completion.usage == Usage(7, 2, 9)


@pytest.mark.parametrize(
    ("fields", "texts", "progress"),
    [
        ({"content": "a"}, ["a"], True),
        ({"refusal": "No"}, ["No"], True),
        ({"reasoning_content": "Hm"}, [], True),
        ({"reasoning": "Hm"}, [], True),
        ({"reasoning": [{"text": "Hm"}]}, [], True),
        ({"role": "assistant", "content": ""}, [], False),
        ({"reasoning_content": "", "reasoning": None}, [], False),
    ],
)
def test_reasoning_is_progress_but_not_text(fields: dict[str, Any], texts: list[str], progress: bool) -> None:  # noqa: FBT001 - the example
    """A model that thinks is at work, although the client sees nothing of it."""
    completion, found = _read(_choice(delta=fields))
    assert (found, completion.has_progressed) == (texts, progress)


# Any bytes at all.

_EVENTS = [
    *(delta("a"), delta("é😀"), delta("b", finish_reason="stop"), FINISH, STREAM_DONE, USAGE),
    *(b": comment\n\n", b"data: ping\r\n\r\n", b"data: {broken\n\n", b"event: error\rdata: no\r\r"),
    *(event({"error": "no"}), b'data: {"choices":\ndata: []}\n\n'),
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


_NAMES = ["choices", "delta", "content", "finish_reason", "usage", "error", "prompt_tokens"]
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(_NAMES), inner, max_size=4),
    max_leaves=20,
)


@given(_JSON)
def test_no_json_at_all_breaks_the_reading(value: object) -> None:
    """A chunk of any shape is text, an error, or passed over; text is never empty and always has UTF-8."""
    completion, texts = _read(_raw(json.dumps(value).encode()))
    completion.end()
    assert all(text and text.encode() for text in texts)
