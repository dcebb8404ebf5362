"""An event stream cut into its events without changing a byte of it (WHATWG HTML, section 9.2.6)."""

from __future__ import annotations

import re

from relayd.relay.sse import SseEvent, parse_event

_BOM = b"\xef\xbb\xbf"
# The end of a line and an empty line. CR alone ends a line unless LF may still follow it.
_END_OF_EVENT = re.compile(rb"(?>\r\n|\r|\n)(?>\r\n|\r(?=[^\n])|\n)")
_MAX_END_BYTES = 4
_LINE_END = re.compile(rb"\r\n|\r")


class EventSplitter:
    """Turns any split of an event stream into its events, each with the empty line that ends it.

    The events and `rest` joined are what was fed.
    """

    def __init__(self) -> None:
        self.rest = bytearray()
        """The event that has not ended."""

    def feed(self, data: bytes) -> list[bytes]:
        """Take the next bytes; return the events that they complete."""
        rest = self.rest
        if not rest and data.endswith(b"\n\n") and b"\r" not in data:
            if data.find(b"\n\n") == len(data) - 2:
                # Nearly every read.
                return [data]
            blocks = data.split(b"\n\n")
            if not blocks.pop():
                return [block + b"\n\n" for block in blocks]
        start = max(0, len(rest) - _MAX_END_BYTES)
        rest += data
        events: list[bytes] = []
        at = 0
        for end in _END_OF_EVENT.finditer(rest, start):
            events.append(bytes(rest[at : end.end()]))
            at = end.end()
        del rest[:at]
        return events

    def forget(self) -> bytes:
        """Return the beginning of an event that is too long to be kept; its end will come as an event."""
        start = bytes(self.rest[:-_MAX_END_BYTES])
        del self.rest[:-_MAX_END_BYTES]
        return start


def read_event(raw: bytes) -> SseEvent | None:
    """Parse one event of an `EventSplitter`; None if it has no data."""
    if raw.startswith(b"data: ") and raw.find(b"\n") == len(raw) - 2 and b"\r" not in raw:
        return SseEvent(raw[6:-2])
    return parse_event(_LINE_END.sub(b"\n", raw).removeprefix(_BOM).strip(b"\n"))
