"""An event stream cut into events: every byte stays, and no split changes what is read."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from relayd.relay.event_stream import EventSplitter, read_event
from relayd.relay.sse import SseDecoder, SseEvent

_TEXTS = st.lists(
    st.sampled_from(
        [
            *("a", "data: x", "data:", "event: e", "id: 1", ":c", "é"),
            *("\n", "\n\n", "\r\n", "\r", "\r\n\r\n"),
        ]
    ),
    max_size=14,
).map(lambda parts: "".join(parts).encode())


def pieces_of(data: bytes, cuts: list[int]) -> list[bytes]:
    """Return the data in pieces that end at the cuts."""
    places = sorted({0, *(cut % (len(data) + 1) for cut in cuts), len(data)})
    return [data[start:end] for start, end in pairwise(places)]


def _read(pieces: list[bytes]) -> tuple[bytes, list[SseEvent]]:
    splitter = EventSplitter()
    events = [raw for piece in pieces for raw in splitter.feed(piece)]
    return b"".join(events) + splitter.rest, [event for raw in events if (event := read_event(raw))]


@given(_TEXTS, st.lists(st.integers(0, 200), max_size=8))
def test_every_byte_stays_and_no_split_changes_the_events(data: bytes, cuts: list[int]) -> None:
    """They are those that the decoder of /chat reads, but for one that only the next byte could end."""
    joined, events = _read(pieces_of(data, cuts))
    assert joined == data
    assert events == _read([data])[1]
    decoded = SseDecoder(1 << 20).feed(data)
    assert events in (decoded, decoded[:-1])


def test_the_start_of_a_long_event_can_be_forgotten() -> None:
    """Its end is still found, also where it is cut in two."""
    splitter = EventSplitter()
    assert splitter.feed(b"data: " + b"x" * 1000 + b"\r\n") == []
    forgotten = splitter.forget()
    assert splitter.feed(b"\r\ndata: next\n\n") == [b"xx\r\n\r\n", b"data: next\n\n"]
    assert forgotten == b"data: " + b"x" * 998
