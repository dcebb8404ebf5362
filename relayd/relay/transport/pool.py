"""The connections to the provider: opened when needed, kept for the next request."""

from __future__ import annotations

import asyncio
import os
import select
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Protocol, cast

import aiohappyeyeballs

from relayd.relay.transport.connection import Connection, IncomingResponse

_IDLE_TIMEOUT_S = 15.0
"""Shorter than the idle timeouts of providers and their proxies, so that a kept connection is rarely dead."""
_MAX_IDLE = 100
_RECEIVE_BUFFER_BYTES = 64 << 10
"""Kernel buffer of an answer whose client does not read; Linux would let it grow to 6 MiB.

With less than a segment of the loopback device (64 KiB) a provider on the same machine waits for a timer
after each pause of a client: 16 KiB made 160 kB/s of 60 MB/s.
"""
READ_BYTES = 16 << 10
"""Read cap: otherwise a paused client pins a whole receive buffer."""
_HAPPY_EYEBALLS_DELAY_S = 0.25
_DNS_TTL_S = 30.0

_AddressInfo = tuple[int | socket.AddressFamily, int | socket.SocketKind, int, str, tuple[Any, ...]]


class Unreachable(Exception):
    """No connection could be made: nothing was sent."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the provider is."""

    host: str
    port: int
    tls: ssl.SSLContext | None


class Resolver:
    """Looks up addresses: numeric ones never, others once at a time and for 30 s.

    The system's resolver runs in a few threads, so that a burst of new connections would wait for each other.

    Args:
        getaddrinfo: as the loop's; None: the loop's.
        ttl_s: how long a result is kept.
    """

    def __init__(
        self,
        getaddrinfo: Callable[..., Awaitable[list[_AddressInfo]]] | None = None,
        ttl_s: float = _DNS_TTL_S,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._getaddrinfo = getaddrinfo or self._loop.getaddrinfo
        self._ttl_s = ttl_s
        self._lookups: dict[tuple[str, int], asyncio.Task[list[_AddressInfo]]] = {}

    async def resolve(self, host: str, port: int) -> list[_AddressInfo]:
        """Return the addresses of a host. Raises OSError."""
        address = _numeric(host, port)
        if address is not None:
            return [address]
        lookup = self._lookups.get((host, port))
        if lookup is None:
            lookup = self._loop.create_task(self._look_up(host, port), name=f"resolve {host}")
            self._lookups[host, port] = lookup
        # Shielded: one waiter that gives up must not cancel the others' lookup.
        return await asyncio.shield(lookup)

    async def _look_up(self, host: str, port: int) -> list[_AddressInfo]:
        try:
            found = await self._getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except BaseException:
            del self._lookups[host, port]
            raise
        self._loop.call_later(self._ttl_s, self._lookups.pop, (host, port), None)
        return cast("list[_AddressInfo]", found)

    async def close(self) -> None:
        """Cancel the lookups that are under way."""
        lookups = tuple(self._lookups.values())
        for lookup in lookups:
            lookup.cancel()
        await asyncio.gather(*lookups, return_exceptions=True)


class _TlsTransport(Protocol):
    """The method of asyncio's and uvloop's TLS transports that `asyncio.Transport` does not declare."""

    def set_read_buffer_limits(self, high: int, low: int) -> None: ...


class Pool:
    """Connections to one origin. Their number has no bound of its own: `server.max_streams` is the bound.

    Args:
        origin: the provider.
        connect_timeout_s: for DNS, TCP and TLS together.
        idle_timeout_s: how long a connection waits for its next request.
        max_idle: how many wait.
        resolver: None: one of its own.
    """

    def __init__(
        self,
        origin: Origin,
        *,
        connect_timeout_s: float,
        idle_timeout_s: float = _IDLE_TIMEOUT_S,
        max_idle: int = _MAX_IDLE,
        resolver: Resolver | None = None,
    ) -> None:
        self.connect_timeout_s = connect_timeout_s
        self._origin = origin
        self._idle_timeout_s = idle_timeout_s
        self._max_idle = max_idle
        self._resolver = resolver or Resolver()
        self._idle: dict[Connection, asyncio.TimerHandle] = {}
        self._open: set[Connection] = set()
        self._read_buffer = memoryview(bytearray(READ_BYTES))
        self._all_closed = asyncio.Event()
        self._all_closed.set()
        self._loop = asyncio.get_running_loop()

    @property
    def idle(self) -> int:
        """Number of connections that wait for a request."""
        return len(self._idle)

    async def send(self, request: bytes, on_connected: Callable[[], None]) -> IncomingResponse:
        """Send a request over an idle connection or a new one; return when the head of its response is here.

        Args:
            request: head and body.
            on_connected: called when the request has its connection.

        Raises:
            Unreachable: there was no connection in time.
            ConnectionBroken: the connection ended before the response; the request may have been read.
        """
        connection = self._take_idle() or await self._connect_in_time()
        on_connected()
        return await connection.send(request)

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection, expiry = self._idle.popitem()
            expiry.cancel()
            if connection.usable and not _is_readable(connection.fileno()):
                return connection
            connection.abort()
        return None

    async def _connect_in_time(self) -> Connection:
        try:
            async with asyncio.timeout(self.connect_timeout_s):
                return await self._connect()
        except TimeoutError as error:
            raise Unreachable(f"no connection within {self.connect_timeout_s:g} s") from error
        except OSError as error:
            raise Unreachable(_reason(error)) from error

    async def _connect(self) -> Connection:
        origin = self._origin
        addresses = await self._resolver.resolve(origin.host, origin.port)
        sock = await aiohappyeyeballs.start_connection(
            addresses, happy_eyeballs_delay=_HAPPY_EYEBALLS_DELAY_S, interleave=1, loop=self._loop
        )
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
            transport, connection = await self._loop.create_connection(
                lambda: Connection(self._keep, self._forget, self._read_buffer),
                sock=sock,
                ssl=origin.tls,
                server_hostname=origin.host if origin.tls is not None else None,
            )
        except BaseException:
            sock.close()
            raise
        if origin.tls is not None:
            # Leave the rest in the kernel while there is something to decrypt. Otherwise it is held twice,
            # and an end of the connection that is met meanwhile drops what was not handed on yet.
            cast("_TlsTransport", transport).set_read_buffer_limits(high=1, low=0)
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
        await self._resolver.close()
        for connection in tuple(self._open):
            connection.abort()
        await self._all_closed.wait()


def _is_readable(fileno: int) -> bool:
    """Return whether an idle connection has something to read, which can only be its end.

    A request that is written after that could not be sent again: the provider might have read it.
    """
    poll = select.poll()
    poll.register(fileno, select.POLLIN)
    return bool(poll.poll(0))


def _numeric(host: str, port: int) -> _AddressInfo | None:
    try:
        address = ip_address(host)
    except ValueError:
        return None
    family, where = (
        (socket.AF_INET, (host, port)) if address.version == 4 else (socket.AF_INET6, (host, port, 0, 0))  # noqa: PLR2004 - IPv4
    )
    return (family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", where)


def _reason(error: OSError) -> str:
    """Return what an error says, without the addresses that asyncio adds."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted: {error.verify_message}"
    if error.errno is not None and not isinstance(error, ssl.SSLError | socket.gaierror):
        return os.strerror(error.errno)
    return error.strerror or str(error)
