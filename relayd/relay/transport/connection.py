"""One HTTP/1.1 connection to the provider (RFC 9112), parsed by llhttp through httptools."""

from __future__ import annotations

import asyncio
import select
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import cast

import httptools

_MAX_OVERHEAD_BYTES = 64 << 10
"""Bound of a head, and of what may come between two pieces of a body (chunk extensions, trailers)."""
_MAX_UNCLAIMED_BYTES = 16 << 10
_FIRST_FINAL_STATUS = 200
_FIRST_REFUSAL_STATUS = 300


class ConnectionBroken(Exception):
    """The connection ended, or what came over it is not HTTP; `reason` completes "the provider ..."."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def is_readable(fileno: int) -> bool:
    """Return whether a socket has something to read, if only its end."""
    poll = select.poll()
    poll.register(fileno, select.POLLIN)
    return bool(poll.poll(0))


class IncomingResponse:
    """One response: its head is here, its body is pushed to `on_chunk` as the kernel delivers it.

    Until `start`, a little of the body is kept; then the socket is not read. So a client that does not read
    stops the provider.
    """

    def __init__(
        self, connection: Connection | None, status: int, headers: list[tuple[bytes, bytes]]
    ) -> None:
        self.status = status
        self.headers = headers
        self._connection = connection
        self._unclaimed: list[bytes] = []
        self._unclaimed_bytes = 0
        self._on_chunk: Callable[[bytes], None] | None = None
        self._on_end: Callable[[Exception | None], None] | None = None
        self._ended = False
        self._error: Exception | None = None

    @classmethod
    def whole(cls, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> IncomingResponse:
        """Return a response that is here already, without a connection."""
        response = cls(None, status, headers)
        response._unclaimed.append(body)
        response._ended = True
        return response

    def header(self, name: bytes) -> str:
        """Return the values of a header, by its name in lower case, joined by commas."""
        return ", ".join(value.decode("latin-1") for found, value in self.headers if found.lower() == name)

    @property
    def media_type(self) -> str:
        """The type of the body in lower case, without parameters; empty if it has none."""
        return self.header(b"content-type").partition(";")[0].strip().lower()

    def start(self, on_chunk: Callable[[bytes], None], on_end: Callable[[Exception | None], None]) -> None:
        """Push the body from now on.

        Args:
            on_chunk: called with the bytes of each read. An exception that it raises ends the body.
            on_end: called once, with None after the whole body, else with what ended it.
        """
        self._on_chunk, self._on_end = on_chunk, on_end
        self.resume_reading()
        self.deliver()

    async def read(self, max_bytes: int) -> bytes:
        """Return the body, or its first `max_bytes` bytes.

        Raises:
            ConnectionBroken: the body was cut off.
        """
        body = bytearray()
        ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def on_chunk(data: bytes) -> None:
            body.extend(data)
            if len(body) >= max_bytes and not ended.done():
                self.pause_reading()
                ended.set_result(None)

        def on_end(error: Exception | None) -> None:
            if not ended.done():
                ended.set_result(None) if error is None else ended.set_exception(error)

        self.start(on_chunk, on_end)
        await ended
        return bytes(body[:max_bytes])

    async def peek(self) -> bytes:
        """Wait for the first bytes of the body and return them; they stay in it. Empty if it has none.

        Raises:
            ConnectionBroken: the body was cut off before them.
        """
        first: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def on_chunk(data: bytes) -> None:
            self._unclaimed.append(data)
            self._on_chunk = self._on_end = None
            if not first.done():
                first.set_result(data)

        def on_end(error: Exception | None) -> None:
            if not first.done():
                first.set_result(b"") if error is None else first.set_exception(error)

        self.start(on_chunk, on_end)
        return await first

    def pause_reading(self) -> None:
        """Leave the rest of the body in the kernel."""
        if self._connection is not None:
            self._connection.pause_reading()

    def resume_reading(self) -> None:
        """Push again."""
        if self._connection is not None:
            self._connection.resume_reading()

    def close(self, *, linger_s: float = 0.0) -> None:
        """Give the connection back if the body has ended, else cut it.

        Args:
            linger_s: time that the end of the body may still take; what comes until then is dropped.
        """
        connection, self._connection = self._connection, None
        self._on_chunk = self._on_end = None
        if connection is not None:
            connection.release(reuse=self._ended, linger_s=linger_s)

    @property
    def ended(self) -> bool:
        """Whether the whole body has arrived."""
        return self._ended

    def add(self, data: bytes) -> None:
        """Take some of the body from the connection; `deliver` follows."""
        if self._connection is not None:
            self._unclaimed.append(data)
            self._unclaimed_bytes += len(data)

    def end(self, error: Exception | None) -> None:
        """Take the end of the body from the connection; `deliver` follows."""
        if not self._ended and self._error is None:
            self._ended = error is None
            self._error = error

    def deliver(self) -> None:
        """Push what the connection added."""
        if self._on_chunk is None or self._on_end is None:
            if self._unclaimed_bytes > _MAX_UNCLAIMED_BYTES:
                self.pause_reading()
            return
        try:
            if self._unclaimed:
                # One read is one piece, however many HTTP chunks it held.
                data = self._unclaimed[0] if len(self._unclaimed) == 1 else b"".join(self._unclaimed)
                self._unclaimed.clear()
                self._on_chunk(data)
        except Exception as error:  # noqa: BLE001 - its place is the reader's task, which `on_end` tells
            self._error = error
        if (self._ended or self._error is not None) and self._on_end is not None:
            on_end = self._on_end
            self._on_chunk = self._on_end = None
            on_end(self._error)


class Connection(asyncio.BufferedProtocol):
    """Carries one request at a time.

    Args:
        on_idle: called when a response has ended and the connection can carry another request.
        on_lost: called once, when the connection is gone.
        read_buffer: where each read goes. All connections may share it, since its content is parsed at once.
            Its size bounds one read, and so what is held for a client that does not read.
    """

    def __init__(
        self,
        on_idle: Callable[[Connection], None],
        on_lost: Callable[[Connection], None],
        read_buffer: memoryview,
    ) -> None:
        self._on_idle = on_idle
        self._on_lost = on_lost
        self._read_buffer = read_buffer
        self._transport: asyncio.Transport | None = None
        self._error: Exception | None = None
        self._writable: asyncio.Future[None] | None = None
        """Done when the kernel has taken enough of what was written; None: more may be written."""
        self._reset()

    def _reset(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._head: asyncio.Future[IncomingResponse] | None = None
        self._headers: list[tuple[bytes, bytes]] = []
        self._response: IncomingResponse | None = None
        self._has_length = False
        self._keep_alive = False
        self._second_response = False
        self._overhead_bytes = 0
        self._linger_timer: asyncio.TimerHandle | None = None
        self._upload: asyncio.Task[None] | None = None
        """Sends the rest of the request; None: all of it was written."""

    @property
    def usable(self) -> bool:
        """Whether a request can be sent now."""
        return self._transport is not None and not self._transport.is_closing()

    def fileno(self) -> int:
        """Return the socket's descriptor; -1 once it is closed."""
        return -1 if self._transport is None else int(self._transport.get_extra_info("socket").fileno())

    async def send(self, request: bytes, body: AsyncGenerator[bytes] | None = None) -> IncomingResponse:
        """Send a request and wait for the head of its response; the connection is cut if that is cancelled.

        A refusal may come before the rest of the body is sent: then that is not sent.

        Args:
            request: its head, and its body as far as it is here.
            body: what follows, in the pieces to write; it is asked for one when the kernel took those before.

        Raises:
            ConnectionBroken: the connection ended first, or what came is not HTTP.
            Exception: what `body` raised; the connection is cut.
        """
        if self._transport is None or self._error is not None:
            raise self._error or ConnectionBroken("closed the connection")
        self._head = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        if body is not None:
            self._upload = asyncio.create_task(self._send_body(body), name="upload")
        try:
            return await self._head
        except asyncio.CancelledError:
            self.abort()
            raise

    def release(self, *, reuse: bool, linger_s: float = 0.0) -> None:
        """Take the connection back from its response: idle if it can be used again, else cut."""
        if reuse and self._keep_alive and not self._second_response and self.usable and self._upload is None:
            self._reset()
            self.resume_reading()
            self._on_idle(self)
        elif linger_s and not reuse and self.usable:
            self.resume_reading()
            self._linger_timer = asyncio.get_running_loop().call_later(linger_s, self.abort)
        else:
            self.abort()

    def pause_reading(self) -> None:
        """Leave what comes in the kernel."""
        if self._transport is not None:
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Read again."""
        if self._transport is not None:
            self._transport.resume_reading()

    def abort(self) -> None:
        """Cut the connection now."""
        self._stop_upload()
        if self._transport is not None:
            self._transport.abort()

    async def _send_body(self, body: AsyncGenerator[bytes]) -> None:
        try:
            async with aclosing(body):
                async for piece in body:
                    if self.usable and is_readable(self.fileno()):
                        # Perhaps a refusal. If that is followed by a reset, a write would fail, and lose it.
                        await self._read_first()
                    if self._transport is None:
                        return
                    self._transport.write(piece)
                    if self._writable is not None:
                        await self._writable
        except Exception as error:  # noqa: BLE001 - its place is the sender's task, which the head's future tells
            self._end_with(error)
        else:
            self._upload = None

    async def _read_first(self) -> None:
        """Let the loop read what is here: it asks the kernel once a turn, after what is due in that turn."""
        for _ in range(2):
            await asyncio.sleep(0)

    def _stop_upload(self) -> None:
        if self._upload is not None:
            self._upload.cancel()

    def pause_writing(self) -> None:
        """Let the upload wait (asyncio.BaseProtocol)."""
        self._writable = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        """Let the upload continue (asyncio.BaseProtocol)."""
        writable, self._writable = self._writable, None
        if writable is not None and not writable.done():
            writable.set_result(None)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport (asyncio.BaseProtocol)."""
        self._transport = cast("asyncio.Transport", transport)
        if self._error is not None:
            # Bytes that came with the end of the TLS handshake were pushed before this call.
            self.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next read goes (asyncio.BufferedProtocol)."""
        del sizehint
        return self._read_buffer

    def buffer_updated(self, nbytes: int) -> None:
        """Parse one read and push what it brought (asyncio.BufferedProtocol)."""
        if self._error is not None:
            return
        if self._head is None:
            self._fail("sent bytes that were not asked for")
            return
        self._overhead_bytes += nbytes
        try:
            self._parser.feed_data(self._read_buffer[:nbytes])
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(f"does not speak HTTP: {error}")
            return
        response = self._response
        if self._overhead_bytes > _MAX_OVERHEAD_BYTES:
            self._fail(f"sent more than {_MAX_OVERHEAD_BYTES} bytes of headers")
        elif response is not None:
            response.deliver()
            if self._linger_timer is not None and response.ended:
                self._linger_timer.cancel()
                self.release(reuse=True)

    def eof_received(self) -> bool:
        """End a body that has no length of its own (RFC 9112, 6.3, rule 8), and close."""
        if self._response is not None and not self._has_length:
            self._response.end(None)
            self._response.deliver()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the response and the pool (asyncio.BaseProtocol)."""
        self._transport = None
        if self._linger_timer is not None:
            self._linger_timer.cancel()
        self._fail(f"closed the connection ({exc})" if exc is not None else "closed the connection")
        self._on_lost(self)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; a trailer is dropped (httptools)."""
        if self._response is None:
            self._headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Hand on the head (httptools)."""
        if self._response is not None:
            # The response that was asked for is whole; the connection is cut after it.
            self._second_response = True
            return
        status = self._parser.get_status_code()
        if status < _FIRST_FINAL_STATUS:
            # RFC 9110, 15.2: an interim response; the final one follows.
            self._headers = []
            return
        self._has_length = any(
            name.lower() in {b"content-length", b"transfer-encoding"} for name, _ in self._headers
        )
        self._overhead_bytes = 0
        if status >= _FIRST_REFUSAL_STATUS:
            # RFC 9112, 9.3: it does not want the rest; sent on, that could cost this response.
            self._stop_upload()
        self._response = IncomingResponse(self, status, self._headers)
        if self._head is not None and not self._head.done():
            self._head.set_result(self._response)

    def on_body(self, data: bytes) -> None:
        """Add to the body (httptools)."""
        self._overhead_bytes = 0
        if self._response is not None and not self._second_response:
            self._response.add(data)

    def on_message_complete(self) -> None:
        """End the body (httptools)."""
        if self._response is not None and not self._second_response:
            # Asked now: the parser forgets it with the message.
            self._keep_alive = self._parser.should_keep_alive()
            self._response.end(None)

    def _fail(self, reason: str) -> None:
        self._end_with(ConnectionBroken(reason))

    def _end_with(self, error: Exception) -> None:
        if self._error is None:
            self._error = error
        if self._response is not None:
            self._response.end(self._error)
            self._response.deliver()
        elif self._head is not None and not self._head.done():
            self._head.set_exception(self._error)
        self.abort()
