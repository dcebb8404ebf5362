"""The reply of `/chat`, as Tornado sends it: its head, its lines, its one end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from tornado.iostream import StreamClosedError

from relayd.relay.failure import ClientGone, ClientStalled, Failure

if TYPE_CHECKING:
    from relayd.public.base import BaseHandler

CONTENT_TYPE = "application/x-ndjson; charset=utf-8"


class ChatReply:
    """Implements `relayd.relay.stream.Reply`.

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
        self.begun = False
        self.status: int | None = None
        self.stalled_s = 0.0

    async def write(self, lines: bytes) -> None:
        """Send lines; the first call sends the head with them."""
        sent = self._send(lines)
        if sent.done():
            _raise_if_gone(sent)
        else:
            await self._wait(sent)

    def beat(self, line: bytes) -> None:
        """Send a line without waiting; a client that left is noticed elsewhere."""
        try:
            sent = self._send(line)
        except ClientGone:
            return
        if sent.done():
            # Looked at, so that the loop does not report it as never retrieved.
            sent.exception()

    async def finish(self, lines: bytes, failure: Failure | None) -> None:
        """Send the last lines and end the reply; a failure before the first byte sets the status."""
        handler = self._handler
        if not self.begun:
            self._begin(failure)
        try:
            sent = handler.finish(lines)
        except StreamClosedError as error:
            raise ClientGone from error
        if not sent.done():
            await self._wait(sent)
        else:
            _raise_if_gone(sent)

    def _send(self, lines: bytes) -> asyncio.Future[None]:
        handler = self._handler
        try:
            if self.begun:
                return handler.connection.write(lines)
            self._begin(None)
            handler.write(lines)
            return asyncio.ensure_future(handler.flush())
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
            async with asyncio.timeout(self._write_timeout_s):
                await sent
        except TimeoutError as error:
            # Whatever is buffered can never be delivered; only the socket's end frees it.
            self._handler.close_connection()
            raise ClientStalled from error
        except StreamClosedError as error:
            raise ClientGone from error
        finally:
            self.stalled_s += self._loop.time() - began


def _raise_if_gone(sent: asyncio.Future[None]) -> None:
    error = sent.exception()
    if isinstance(error, StreamClosedError):
        raise ClientGone from error
    if error is not None:
        raise error
