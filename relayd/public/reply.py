"""The reply of `/chat`, as Tornado sends it: its head, its lines, its one end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING

from tornado.iostream import StreamClosedError

from relayd.relay.failure import ClientGone, ClientStalled, Failure

if TYPE_CHECKING:
    from relayd.public.base import BaseHandler

CONTENT_TYPE = "application/x-ndjson; charset=utf-8"


class ChatReply:
    """Implements `relayd.relay.ends.Reply`.

    Awaiting a write is the back-pressure: it returns at once while the kernel takes the bytes, and
    otherwise when the client has read enough.

    Args:
        handler: owns the connection.
        write_timeout_s: how long the client may read nothing.
    """

    def __init__(self, handler: BaseHandler, *, write_timeout_s: float) -> None:
        self._handler = handler
        self._write_timeout_s = write_timeout_s
        self._loop = asyncio.get_running_loop()
        self._stream = handler.stream
        # RFC 9112, 6.1: an HTTP/1.0 client knows no chunks; the connection's end is the reply's.
        self._chunked = handler.request.version == "HTTP/1.1"
        self.begun = False
        self.status: int | None = None
        self.stalled_s = 0.0

    def send(self, lines: bytes) -> Awaitable[None] | None:
        """Send lines, the first time with the head; returns what to wait for, if anything."""
        waiting = self._send(lines)
        return None if waiting is None else self._wait(waiting)

    def beat(self, line: bytes) -> None:
        """Send a line without waiting; a client that left is noticed elsewhere."""
        try:
            self._send(line)
        except ClientGone:
            return

    async def finish(self, lines: bytes, failure: Failure | None) -> None:
        """Send the last lines and end the reply; a failure before the first byte sets the status."""
        ends_with_connection = self.begun and not self._chunked
        if not self.begun:
            self._begin(failure)
        try:
            waiting = _unless_done(self._handler.finish(lines))
        except StreamClosedError as error:
            raise ClientGone from error
        if waiting is not None:
            await self._wait(waiting)
        if ends_with_connection:
            # Tornado would keep it for a client that asked so, which then waits for ever.
            self._handler.close_connection()

    def _send(self, lines: bytes) -> asyncio.Future[None] | None:
        """Send lines as one chunk; returns what to wait for where the client must read first."""
        try:
            if not self.begun:
                if not self._chunked:
                    # Else Tornado promises to keep the connection.
                    self._handler.request.headers.pop("Connection", None)
                self._begin(None)
                self._handler.write(lines)
                return _unless_done(self._handler.flush())
            if self._chunked:
                lines = b"%x\r\n%b\r\n" % (len(lines), lines)
            left = self._stream.send_now(lines)
            return _unless_done(self._stream.write(left)) if left else None
        except StreamClosedError as error:
            raise ClientGone from error

    def _begin(self, failure: Failure | None) -> None:
        self.begun = True
        self.status = 200 if failure is None else failure.status
        self._handler.set_status(self.status)
        self._handler.set_reply_headers(CONTENT_TYPE, failure)

    async def _wait(self, sent: asyncio.Future[None]) -> None:
        began = self._loop.time()
        try:
            # Not awaited by itself: Tornado's callbacks fail on a future that a timeout has cancelled.
            await asyncio.wait((sent,), timeout=self._write_timeout_s)
        finally:
            self.stalled_s += self._loop.time() - began
        if not sent.done():
            # Whatever is buffered can never be delivered; only the socket's end frees it.
            self._handler.reset_connection()
            raise ClientStalled
        try:
            sent.result()
        except StreamClosedError as error:
            raise ClientGone from error


def _unless_done(sent: asyncio.Future[None]) -> asyncio.Future[None] | None:
    """The future where there is something to wait for. Raises what a finished one holds."""
    if not sent.done():
        return sent
    sent.result()
    return None
