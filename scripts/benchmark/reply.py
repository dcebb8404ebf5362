"""Reads streamed replies as fast as Python can: SSE or NDJSON, chunked, sized or ended by the close."""

from __future__ import annotations

import re

from benchmark.upstream import STAMP_DIGITS

_STAMP = re.compile(rb'"content": ?"(\d{%d})"' % STAMP_DIGITS)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_OK = 200


class Reply:
    """One reply, fed with bytes as they come; `over` says that its last byte was read."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.over = False
        self.whole = False
        """True once `[DONE]` was seen, in a line of either form."""
        self.error: str | None = None
        self._buffer = b""
        self._chunked = False
        self._left: int | None = None
        self._text = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes; return the stamps of the deltas they complete."""
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        if self.status is None:
            data = self._without_head(data)
        if not data:
            return []
        return self._stamps(self._dechunked(data) if self._chunked else self._sized(data))

    def close(self) -> None:
        """The connection ended: the end of a body that has neither length nor chunks."""
        self.over = self.over or (self.status is not None and not self._chunked and self._left is None)

    def _without_head(self, data: bytes) -> bytes:
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._buffer = data
            return b""
        head = data[: end + 2]
        self.status = int(head[9:12])
        self._chunked = _CHUNKED.search(head) is not None
        length = _LENGTH.search(head)
        if length and not self._chunked:
            self._left = int(length[1])
        return data[end + 4 :]

    def _sized(self, data: bytes) -> bytes:
        if self._left is not None:
            self._left -= len(data)
            self.over = self._left <= 0
        return data

    def _dechunked(self, data: bytes) -> bytes:
        """The payload of every chunk that is there whole; the rest waits for more bytes."""
        parts, at = [], 0
        while (line_end := data.find(b"\r\n", at)) >= 0:
            size = int(data[at:line_end], 16)
            after = line_end + 4 + size
            if len(data) < after:
                break
            parts.append(data[line_end + 2 : after - 2])
            at = after
            if not size:
                self.over = True
                break
        self._buffer = data[at:]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _stamps(self, body: bytes) -> list[bytes]:
        text = self._text + body if self._text else body
        if self.status != _OK:
            self.error = f"status {self.status}: {text[:200].decode(errors='replace')}"
            self._text = text[:200]
            return []
        end = text.rfind(b"\n") + 1
        self._text = text[end:]
        stamps = _STAMP.findall(text, 0, end)
        if text.find(b"[DONE]", 0, end) >= 0:
            self.whole = True
        elif not stamps and (text.find(b'"error":true', 0, end) >= 0 or text.find(b'{"error"', 0, end) >= 0):
            self.error = text[:200].decode(errors="replace")
        return stamps
