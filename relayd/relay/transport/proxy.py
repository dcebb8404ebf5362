"""The outbound proxy of `upstream.proxy`, and how it is asked for a connection to the provider."""

from __future__ import annotations

import asyncio
import base64
import socket
import ssl
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Protocol, Self, cast
from urllib.parse import unquote, urlsplit

import python_socks
from python_socks.async_.asyncio import Proxy as Socks5Client
from typing_extensions import override

_DEFAULT_PORTS = {"http": 80, "https": 443, "socks5": 1080}
_SUCCESS = range(200, 300)
_MAX_HEAD_BYTES = 64 << 10
_END_OF_HEAD = b"\r\n\r\n"


class ProxyFailed(Exception):
    """The proxy made no connection; the text completes "the proxy ..."."""


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy; neither its repr nor its text shows user and password.

    Attributes:
        scheme: `http` and `https` are asked with CONNECT (RFC 9110, 9.3.6), `socks5` as in RFC 1928 and 1929.
        tls: for the connection to an `https` proxy itself; else None.
    """

    scheme: str
    host: str
    port: int
    user: str = field(repr=False)
    password: str = field(repr=False)
    tls: ssl.SSLContext | None

    @classmethod
    def parse(cls, url: str, tls: ssl.SSLContext | None) -> Self:
        """Return the proxy of a URL that `relayd.config` accepted; `tls` is for `https`."""
        parts = urlsplit(url)
        return cls(
            parts.scheme,
            parts.hostname or "",
            parts.port or _DEFAULT_PORTS[parts.scheme],
            unquote(parts.username or ""),
            unquote(parts.password or ""),
            tls if parts.scheme == "https" else None,
        )

    def __str__(self) -> str:
        return f"{self.scheme}://{_authority(self.host, self.port)}"


async def ask_socks5(proxy: Proxy, sock: socket.socket, host: str, port: int) -> socket.socket:
    """Return a socket, once connected to a SOCKS5 proxy, that now leads to `host`.

    Raises:
        ProxyFailed: the proxy refused.
        OSError: the connection broke.
    """
    client = Socks5Client(
        python_socks.ProxyType.SOCKS5,
        proxy.host,
        proxy.port,
        proxy.user or None,
        proxy.password or None,
        rdns=True,
        forward=_Connected(sock),
    )
    try:
        return await client.connect(host, port)
    except (python_socks.ProxyError, ValueError) as error:
        # ValueError: its reply cannot be read.
        raise ProxyFailed(f"refused: {error}") from error


class _Connected(Socks5Client):
    """Stands for a proxy before the proxy, so that the library uses a socket that is connected already."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock

    @override
    async def connect(self, *_args: object, **_kwargs: object) -> socket.socket:
        return self._sock


async def open_tunnel(proxy: Proxy, sock: socket.socket, host: str, port: int) -> asyncio.Transport:
    """Return a transport that leads to `host`, from a socket that is connected to an HTTP proxy.

    The library's own CONNECT takes the second segment of a reply for the provider's first bytes.

    Raises:
        ProxyFailed: the proxy refused.
        OSError: TLS to the proxy failed.
    """
    target = _authority(host, port)
    request = f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n"
    if proxy.user:
        credentials = base64.b64encode(f"{proxy.user}:{proxy.password}".encode()).decode()
        request += f"Proxy-Authorization: Basic {credentials}\r\n"
    try:
        transport, reply = await asyncio.get_running_loop().create_connection(
            _TunnelReply, sock=sock, ssl=proxy.tls, server_hostname=proxy.host if proxy.tls else None
        )
    except BaseException:
        sock.close()
        raise
    if proxy.tls is not None:
        leave_rest_in_kernel(transport)
    try:
        transport.write(f"{request}\r\n".encode())
        _require_success(await reply.head)
    except BaseException:
        transport.abort()
        raise
    return transport


class _TunnelReply(asyncio.Protocol):
    """Reads the head of a reply to CONNECT. No body follows; a provider's server does not speak first."""

    def __init__(self) -> None:
        self.head: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._received = b""

    @override
    def data_received(self, data: bytes) -> None:
        self._received += data
        is_whole = _END_OF_HEAD in self._received or len(self._received) > _MAX_HEAD_BYTES
        if is_whole and not self.head.done():
            self.head.set_result(self._received)

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        if not self.head.done():
            self.head.set_exception(ProxyFailed("closed the connection"))


def _require_success(head: bytes) -> None:
    version, _, rest = head.partition(b" ")
    code = rest[:3]
    if not version.startswith(b"HTTP/1.") or not code.isdigit() or _END_OF_HEAD not in head:
        raise ProxyFailed("does not speak HTTP")
    status = int(code)
    if status not in _SUCCESS:
        # The proxy's own phrase may hold anything.
        phrase = HTTPStatus(status).phrase if status in set(HTTPStatus) else ""
        raise ProxyFailed(f"refused: {status} {phrase}".rstrip())


def _authority(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class _TlsTransport(Protocol):
    """The method of asyncio's and uvloop's TLS transports that `asyncio.Transport` does not declare."""

    def set_read_buffer_limits(self, high: int, low: int) -> None: ...


def leave_rest_in_kernel(transport: asyncio.Transport) -> None:
    """Read from a TLS connection only while nothing is left to decrypt.

    Otherwise the rest is held twice, and an end of the connection that is met meanwhile drops what was not
    handed on yet.
    """
    cast("_TlsTransport", transport).set_read_buffer_limits(high=1, low=0)
