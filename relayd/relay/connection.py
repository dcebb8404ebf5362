"""One connection to the provider, and the answers that come over it (HTTP/1.1, RFC 9112).

The bytes of a body are handed on as the kernel gave them: one wake-up a read, nothing in between.
llhttp, by way of httptools, does the parsing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import cast

import httptools

from relayd.relay.failure import Code, Failure

_MAX_HEAD_BYTES = 64 << 10
_MAX_BUFFERED_BYTES = 16 << 10
_FIRST_FINAL_STATUS = 200


class Broken(Failure):
    """The connection, or what came over it, cannot be used any more; `what` says why.

    As a failure it is that of a body, where nobody else puts it into words.
    """

    def __init__(self, what: str) -> None:
        super().__init__(
            Code.UPSTREAM_FAILED, "The connection to the provider broke in the middle of its answer."
        )
        self.what = what


class Answer:
    """One answer: its head is known, its body comes through `read`.

    A body is buffered up to a bound; then the socket is not read until the buffer is, so that a
    client that does not read stops the provider.
    """

    def __init__(self, connection: Connection, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._connection: Connection | None = connection
        self.status = status
        self.raw_headers = headers
        self.ended = False
        """Whether the whole body has arrived, read or not."""
        self._error: Broken | None = None
        self._pieces: list[bytes] = []
        self._buffered_bytes = 0
        self._waiter: asyncio.Future[None] | None = None

    def header(self, name: bytes) -> str:
        """The first value of a header, by its name in lower case; empty where there is none."""
        for found, value in self.raw_headers:
            if found.lower() == name:
                return value.decode("latin-1")
        return ""

    async def read(self) -> bytes:
        """The next bytes of the body, as many as are there; empty at its end.

        Raises:
            Broken: the body was cut, or is not HTTP.
        """
        pieces = self._pieces
        while not pieces:
            if self.ended:
                return b""
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        if self._buffered_bytes > _MAX_BUFFERED_BYTES and self._connection is not None:
            self._connection.resume_reading()
        self._buffered_bytes = 0
        return data

    def close(self) -> None:
        """Give the connection back where the body has ended; else cut it at once."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.finish(reuse=self.ended)

    def feed(self, piece: bytes) -> None:
        """Take some of the body from the connection."""
        self._pieces.append(piece)
        self._buffered_bytes += len(piece)
        if self._buffered_bytes > _MAX_BUFFERED_BYTES and self._connection is not None:
            self._connection.pause_reading()
        self._wake()

    def end(self, error: Broken | None) -> None:
        """Take the end of the body, good or bad, from the connection."""
        if not self.ended and self._error is None:
            self.ended = error is None
            self._error = error
            self._wake()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)


class Connection(asyncio.Protocol):
    """Carries one exchange at a time.

    Args:
        idle: called when an exchange has ended well and the connection can carry another.
        lost: called once, when the connection is gone.
    """

    def __init__(self, idle: Callable[[Connection], None], lost: Callable[[Connection], None]) -> None:
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
        self._keep_alive = False
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

    def finish(self, *, reuse: bool) -> None:
        """End the exchange: back to the idle ones where that is possible, else cut."""
        if reuse and self._keep_alive and self.usable:
            self._begin()
            self._idle(self)
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

    def data_received(self, data: bytes) -> None:
        """Asyncio: bytes have come."""
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
        if self._answer is None:
            self.head_bytes += len(data)
            if self.head_bytes > _MAX_HEAD_BYTES:
                self._fail(f"its headers are over {_MAX_HEAD_BYTES} bytes")

    def eof_received(self) -> bool:
        """Asyncio: the other side will send no more; nothing is left to say to it either."""
        if self._answer is not None and not self._framed:
            # RFC 9112, 6.3, rule 8: without a length, the end of the connection ends the body.
            self._answer.end(None)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Asyncio: the connection is gone."""
        self._transport = None
        self._fail(str(exc) if exc is not None and str(exc) else "it closed the connection")
        self._lost(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Parser: one header."""
        self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Parser: the head is whole."""
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
        if self._answer is not None:
            self._answer.feed(piece)

    def on_message_complete(self) -> None:
        """Parser: the body is whole."""
        if self._answer is not None:
            # Asked here: the parser forgets with the message.
            self._keep_alive = self._parser.should_keep_alive()
            self._answer.end(None)

    def _fail(self, what: str) -> None:
        if self._error is None:
            self._error = Broken(what)
        if self._answer is not None:
            self._answer.end(self._error)
        elif self._head is not None and not self._head.done():
            self._head.set_exception(self._error)
        self.abort()
