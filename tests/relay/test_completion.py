"""What the provider's events mean."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.relay.completion import MAX_EVENT_BYTES, CompletionStream
from relayd.relay.failure import Code
from relayd.relay.lines import Usage
from relayd.relay.scrub import Scrubber

_scrub = Scrubber("provider-key-1234567890")


def _event(payload: object) -> bytes:
    return b"data: " + json.dumps(payload).encode() + b"\n\n"


def _delta(**delta: object) -> bytes:
    return _event({"choices": [{"index": 0, "delta": delta, "finish_reason": None}]})


def _followed(*pieces: bytes) -> tuple[list[str], CompletionStream]:
    stream = CompletionStream(_scrub)
    return [text for piece in pieces for text in stream.feed(piece)], stream


def test_content_and_refusal_are_text() -> None:
    """A refusal reaches the client like any other text; a role or an empty delta is nothing."""
    texts, _ = _followed(_delta(role="assistant", content=""), _delta(content="a"), _delta(refusal="no"))
    assert texts == ["a", "no"]


def test_the_end_is_told_with_its_reason_and_usage() -> None:
    """Finish reason, usage in a chunk without choices, and [DONE] are all kept."""
    texts, stream = _followed(
        _event({"choices": [{"delta": {}, "finish_reason": "length"}]}),
        _event({"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}),
        b"data: [DONE]\n\n",
    )
    assert texts == []
    assert stream.finish_reason == "length"
    assert stream.usage == Usage(3, 4, 7)
    assert stream.done


def test_nothing_counts_after_done() -> None:
    """What follows [DONE] is not part of the answer."""
    texts, stream = _followed(b"data: [DONE]\n\n" + _delta(content="late") + b"data: rubbish\n\n")
    assert texts == []
    assert stream.failure is None


@pytest.mark.parametrize(
    "event",
    [
        b"data: not json\n\n",
        b"data: []\n\n",
        b'data: {"choices": 7}\n\n',
        b'data: {"choices": [{"delta": {"content": 7}}]}\n\n',
        b'data: {"choices": [{"delta": {"content": "\xff"}}]}\n\n',
        b'data: {"choices": [{"delta": {"content": "\\ud800"}}]}\n\n',
        b'data: {"x": ' + b"[" * 5000 + b"\n\n",
    ],
)
def test_an_event_that_cannot_be_read_is_a_failure(event: bytes) -> None:
    """Rubbish ends the answer as upstream_failed, after the text that came before it."""
    texts, stream = _followed(_delta(content="a") + event + _delta(content="b"))
    assert texts == ["a"]
    assert stream.failure is not None
    assert stream.failure.code is Code.UPSTREAM_FAILED


def test_an_error_in_the_stream_is_a_failure_with_its_message() -> None:
    """The provider's words are passed on, on one line and without its key."""
    _, stream = _followed(
        _event({"error": {"message": "out of\nluck, provider-key-1234567890 sk-abcd***wxyz"}})
    )
    assert stream.failure is not None
    assert "out of luck, [key] [key]" in stream.failure.sentence


def test_a_null_error_is_none() -> None:
    """Some providers send every field every time."""
    texts, stream = _followed(
        _event({"error": None, "usage": None, "choices": [{"delta": {"content": "a"}}]})
    )
    assert texts == ["a"]
    assert stream.failure is None


def test_a_huge_event_is_a_failure() -> None:
    """An event over the limit ends the answer instead of filling the memory."""
    _, stream = _followed(b"data: " + b"x" * (MAX_EVENT_BYTES + 10))
    assert stream.failure is not None


@given(
    st.lists(st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8), max_size=6),
    st.lists(st.integers(0, 10_000), max_size=12),
    st.sampled_from([b"\n", b"\r\n", b"\r"]),
)
def test_any_split_gives_the_same_text(contents: list[str], places: list[int], end: bytes) -> None:
    """A whole answer, cut at any bytes, also inside a character, is the same answer."""
    stream = b"".join(_delta(content=content) for content in contents)
    stream += _event({"choices": [{"delta": {}, "finish_reason": "stop"}]}) + b"data: [DONE]\n\n"
    stream = stream.replace(b"\n", end)
    bounds = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    texts, followed = _followed(*(stream[a:b] for a, b in pairwise(bounds)))
    assert texts == contents
    assert followed.done
    assert followed.failure is None


@given(st.binary(max_size=200), st.integers(0, 200))
def test_garbage_never_raises(garbage: bytes, place: int) -> None:
    """Any bytes give text or a typed failure, never an exception, wherever they are cut."""
    texts, stream = _followed(garbage)
    split_texts, split = _followed(garbage[:place], garbage[place:])
    assert split_texts == texts
    assert (split.failure is None) == (stream.failure is None)
