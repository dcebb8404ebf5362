"""An outbound proxy: HTTP CONNECT with Basic authentication, and SOCKS5 with user and password; and TLS."""

from __future__ import annotations

import asyncio
import base64
import ssl
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import quote

from tests.wire import HOST

USER, PASSWORD = "me", "proxy-p@ssword"
_USERNAME_PASSWORD = 2
_IPV4 = 1

_Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(slots=True)
class OutboundProxy:
    """Where the proxy listens, and what it was asked for."""

    port: int = 0
    targets: list[str] = field(default_factory=list)
    """`host:port` of each connection that it was asked for with the right password."""

    def url(self, scheme: str, password: str = PASSWORD) -> str:
        """Return the value of `upstream.proxy` for this proxy."""
        return f"{scheme}://{USER}:{quote(password)}@{HOST}:{self.port}"


@asynccontextmanager
async def running_proxy(
    *, refusal: int = 0, target_port: int = 0, tls: ssl.SSLContext | None = None
) -> AsyncIterator[OutboundProxy]:
    """Run a proxy that connects to 127.0.0.1 whatever name it is asked for.

    Args:
        refusal: HTTP status, or SOCKS5 reply, with which a request with the right password is refused.
        target_port: connect there instead of the port that was asked for.
        tls: for an `https` proxy.
    """
    proxy = OutboundProxy()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        is_socks = await reader.readexactly(1) == b"\x05"
        target = await (_read_socks if is_socks else _read_connect)(reader, writer, refusal)
        if target:
            proxy.targets.append(target)
            if not refusal:
                await _join((reader, writer), target_port or int(target.rpartition(":")[2]))

    async with serving(serve, tls) as proxy.port:
        yield proxy


@asynccontextmanager
async def tls_front(port: int, tls: ssl.SSLContext) -> AsyncIterator[int]:
    """Put TLS before a plain server; yield the port."""
    async with serving(lambda *streams: _join(streams, port), tls) as front_port:
        yield front_port


@asynccontextmanager
async def serving(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]],
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[int]:
    """Serve each connection of a new port, which is yielded, and leave none behind."""
    open_: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await serve(reader, writer)
        finally:
            writer.close()

    def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A coroutine here would be a task that the test cannot cancel without an error in asyncio's log.
        open_[asyncio.create_task(run(reader, writer), name="connection of a test's server")] = writer

    async with await asyncio.start_server(on_connection, HOST, 0, ssl=tls) as server:
        yield server.sockets[0].getsockname()[1]
        server.close()
        for task in open_:
            task.cancel()
        await asyncio.gather(*open_, return_exceptions=True)
        for writer in open_.values():
            # A TLS connection that waits for the other side's goodbye would keep uvloop from closing.
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()


async def _read_connect(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, refusal: int) -> str:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    credentials = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    if f"\r\nProxy-Authorization: Basic {credentials}\r\n" not in head:
        writer.write(b"HTTP/1.1 407 Whatever\r\nContent-Length: 0\r\n\r\n")
        return ""
    # In pieces, as some proxies write it.
    for piece in (f"HTTP/1.1 {refusal or 200} ", "As you wish\r", "\nProxy-Agent: test\r\n\r", "\n"):
        writer.write(piece.encode())
        await asyncio.sleep(0.001)
    return head.split()[1]


async def _read_socks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, refusal: int) -> str:
    offered = await reader.readexactly((await reader.readexactly(1))[0])
    if _USERNAME_PASSWORD not in offered:
        writer.write(b"\x05\xff")
        return ""
    writer.write(b"\x05\x02")
    await reader.readexactly(1)
    user = await reader.readexactly((await reader.readexactly(1))[0])
    password = await reader.readexactly((await reader.readexactly(1))[0])
    if (user.decode(), password.decode()) != (USER, PASSWORD):
        writer.write(b"\x01\x01")
        return ""
    writer.write(b"\x01\x00")
    kind = (await reader.readexactly(4))[3]
    if kind == _IPV4:
        host = ".".join(map(str, await reader.readexactly(4)))
    else:
        host = (await reader.readexactly((await reader.readexactly(1))[0])).decode()
    port = int.from_bytes(await reader.readexactly(2))
    writer.write(bytes([5, refusal, 0, _IPV4, 127, 0, 0, 1, 0, 1]))
    return f"{host}:{port}"


async def _join(near: _Streams, port: int) -> None:
    """Copy between a connection and a new one to a port of this machine, until either ends."""
    far = await asyncio.open_connection(HOST, port)
    copies = [
        asyncio.create_task(_copy(source[0], sink[1]), name="outbound proxy")
        for source, sink in ((near, far), (far, near))
    ]
    try:
        await asyncio.wait(copies, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for copy in copies:
            copy.cancel()
        await asyncio.gather(*copies, return_exceptions=True)
        far[1].transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(64 << 10):
        writer.write(data)
        await writer.drain()
