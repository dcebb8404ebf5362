"""A proxy that does one thing wrong, as real ones are found to do."""

from __future__ import annotations

import asyncio
import gzip
import re
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from email.utils import formatdate
from time import time

from tests.wire import HOST

_READ_BYTES = 1 << 16
_HEARTBEAT = b'{"done":false,"error":false,"content":""}\n'
_HEARTBEAT_CHUNK = b"%x\r\n%b\r\n" % (len(_HEARTBEAT), _HEARTBEAT)
_BODY_LIMIT = 1 << 20
_IDLE_S = 0.7
_PAGE = b"<html><h1>Sorry</h1></html>"

FAULTS = frozenset(
    {
        "authorization_dropped",
        "body_limit",
        "buffering",
        "clock",
        "compressed",
        "cors_star",
        "cors_twice",
        "errors_replaced",
        "heartbeats_lost",
        "idle_cut",
        "password",
        "preflight_refused",
        "swallowed_disconnects",
        "wrong_backend",
    }
)


class FaultProxy:
    """Passes requests on to a port of this machine, with one fault or none.

    Args:
        backend: the port.
        fault: of `FAULTS`, or empty.
    """

    def __init__(self, backend: int, fault: str = "") -> None:
        assert not fault or fault in FAULTS, fault
        self._backend = backend
        self._fault = fault
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    async def close(self) -> None:
        """Cut what is open, and wait for its end."""
        for writer in self._open.values():
            writer.transport.abort()
        await asyncio.gather(*self._open)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection: one request, as the doctor sends them."""
        task = asyncio.current_task()
        assert task is not None
        self._open[task] = writer
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            canned = self._canned(head)
            if canned is not None:
                writer.write(canned)
                await writer.drain()
                # A client that is still sending reads the answer before the connection ends.
                while await reader.read(_READ_BYTES):
                    pass
                return
            await self._pass_on(head, reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            # Either side left.
            return
        finally:
            del self._open[task]
            writer.transport.abort()

    def _canned(self, head: bytes) -> bytes | None:
        """Return what the proxy answers by itself, or None."""
        length = re.search(rb"(?i)content-length: *(\d+)", head)
        if self._fault == "body_limit" and length and int(length[1]) > _BODY_LIMIT:
            return _answer("413 Content Too Large", _PAGE)
        if self._fault == "preflight_refused" and head.startswith(b"OPTIONS"):
            return _answer("405 Method Not Allowed", _PAGE)
        if self._fault == "password" and head.startswith(b"POST"):
            return _answer("401 Unauthorized", _PAGE, 'WWW-Authenticate: Basic realm="inside"')
        if self._fault == "wrong_backend":
            return _answer("502 Bad Gateway", _PAGE)
        return None

    async def _pass_on(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._fault == "authorization_dropped":
            head = re.sub(rb"(?im)^authorization:.*\r\n", b"", head)
        back_reader, back_writer = await asyncio.open_connection(HOST, self._backend)
        back_writer.write(head)
        upward = asyncio.create_task(self._upward(reader, back_writer), name="proxy upward")
        try:
            async for piece in self._downward(back_reader):
                with suppress(ConnectionError):
                    writer.write(piece)
                    await writer.drain()
        finally:
            upward.cancel()
            await asyncio.gather(upward, return_exceptions=True)
            back_writer.transport.abort()

    async def _upward(self, reader: asyncio.StreamReader, back_writer: asyncio.StreamWriter) -> None:
        while piece := await reader.read(_READ_BYTES):
            back_writer.write(piece)
        if self._fault != "swallowed_disconnects":
            back_writer.transport.abort()

    async def _downward(self, reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
        head = await reader.readuntil(b"\r\n\r\n")
        if self._fault == "errors_replaced" and head.split(b" ", 2)[1] == b"401":
            yield _answer("401 Unauthorized", _PAGE)
            return
        if self._fault == "compressed" and b"chunked" in head:
            yield re.sub(rb"(?im)^transfer-encoding:.*\r\n", b"Content-Encoding: gzip\r\n", head)
            yield gzip.compress(_unchunked(await reader.read(-1)))
            return
        yield self._changed(head)
        if self._fault == "buffering":
            yield await reader.read(-1)
            return
        while piece := await self._read(reader):
            yield piece.replace(_HEARTBEAT_CHUNK, b"") if self._fault == "heartbeats_lost" else piece

    async def _read(self, reader: asyncio.StreamReader) -> bytes:
        if self._fault != "idle_cut":
            return await reader.read(_READ_BYTES)
        try:
            return await asyncio.wait_for(reader.read(_READ_BYTES), _IDLE_S)
        except TimeoutError:
            return b""

    def _changed(self, head: bytes) -> bytes:
        if self._fault == "clock":
            late = formatdate(time() - 600, usegmt=True).encode()
            return re.sub(rb"(?im)^date:.*\r\n", b"Date: " + late + b"\r\n", head)
        if self._fault == "cors_twice":
            return head[:-2] + b"Access-Control-Allow-Origin: *\r\n\r\n"
        if self._fault == "cors_star":
            return re.sub(rb"(?im)^(access-control-allow-origin: ).*\r\n", rb"\1*\r\n", head)
        return head


def _answer(status: str, body: bytes, *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", "Content-Type: text/html", f"Content-Length: {len(body)}", *headers]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + body


def _unchunked(data: bytes) -> bytes:
    whole = b""
    while data:
        size, _, data = data.partition(b"\r\n")
        whole += data[: int(size, 16)]
        data = data[int(size, 16) + 2 :]
    return whole


@asynccontextmanager
async def fault_proxy(backend: int, fault: str = "", tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """Run the proxy; yields its port."""
    proxy = FaultProxy(backend, fault)
    server = await asyncio.start_server(proxy.serve, HOST, 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await proxy.close()
        await server.wait_closed()
