"""HTTP/1.1 to one provider for httpx2: llhttp, a pool of connections, and bodies that are pushed.

httpx2's own transport costs three times as much for each piece of an answer (docs/performance.md). A caller
takes the `IncomingResponse` of an `httpx2.Response` with `incoming`, and starts or reads it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import cast

import httpx2

from relayd.relay.transport.connection import Connection, ConnectionBroken, IncomingResponse, is_readable
from relayd.relay.transport.dialer import Dialer, Unreachable

__all__ = ["ConnectionBroken", "Dialer", "HttpTransport", "IncomingResponse", "Unreachable", "incoming"]

ON_CONNECTED = "relayd.on_connected"
"""Request extension, optional: called when the request has its connection."""
_INCOMING = "relayd.incoming"
_CONTENT_LENGTH = b"content-length"
_IDLE_TIMEOUT_S = 15.0
"""Shorter than the idle timeouts of providers and their proxies, so that a kept connection is rarely dead."""
_MAX_IDLE = 100
READ_BYTES = 16 << 10
"""Read cap: otherwise a paused client pins a whole receive buffer."""


class HttpTransport(httpx2.AsyncBaseTransport):
    """Sends requests to one origin. Redirects, cookies and proxies of the environment do not exist here.

    Args:
        dialer: makes the connections to it.
    """

    def __init__(self, dialer: Dialer) -> None:
        self.pool = Pool(dialer)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; return when the head of its response is here.

        Raises:
            httpx2.ConnectError: there was no connection; nothing was sent.
            httpx2.ReadError: the connection broke before a response; the request may have been read.
        """
        on_connected: Callable[[], None] = request.extensions.get(ON_CONNECTED, lambda: None)
        body = await request.aread()
        try:
            response = await self.pool.send(_head(request, len(body)) + body, on_connected)
        except Unreachable as error:
            raise httpx2.ConnectError(str(error)) from error
        except ConnectionBroken as error:
            raise httpx2.ReadError(error.reason) from error
        return httpx2.Response(
            response.status,
            headers=response.headers,
            stream=_PushedBody(response),
            extensions={_INCOMING: response},
        )

    async def aclose(self) -> None:
        """Close every connection."""
        await self.pool.close()


class _PushedBody(httpx2.AsyncByteStream):
    """The body as httpx2 sees it: never read, since it is pushed, but closed with its response."""

    def __init__(self, response: IncomingResponse) -> None:
        self._response = response

    async def aclose(self) -> None:
        self._response.close()


def incoming(response: httpx2.Response) -> IncomingResponse:
    """Return the response beneath one of httpx2's that `HttpTransport` made."""
    return cast("IncomingResponse", response.extensions[_INCOMING])


def _head(request: httpx2.Request, body_bytes: int) -> bytes:
    lines = [b"%b %b HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
    lines += [
        b"%b: %b" % (name, value) for name, value in request.headers.raw if name.lower() != _CONTENT_LENGTH
    ]
    return b"\r\n".join([*lines, b"Content-Length: %d" % body_bytes, b"\r\n"])


class Pool:
    """Connections to one origin. Their number has no bound of its own: `server.max_streams` is the bound.

    Args:
        dialer: makes them.
        idle_timeout_s: how long a connection waits for its next request.
        max_idle: how many wait.
    """

    def __init__(
        self, dialer: Dialer, *, idle_timeout_s: float = _IDLE_TIMEOUT_S, max_idle: int = _MAX_IDLE
    ) -> None:
        self._dialer = dialer
        self._idle_timeout_s = idle_timeout_s
        self._max_idle = max_idle
        self._idle: dict[Connection, asyncio.TimerHandle] = {}
        self._open: set[Connection] = set()
        self._read_buffer = memoryview(bytearray(READ_BYTES))
        self._all_closed = asyncio.Event()
        self._all_closed.set()
        self._loop = asyncio.get_running_loop()

    async def send(
        self,
        request: bytes,
        on_connected: Callable[[], None],
        body: AsyncGenerator[bytes] | None = None,
    ) -> IncomingResponse:
        """Send a request over an idle connection or a new one; return when the head of its response is here.

        Args:
            request: head and body.
            on_connected: called when the request has its connection.
            body: what follows the request, in pieces; see `Connection.send`.

        Raises:
            Unreachable: there was no connection in time.
            ConnectionBroken: the connection ended before the response; the request may have been read.
        """
        connection = self._take_idle() or await self._connect()
        on_connected()
        return await connection.send(request, body)

    def retire(self) -> None:
        """Keep no connection from now on: each is closed when its response has ended."""
        self._max_idle = 0
        for connection in tuple(self._idle):
            connection.abort()

    @property
    def is_closed(self) -> bool:
        """Whether no connection is open."""
        return not self._open

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection, expiry = self._idle.popitem()
            expiry.cancel()
            # What an idle connection has to read can only be its end. A request that is written after that
            # could not be sent again: the provider might have read it.
            if connection.usable and not is_readable(connection.fileno()):
                return connection
            connection.abort()
        return None

    async def _connect(self) -> Connection:
        connection = Connection(self._keep, self._forget, self._read_buffer)
        await self._dialer.connect(connection)
        self._open.add(connection)
        self._all_closed.clear()
        return connection

    def _keep(self, connection: Connection) -> None:
        if len(self._idle) >= self._max_idle:
            connection.abort()
            return
        self._idle[connection] = self._loop.call_later(self._idle_timeout_s, connection.abort)

    def _forget(self, connection: Connection) -> None:
        self._open.discard(connection)
        if not self._open:
            self._all_closed.set()
        expiry = self._idle.pop(connection, None)
        if expiry is not None:
            expiry.cancel()

    async def close(self) -> None:
        """Cut every connection, and wait until the loop has let go of them."""
        await self._dialer.close()
        for connection in tuple(self._open):
            connection.abort()
        await self._all_closed.wait()
