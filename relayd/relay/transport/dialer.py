"""New connections to the provider: names, addresses, TCP, TLS, and the proxy on the way."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import ssl
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Self, cast
from urllib.parse import urlsplit

import aiohappyeyeballs

from relayd.relay.transport.proxy import Proxy, ProxyFailed, ask_socks5, leave_rest_in_kernel, open_tunnel

_DEFAULT_PORTS = {"http": 80, "https": 443}
_RECEIVE_BUFFER_BYTES = 64 << 10
"""Kernel buffer of an answer whose client does not read; Linux would let it grow to 6 MiB.

With less than a segment of the loopback device (64 KiB) a provider on the same machine waits for a timer
after each pause of a client: 16 KiB made 160 kB/s of 60 MB/s.
"""
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


class Dialer:
    """Makes connections to one origin.

    Args:
        origin: the provider.
        timeout_s: for DNS, TCP, TLS and what a proxy takes, together.
        proxy: makes the connections instead; the provider's name is then the proxy's to look up.
        resolver: None: one of its own.
    """

    def __init__(
        self,
        origin: Origin,
        *,
        timeout_s: float,
        proxy: Proxy | None = None,
        resolver: Resolver | None = None,
    ) -> None:
        self.timeout_s = timeout_s
        self._origin = origin
        self._proxy = proxy
        self._resolver = resolver or Resolver()
        self._loop = asyncio.get_running_loop()

    @classmethod
    def to(
        cls,
        base_url: str,
        *,
        timeout_s: float,
        proxy_url: str = "",
        ssl_context: ssl.SSLContext | None = None,
    ) -> Self:
        """Return what connects to the provider of an API.

        Args:
            base_url: `upstream.base_url`.
            timeout_s: as above.
            proxy_url: `upstream.proxy`; empty: none.
            ssl_context: for TLS to the provider and to the proxy; None: the system's authorities.
        """
        url = urlsplit(base_url)
        is_https = url.scheme == "https"
        if ssl_context is None and (is_https or urlsplit(proxy_url).scheme == "https"):
            ssl_context = ssl.create_default_context()
        port = url.port or _DEFAULT_PORTS[url.scheme]
        return cls(
            Origin(url.hostname or "", port, ssl_context if is_https else None),
            timeout_s=timeout_s,
            proxy=Proxy.parse(proxy_url, ssl_context) if proxy_url else None,
        )

    async def connect(self, protocol: asyncio.BaseProtocol) -> None:
        """Give a protocol a connection of its own.

        Raises:
            Unreachable: there was none in time.
        """
        through = "" if self._proxy is None else f" through the proxy {self._proxy}"
        try:
            async with asyncio.timeout(self.timeout_s):
                await self._connect(protocol)
        except TimeoutError as error:
            raise Unreachable(f"no connection within {self.timeout_s:g} s{through}") from error
        except ProxyFailed as error:
            raise Unreachable(f"the proxy {self._proxy} {error}") from error
        except OSError as error:
            raise Unreachable(_reason(error) + through) from error

    async def close(self) -> None:
        """Cancel the lookups that are under way."""
        await self._resolver.close()

    async def _connect(self, protocol: asyncio.BaseProtocol) -> None:
        origin, proxy = self._origin, self._proxy
        if proxy is None:
            await self._start(await self._open(origin), protocol)
            return
        ask = ask_socks5 if proxy.scheme == "socks5" else open_tunnel
        try:
            way = await ask(proxy, await self._open(proxy), origin.host, origin.port)
        except OSError as error:
            raise ProxyFailed(f"cannot be reached: {_reason(error)}") from error
        await self._start(way, protocol)

    async def _open(self, address: Origin | Proxy) -> socket.socket:
        addresses = await self._resolver.resolve(address.host, address.port)
        sock = await aiohappyeyeballs.start_connection(
            addresses, happy_eyeballs_delay=_HAPPY_EYEBALLS_DELAY_S, interleave=1, loop=self._loop
        )
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
        return sock

    async def _start(self, way: socket.socket | asyncio.Transport, protocol: asyncio.BaseProtocol) -> None:
        """Start a protocol, over TLS if the origin has it, on what leads to the origin."""
        tls = self._origin.tls
        host = None if tls is None else self._origin.host
        transport: asyncio.Transport | None
        if isinstance(way, socket.socket):
            try:
                transport, _ = await self._loop.create_connection(
                    lambda: protocol, sock=way, ssl=tls, server_hostname=host
                )
            except BaseException:
                way.close()
                raise
        elif tls is None:
            transport = way
            transport.set_protocol(protocol)
            protocol.connection_made(transport)
        else:
            try:
                transport = await self._loop.start_tls(way, protocol, tls, server_hostname=host)
            except BaseException:
                # If it is cancelled before its first byte, it leaves the transport open.
                way.abort()
                raise
            if transport is None:
                raise ConnectionResetError(errno.ECONNRESET, "")
            protocol.connection_made(transport)
        if tls is not None:
            leave_rest_in_kernel(transport)


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
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {(error.reason or str(error)).replace('_', ' ').lower()}"
    if error.errno is not None and not isinstance(error, socket.gaierror):
        return os.strerror(error.errno)
    # uvloop says nothing of a connection that is closed during the TLS handshake.
    return error.strerror or str(error) or "the connection was closed"
