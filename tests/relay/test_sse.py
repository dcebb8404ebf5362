"""The event decoder: any split of a stream gives the same events."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.relay.sse import SseDecoder, SseEvent
from tests.relay.harness import cut

_LIMIT = 1000


def _decode(*pieces: bytes, limit: int = _LIMIT) -> list[bytes]:
    decoder = SseDecoder(limit)
    return [event.data for piece in pieces for event in decoder.feed(piece)]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\n", [b"a"]),
        (b"data:a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b"data:  two spaces\n\n", [b" two spaces"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b": comment\n\ndata: a\n\n", [b"a"]),
        (b"event: x\nid: 7\nretry: 9\ndata: a\n\n", [b"a"]),
        (b"data\n\ndata:\n\ndata: a\n\n", [b"a"]),
        (b"\n\n\n\ndata: a\n\n\n\n", [b"a"]),
        (b"data: never closed\n", []),
        ("data: 你好 🎈\n\n".encode(), ["你好 🎈".encode()]),
        (b"data: \xef\xbb\xbf\n\n", [b"\xef\xbb\xbf"]),
        (b"database: a\n\n", []),
    ],
)
def test_each_form_of_the_standard(stream: bytes, events: list[bytes]) -> None:
    """Every form that the standard allows is read as it says."""
    assert _decode(stream) == events


_line_ends = st.sampled_from([b"\n", b"\r\n", b"\r"])
_values = st.text(alphabet=st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=20)


@st.composite
def _streams(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """A valid stream, and the events it has."""
    end = draw(_line_ends)
    stream, events = draw(st.sampled_from([b"", b"\xef\xbb\xbf"])), []
    for values in draw(st.lists(st.lists(_values, max_size=3), max_size=6)):
        for value in values:
            stream += b"data: " + value.encode() + end
        if draw(st.booleans()):
            stream += b": keep-alive" + end
        stream += end
        data = "\n".join(values).encode()
        if data:
            events.append(data)
    return stream, events


@given(_streams(), st.lists(st.integers(0, 10_000), max_size=12))
def test_any_split_of_a_valid_stream_gives_its_events(
    stream_and_events: tuple[bytes, list[bytes]], places: list[int]
) -> None:
    """A valid stream, cut anywhere, gives exactly its events."""
    stream, events = stream_and_events
    assert _decode(*cut(stream, places)) == events


@given(
    st.lists(
        st.sampled_from([b"data: ", b"data", b":", b"\n", b"\r", b"\n\n", b"x", b"\xff", b"\xef\xbb\xbf"])
    )
    .map(b"".join)
    .filter(bool),
    st.lists(st.integers(0, 10_000), max_size=12),
)
def test_any_split_of_garbage_gives_the_same(stream: bytes, places: list[int]) -> None:
    """Whatever the bytes are, where they are cut changes nothing, and neither does the limit's place."""
    for limit in (3, _LIMIT):
        whole, split = SseDecoder(limit), SseDecoder(limit)
        events = whole.feed(stream)
        assert [event for piece in cut(stream, places) for event in split.feed(piece)] == events


def test_an_event_over_the_limit_ends_the_decoding() -> None:
    """An event too large is neither held nor returned; what came before it is."""
    decoder = SseDecoder(10)
    assert [event.data for event in decoder.feed(b"data: a\n\ndata: " + b"x" * 50)] == [b"a"]
    assert decoder.overflowed
    assert decoder.feed(b"\n\ndata: b\n\n") == []


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\r\r"])
@pytest.mark.parametrize("one_by_one", [False, True])
def test_an_event_of_exactly_the_limit_is_read(end: bytes, one_by_one: bool) -> None:  # noqa: FBT001 - a parameter
    """One byte more is too large; where the bytes are cut does not change that."""
    for over in (0, 1):
        stream = b"data: " + b"x" * (94 + over) + end + b"data: b" + end
        pieces = [bytes([byte]) for byte in stream] if one_by_one else [stream]
        decoder = SseDecoder(100)
        events = [event.data for piece in pieces for event in decoder.feed(piece)]
        assert events == ([] if over else [b"x" * 94, b"b"])
        assert decoder.overflowed is bool(over)


def test_an_endless_event_is_given_up_at_the_limit() -> None:
    """Memory is bounded by it, however long the event goes on."""
    decoder = SseDecoder(1000)
    for _ in range(10):
        decoder.feed(b"x" * 100)
    assert not decoder.overflowed
    decoder.feed(b"x" * 100)
    assert decoder.overflowed


@pytest.mark.parametrize(
    ("stream", "event_type"),
    [
        (b"event: error\ndata: a\n\n", b"error"),
        (b"data: a\nevent:error\n\n", b"error"),
        (b"event: one\nevent: two\ndata: a\n\n", b"two"),
        (b"event: error\n\ndata: a\n\n", b""),
        (b"data: a\n\n", b""),
    ],
)
def test_an_event_has_its_type(stream: bytes, event_type: bytes) -> None:
    """The last one that is named counts, and it holds for one event."""
    assert SseDecoder(_LIMIT).feed(stream) == [SseEvent(b"a", event_type)]
