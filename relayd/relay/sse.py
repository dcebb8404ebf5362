"""Server-sent events, decoded as bytes arrive (WHATWG HTML, section 9.2.6)."""

from __future__ import annotations

_BOM = b"\xef\xbb\xbf"


class SseDecoder:
    """Turns any split of an event stream into the `data` of its events, in order.

    Lines may end in LF, CRLF or CR. Comments, `id`, `retry` and `event` carry nothing for a
    chat completion and are passed over. An event that the stream's end cuts off is not dispatched,
    as the standard wants.

    Args:
        max_event_bytes: the most that one event may hold; a larger one sets `overflowed`, and nothing
            after it is read. What is returned never depends on where the bytes were cut.
    """

    def __init__(self, max_event_bytes: int) -> None:
        self._max_event_bytes = max_event_bytes
        self._rest = b""
        self._at_start = True
        self._after_cr = False
        self.overflowed = False

    def feed(self, piece: bytes) -> list[bytes]:
        """Take the next bytes; return the data of each event they complete."""
        if self.overflowed:
            return []
        if self._at_start or self._after_cr or b"\r" in piece:
            piece = self._normalised(piece)
        blocks = (self._rest + piece).split(b"\n\n") if self._rest else piece.split(b"\n\n")
        self._rest = blocks.pop()
        events: list[bytes] = []
        for block in blocks:
            if len(block) > self._max_event_bytes:
                self._overflow()
                return events
            data = _data_of(block)
            if data is not None:
                events.append(data)
        # One more byte: the rest may end in the first half of the blank line that closes the event.
        if len(self._rest) > self._max_event_bytes + 1:
            self._overflow()
        return events

    def _overflow(self) -> None:
        self.overflowed = True
        self._rest = b""

    def _normalised(self, piece: bytes) -> bytes:
        """The same lines, each ended by LF; a BOM at the very start is dropped."""
        if self._at_start:
            head = self._rest + piece
            if len(head) < len(_BOM) and _BOM.startswith(head):
                self._rest = head
                return b""
            self._rest = b""
            self._at_start = False
            piece = head.removeprefix(_BOM)
        if self._after_cr and piece.startswith(b"\n"):
            piece = piece[1:]
            self._after_cr = False
        if piece:
            self._after_cr = piece.endswith(b"\r")
        return piece.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _data_of(block: bytes) -> bytes | None:
    """The data of one event without its closing blank line; None where it has none or empty data."""
    if block.startswith(b"data: ") and b"\n" not in block:
        return block[6:] or None
    values = []
    for line in block.split(b"\n"):
        field, _, value = line.partition(b":")
        if field == b"data":
            values.append(value.removeprefix(b" "))
    return b"\n".join(values) or None
