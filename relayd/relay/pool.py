"""The connections to the provider: opened as needed, kept for the next request."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, cast

import aiohappyeyeballs

from relayd.relay.answer import Answer, Broken
from relayd.relay.connection import Connection

_IDLE_S = 15.0
"""Shorter than what providers and their proxies allow, so that a kept connection is rarely a dead one."""
_MAX_IDLE = 100
_RECEIVE_BUFFER_BYTES = 64 << 10
"""What the kernel keeps of an answer whose client does not read; Linux would let it grow to 6 MiB.

With less than a segment of the loopback device (64 KiB) a provider on the same machine sends only when a
timer lets it, after each pause of a client: 16 KiB made 160 kB/s of 60 MB/s.
"""
_STALE_WITHIN_S = 2.0
"""An idle connection that the provider had closed says so within a round trip. One that breaks later may have
carried the request, which is not sent again then (RFC 9110, 9.2.2): it may have cost something.
"""
READ_BYTES = 16 << 10
"""The most that one read takes; else it would be all that the kernel has, held for each client that waits."""
_HAPPY_EYEBALLS_DELAY_S = 0.25


class _TlsTransport(Protocol):
    """What asyncio's and uvloop's have alike, and no type says."""

    def set_read_buffer_limits(self, high: int, low: int) -> None: ...


class Unreachable(Exception):
    """No connection could be made: nothing was sent."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the provider is."""

    host: str
    port: int
    tls: ssl.SSLContext | None


class Pool:
    """Connections to one origin. There is no upper bound: `server.max_streams` is the bound.

    Args:
        origin: the provider.
        connect_timeout_s: for DNS, TCP and TLS together.
        stale_within_s: how soon a kept connection must break to have been dead before it was used.
    """

    def __init__(
        self, origin: Origin, *, connect_timeout_s: float, stale_within_s: float = _STALE_WITHIN_S
    ) -> None:
        self._origin = origin
        self.connect_timeout_s = connect_timeout_s
        self._stale_within_s = stale_within_s
        self._idle: dict[Connection, asyncio.TimerHandle] = {}
        self._open: set[Connection] = set()
        self._into = memoryview(bytearray(READ_BYTES))
        self._none_open = asyncio.Event()
        self._none_open.set()
        self._loop = asyncio.get_running_loop()

    @property
    def idle(self) -> int:
        """How many connections wait for a request."""
        return len(self._idle)

    async def send(self, head: bytes, body: bytes, connected: Callable[[], None]) -> Answer:
        """Send a request on an idle connection or a new one; returns with the answer's head.

        Raises:
            Unreachable: no connection, within the time.
            Broken: the connection ended before the answer.
        """
        kept = self._take_idle()
        if kept is not None:
            connected()
            sent_at = self._loop.time()
            try:
                return await kept.send(head, body)
            except Broken:
                if kept.head_bytes or self._loop.time() - sent_at > self._stale_within_s:
                    raise
                # The provider closed it while it was idle: it has not seen this request.
        try:
            async with asyncio.timeout(self.connect_timeout_s):
                connection = await self._connect()
        except TimeoutError as error:
            raise Unreachable(f"no connection within {self.connect_timeout_s:g} s") from error
        except OSError as error:
            raise Unreachable(_reason(error)) from error
        connected()
        return await connection.send(head, body)

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection, expiry = self._idle.popitem()
            expiry.cancel()
            if connection.usable:
                return connection
        return None

    async def _connect(self) -> Connection:
        origin = self._origin
        found = await self._loop.getaddrinfo(origin.host, origin.port, type=socket.SOCK_STREAM)
        sock = await aiohappyeyeballs.start_connection(
            found, happy_eyeballs_delay=_HAPPY_EYEBALLS_DELAY_S, interleave=1, loop=self._loop
        )
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
            transport, connection = await self._loop.create_connection(
                lambda: Connection(self._keep, self._forget, self._into),
                sock=sock,
                ssl=origin.tls,
                server_hostname=origin.host if origin.tls is not None else None,
            )
        except BaseException:
            sock.close()
            raise
        if origin.tls is not None:
            # Leave the rest in the kernel while there is something to decrypt. Else it is held twice, and an
            # end of the connection that is met meanwhile drops what was not handed on yet.
            cast("_TlsTransport", transport).set_read_buffer_limits(high=1, low=0)
        self._open.add(connection)
        self._none_open.clear()
        return connection

    def _keep(self, connection: Connection) -> None:
        if len(self._idle) >= _MAX_IDLE:
            connection.abort()
            return
        self._idle[connection] = self._loop.call_later(_IDLE_S, connection.abort)

    def _forget(self, connection: Connection) -> None:
        self._open.discard(connection)
        if not self._open:
            self._none_open.set()
        expiry = self._idle.pop(connection, None)
        if expiry is not None:
            expiry.cancel()

    async def close(self) -> None:
        """Cut every connection, and wait until the loop has let go of them."""
        for connection in tuple(self._open):
            connection.abort()
        await self._none_open.wait()


def _reason(error: OSError) -> str:
    """What an error says, without the addresses that asyncio adds."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if error.errno is not None and not isinstance(error, ssl.SSLError | socket.gaierror):
        return os.strerror(error.errno)
    return error.strerror or str(error)
