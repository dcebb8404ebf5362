"""One connection to the provider, and the answers that come over it (HTTP/1.1, RFC 9112).

llhttp, by way of httptools, does the parsing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import httptools

from relayd.relay.answer import Answer, Broken

_MAX_HEAD_BYTES = 64 << 10
_FIRST_FINAL_STATUS = 200


class Connection(asyncio.BufferedProtocol):
    """Carries one exchange at a time.

    Args:
        idle: called when an exchange has ended well and the connection can carry another.
        lost: called once, when the connection is gone.
        into: where each read goes. All connections may share it, for what it holds is parsed at once. Its
            size bounds what one read can bring, and so what is held for a client that does not read.
    """

    def __init__(
        self,
        idle: Callable[[Connection], None],
        lost: Callable[[Connection], None],
        into: memoryview,
    ) -> None:
        self._into = into
        self._idle = idle
        self._lost = lost
        self._transport: asyncio.Transport | None = None
        self._error: Broken | None = None
        self._begin()

    def _begin(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._head: asyncio.Future[Answer] | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._answer: Answer | None = None
        self._framed = False
        self._spoilt = False
        self._keep_alive = False
        self._end_timer: asyncio.TimerHandle | None = None
        self.head_bytes = 0
        """How much has come of the current answer's head."""

    @property
    def usable(self) -> bool:
        """Whether a request can be sent now."""
        return self._transport is not None and not self._transport.is_closing()

    async def send(self, head: bytes, body: bytes) -> Answer:
        """Send a request and wait for the head of its answer; cut off if cancelled meanwhile.

        Raises:
            Broken: the connection ended first, or what came is not HTTP.
        """
        if self._transport is None or self._error is not None:
            raise self._error or Broken("it is closed")
        self._head = asyncio.get_running_loop().create_future()
        self._transport.write(head + body)
        try:
            return await self._head
        except asyncio.CancelledError:
            self.abort()
            raise

    def finish(self, *, reuse: bool, wait_s: float = 0.0) -> None:
        """End the exchange: back to the idle ones where that is possible, else cut.

        Args:
            reuse: the answer has ended.
            wait_s: if it has not: how long its end may take.
        """
        if reuse and self._keep_alive and not self._spoilt and self.usable:
            self._begin()
            self._idle(self)
        elif wait_s and not reuse and self.usable:
            self.resume_reading()
            self._end_timer = asyncio.get_running_loop().call_later(wait_s, self.abort)
        else:
            self.abort()

    def pause_reading(self) -> None:
        """Leave what comes in the kernel."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Take what comes again."""
        if self._transport is not None:
            self._transport.resume_reading()

    def abort(self) -> None:
        """Cut the connection now."""
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio: the connection is there."""
        self._transport = cast("asyncio.Transport", transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Asyncio: where the next bytes go."""
        del sizehint
        return self._into

    def buffer_updated(self, nbytes: int) -> None:
        """Asyncio: bytes have come."""
        data = self._into[:nbytes]
        if self._error is not None:
            return
        if self._head is None:
            self._fail("it sent bytes that nobody asked for")
            return
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"it does not speak HTTP: {error}")
            return
        answer = self._answer
        if answer is None:
            self.head_bytes += len(data)
            if self.head_bytes > _MAX_HEAD_BYTES:
                self._fail(f"its headers are over {_MAX_HEAD_BYTES} bytes")
            return
        answer.arrived()
        if self._end_timer is not None and answer.ended:
            self._end_timer.cancel()
            self.finish(reuse=True)

    def eof_received(self) -> bool:
        """Asyncio: the other side will send no more; nothing is left to say to it either."""
        if self._answer is not None and not self._framed:
            # RFC 9112, 6.3, rule 8: without a length, the end of the connection ends the body.
            self._answer.end(None)
            self._answer.arrived()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio: the connection is gone."""
        self._transport = None
        if self._end_timer is not None:
            self._end_timer.cancel()
        self._fail(str(exc) if exc is not None and str(exc) else "it closed the connection")
        self._lost(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Parser: one header, or one field behind a body, which says nothing of interest."""
        if self._answer is None:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Parser: the head is whole."""
        if self._answer is not None:
            # A second answer, which nobody asked for. The first is whole; after it the connection is cut.
            self._spoilt = True
            return
        status = self._parser.get_status_code()
        if status < _FIRST_FINAL_STATUS:
            # RFC 9110, 15.2: an interim response; the final one follows.
            self._headers = []
            return
        self._framed = any(
            name.lower() in {b"content-length", b"transfer-encoding"} for name, _ in self._headers
        )
        self._answer = Answer(self, status, self._headers)
        if self._head is not None and not self._head.done():
            self._head.set_result(self._answer)

    def on_body(self, piece: bytes) -> None:
        """Parser: some of the body, without its framing."""
        if self._answer is not None and not self._spoilt:
            self._answer.feed(piece)

    def on_message_complete(self) -> None:
        """Parser: the body is whole."""
        if self._answer is not None and not self._spoilt:
            # Asked here: the parser forgets with the message.
            self._keep_alive = self._parser.should_keep_alive()
            self._answer.end(None)

    def _fail(self, what: str) -> None:
        if self._error is None:
            self._error = Broken(what)
        if self._answer is not None:
            self._answer.end(self._error)
            self._answer.arrived()
        elif self._head is not None and not self._head.done():
            self._head.set_exception(self._error)
        self.abort()
