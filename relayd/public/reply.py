"""The reply of `/chat` as it is sent: its head, its lines, its one end."""

from __future__ import annotations

import asyncio
from http import HTTPStatus

from tornado.iostream import StreamClosedError

from relayd.public.exchange import Exchange
from relayd.relay.failure import ClientGone, ClientStalled, Failure

_LAST_CHUNK = b"0\r\n\r\n"


class ChatReply:
    """Implements `relayd.relay.ends.Reply`.

    Awaiting `drained` is the back-pressure: there is nothing to wait for while the kernel takes the
    bytes, and otherwise it is over when the client has read enough.

    Args:
        exchange: the request that is answered.
        write_timeout_s: how long the client may read nothing.
    """

    def __init__(self, exchange: Exchange, *, write_timeout_s: float) -> None:
        self._exchange = exchange
        self._write_timeout_s = write_timeout_s
        self._loop = asyncio.get_running_loop()
        self._chunked = exchange.knows_chunks
        self._unsent: asyncio.Future[None] | None = None
        """Done when the kernel has taken what it did not take at once."""
        self.status: int | None = None
        self.stalled_s = 0.0

    def send(self, lines: bytes) -> bool:
        """Send lines, the first time with the head; returns whether the kernel took all of them."""
        self._write(self._framed(lines))
        return self._unsent is None

    def beat(self, line: bytes) -> None:
        """Send a line without waiting. Raises ClientGone."""
        self._write(self._framed(line))

    async def finish(self, lines: bytes, failure: Failure | None) -> None:
        """Send the last lines and end the reply; a failure before the first byte sets the status."""
        if self._exchange.has_begun:
            data = self._framed(lines) + _LAST_CHUNK if self._chunked else lines
        else:
            self.status = HTTPStatus.OK if failure is None else failure.status
            data = self._exchange.head(failure, length=len(lines)) + lines
        self._write(data)
        await self.drained()
        self._exchange.finish()

    def _framed(self, lines: bytes) -> bytes:
        """Lines as one chunk, so that no proxy sees half a line alone; the first time behind the head."""
        chunk = b"%x\r\n%b\r\n" % (len(lines), lines) if self._chunked else lines
        if self._exchange.has_begun:
            return chunk
        self.status = HTTPStatus.OK
        return self._exchange.head() + chunk

    def _write(self, data: bytes) -> None:
        try:
            self._unsent = self._exchange.send(data)
        except StreamClosedError as error:
            raise ClientGone from error

    async def drained(self) -> None:
        """Wait until the kernel has taken everything. Raises ClientGone or ClientStalled."""
        sent, self._unsent = self._unsent, None
        if sent is None:
            return
        began = self._loop.time()
        try:
            # Not awaited by itself: Tornado's callbacks fail on a future that a timeout has cancelled.
            await asyncio.wait((sent,), timeout=self._write_timeout_s)
        finally:
            self.stalled_s += self._loop.time() - began
        if not sent.done():
            # Whatever is buffered can never be delivered; only the socket's end frees it.
            self._exchange.reset()
            raise ClientStalled
        try:
            sent.result()
        except StreamClosedError as error:
            raise ClientGone from error
