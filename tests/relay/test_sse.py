"""An event stream cut into events: every byte stays, and no split changes what is read."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.relay.sse import EventSplitter, SseEvent, parse_event
from tests.relay.harness import cut


def _read(*pieces: bytes) -> list[SseEvent]:
    """Return the events, when it is sure that every byte stays in one of them or waits."""
    splitter = EventSplitter()
    raw_events = [raw for piece in pieces for raw in splitter.feed(piece)]
    assert b"".join(raw_events) + splitter.rest == b"".join(pieces)
    return [event for raw in raw_events if (event := parse_event(raw)) is not None]


@pytest.mark.parametrize(
    ("stream", "events"),
    [
        (b"data: a\n\n", [b"a"]),
        (b"data:a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"data: a\r\rdata: b\r\r", [b"a", b"b"]),
        (b"data: a\n\r\ndata: b\r\n\ndata: c\r\r\ndata: d\n\rdata: e\n\n", [b"a", b"b", b"c", b"d", b"e"]),
        (b"\xef\xbb\xbfdata: a\n\n", [b"a"]),
        (b"data:  two spaces\n\n", [b" two spaces"]),
        (b"data: a\ndata: b\n\n", [b"a\nb"]),
        (b": comment\n\ndata: a\n\n", [b"a"]),
        (b"event: x\nid: 7\nretry: 9\ndata: a\n\n", [b"a"]),
        (b"data\n\ndata:\n\ndata: \n\ndata: a\n\n", [b"a"]),
        (b"\n\n\n\ndata: a\n\n\n\n", [b"a"]),
        (b"data: never closed\n", []),
        ("data: 你好 🎈\n\n".encode(), ["你好 🎈".encode()]),
        (b"data: \xef\xbb\xbf\n\n", [b"\xef\xbb\xbf"]),
        (b"database: a\n\n", []),
    ],
)
def test_each_form_of_the_standard(stream: bytes, events: list[bytes]) -> None:
    """Every form that the standard allows is read as it says."""
    assert [event.data for event in _read(stream)] == events


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
    """A valid stream, cut anywhere, gives exactly its events, each with its last byte."""
    stream, events = stream_and_events
    assert [event.data for event in _read(*cut(stream, places))] == events


@given(
    st.lists(
        st.sampled_from(
            [
                *(b"data: ", b"data", b":", b"\n", b"\r", b"\n\n", b"\r\n", b"x", b"\xff", b"\xef\xbb\xbf"),
                *(b"data: x", b"event: e", b"id: 1", b":c"),
            ]
        )
    ).map(b"".join),
    st.lists(st.integers(0, 10_000), max_size=12),
)
def test_any_split_of_garbage_gives_the_same(stream: bytes, places: list[int]) -> None:
    """Whatever the bytes are, where they are cut changes nothing."""
    assert _read(*cut(stream, places)) == _read(stream)


def test_the_start_of_a_long_event_can_be_forgotten() -> None:
    """Its end is still found, also where it is cut in two."""
    splitter = EventSplitter()
    assert splitter.feed(b"data: " + b"x" * 1000 + b"\r\n") == []
    forgotten = splitter.forget()
    assert splitter.feed(b"\r\ndata: next\n\n") == [b"xx\r\n\r\n", b"data: next\n\n"]
    assert forgotten == b"data: " + b"x" * 998


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
    assert _read(stream) == [SseEvent(b"a", event_type)]
