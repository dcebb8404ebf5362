"""Server-sent events, decoded as bytes arrive (WHATWG HTML, section 9.2.6)."""

from __future__ import annotations

from typing import NamedTuple

_BOM = b"\xef\xbb\xbf"


class SseEvent(NamedTuple):
    """One event: its data, and its type (empty: the default, `message`)."""

    data: bytes
    type: bytes = b""


class SseDecoder:
    """Turns any split of an event stream into its events, in order.

    Lines may end in LF, CRLF or CR. Comments, `id` and `retry` are skipped. An event that the end of the
    stream cuts off is not dispatched, as the standard says. The result never depends on where the bytes
    were split.

    Args:
        max_event_bytes: bound of one event; a larger one sets `overflowed`, and nothing after it is read.
    """

    def __init__(self, max_event_bytes: int) -> None:
        self._max_event_bytes = max_event_bytes
        self._rest = b""
        self._at_start = True
        self._after_cr = False
        self.overflowed = False

    def feed(self, data: bytes) -> list[SseEvent]:
        """Take the next bytes; return the events that they complete."""
        if self.overflowed:
            return []
        if self._at_start or self._after_cr or b"\r" in data:
            data = self._normalise(data)
        blocks = (self._rest + data).split(b"\n\n") if self._rest else data.split(b"\n\n")
        self._rest = blocks.pop()
        events: list[SseEvent] = []
        for block in blocks:
            if len(block) > self._max_event_bytes:
                self._overflow()
                return events
            event = parse_event(block)
            if event is not None:
                events.append(event)
        # One more byte: the rest may end in the first half of the blank line that closes the event.
        if len(self._rest) > self._max_event_bytes + 1:
            self._overflow()
        return events

    def _overflow(self) -> None:
        self.overflowed = True
        self._rest = b""

    def _normalise(self, data: bytes) -> bytes:
        """Return the same lines, each ended by LF; drop a BOM at the start of the stream."""
        if self._at_start:
            head = self._rest + data
            if len(head) < len(_BOM) and _BOM.startswith(head):
                self._rest = head
                return b""
            self._rest = b""
            self._at_start = False
            data = head.removeprefix(_BOM)
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
            self._after_cr = False
        if data:
            self._after_cr = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def parse_event(block: bytes) -> SseEvent | None:
    """Parse one event without its closing blank line; None if it has no data."""
    if block.startswith(b"data: ") and b"\n" not in block:
        return SseEvent(block[6:]) if len(block) > 6 else None  # noqa: PLR2004 - the length of "data: "
    data: list[bytes] = []
    event_type = b""
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            event_type = value
    joined = b"\n".join(data)
    return SseEvent(joined, event_type) if joined else None
