"""One TCP connection as a test drives it: byte for byte, with the time at which each piece came."""

from __future__ import annotations

import asyncio
import json
import select
import socket
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

HOST = "127.0.0.1"
QUESTION = [{"role": "user", "content": "Say hi"}]
DONE = {"done": True, "error": False, "content": "[DONE]"}
DONE_BYTES = b'{"done":true,"error":false,"content":"[DONE]"}\n'
PATIENCE_S = 120.0
"""How long a test waits for what must come; a busy machine needs some of it, a failure all."""


@dataclass(slots=True)
class Reply:
    """An answer, as it came."""

    version: str
    status: int
    headers: list[tuple[str, str]]
    pieces: list[tuple[float, bytes]] = field(default_factory=list)
    """Each chunk of the body (or each read, where it is not chunked) with its `time.monotonic()`."""
    cut: bool = False
    """True where the connection ended before the body did."""

    def header(self, name: str) -> str | None:
        """The one header of this name; None where there is none."""
        found = [value for known, value in self.headers if known.lower() == name.lower()]
        assert len(found) < 2, f"{name} came {len(found)} times"
        return found[0] if found else None

    @property
    def body(self) -> bytes:
        """All of the body."""
        return b"".join(data for _, data in self.pieces)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The body's lines; each must end in a line feed."""
        body = self.body
        assert body == b"" or body.endswith(b"\n"), body[-80:]
        return [json.loads(line) for line in body.splitlines()]

    @property
    def text(self) -> str:
        """What a client that appends content ends up with."""
        return "".join(line["content"] for line in self.lines if not line["done"] and not line["error"])

    @property
    def error(self) -> str | None:
        """The content of the one error line."""
        found = [line["content"] for line in self.lines if line["error"]]
        assert len(found) < 2, found
        return found[0] if found else None


class Wire:
    """A client connection; use it as an async context manager."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(
        cls, port: int, host: str = HOST, *, source: str = "", receive_buffer_bytes: int = 0
    ) -> Self:
        """Connect.

        Args:
            port: of the daemon.
            host: of the daemon.
            source: an address of this machine to come from; Linux has all of 127/8.
            receive_buffer_bytes: a small one makes a client that can be sent little before it reads.
        """
        sock = socket.socket()
        sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
        if receive_buffer_bytes:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        try:
            if source:
                sock.bind((source, 0))
            async with asyncio.timeout(PATIENCE_S):
                await asyncio.get_running_loop().sock_connect(sock, (host, port))
                return cls(*await asyncio.open_connection(sock=sock))
        except BaseException:
            sock.close()
            raise

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.transport.abort()

    @property
    def socket(self) -> socket.socket:
        """The socket beneath."""
        found: socket.socket = self._writer.get_extra_info("socket")
        return found

    def send(self, data: bytes) -> None:
        """Send bytes; what the kernel does not take at once follows later."""
        self._writer.write(data)

    async def drained(self) -> None:
        """Wait until the kernel took what was sent, as far as a writer must."""
        await self._writer.drain()

    def pause(self) -> None:
        """Read nothing more from the kernel."""
        self._writer.transport.pause_reading()  # type: ignore[attr-defined]  # a socket's transport has it

    def taken(self, sent: int) -> int:
        """How much of what was sent the other side's process has read: the rest waits in a kernel.

        Args:
            sent: how much was handed to `send`.
        """
        waiting = self._writer.transport.get_write_buffer_size()
        here, there = self.socket.getsockname()[1], self.socket.getpeername()[1]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
            # proc(5): slot, local, remote, state, tx_queue:rx_queue; addresses and figures in hex.
            _, local, remote, _, queues, *_ = line.split()
            ends = int(local.split(":")[1], 16), int(remote.split(":")[1], 16)
            unacknowledged, unread = (int(figure, 16) for figure in queues.split(":"))
            if ends == (here, there):
                waiting += unacknowledged
            elif ends == (there, here):
                waiting += unread
        return sent - waiting

    def lost(self) -> bool:
        """Whether the other side reset or closed the connection, unread bytes or not."""
        if self._writer.transport.is_closing():
            return True
        poll = select.poll()
        poll.register(self.socket, select.POLLRDHUP)
        return bool(poll.poll(0))

    def resume(self) -> None:
        """Read again."""
        self._writer.transport.resume_reading()  # type: ignore[attr-defined]  # as above

    def finish(self) -> None:
        """Close as a browser does: FIN, or RST where bytes are unread."""
        self._writer.close()

    def half_close(self) -> None:
        """Say that nothing more will be sent, and go on reading."""
        self._writer.write_eof()

    def reset(self) -> None:
        """Close with a RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def head(self) -> Reply:
        """Read a reply's status and headers; informational ones (1xx) are replies too."""
        raw = await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), PATIENCE_S)
        first, *rest = raw.decode("latin-1").split("\r\n")[:-2]
        version, status, *_ = first.split(" ", 2)
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in rest)]
        return Reply(version, int(status), headers)

    async def begin(self, request: bytes) -> Reply:
        """Send a request; return its reply when the first chunk of its body has come."""
        self.send(request)
        reply = await self.head()
        await self.first_piece(reply)
        return reply

    async def first_piece(self, reply: Reply) -> bytes:
        """Read one chunk more of a chunked body."""
        data = await asyncio.wait_for(self._chunk(), PATIENCE_S)
        reply.pieces.append((time.monotonic(), data))
        return data

    async def reply(self) -> Reply:
        """Read a whole reply."""
        return await self.rest(await self.head())

    async def rest(self, reply: Reply) -> Reply:
        """Read the rest of a reply that has begun."""
        async with asyncio.timeout(PATIENCE_S):
            async for data in self._body(reply):
                reply.pieces.append((time.monotonic(), data))
        return reply

    async def ended(self) -> bytes:
        """Read to the connection's end, by FIN or RST; what came before it is returned."""
        try:
            return await asyncio.wait_for(self._reader.read(), PATIENCE_S)
        except ConnectionError:
            return b""

    async def _body(self, reply: Reply) -> AsyncIterator[bytes]:
        try:
            if reply.status in {204, 304} or 100 <= reply.status < 200:
                return
            if reply.header("Transfer-Encoding") == "chunked":
                while data := await self._chunk():
                    yield data
            elif (length := reply.header("Content-Length")) is not None:
                left = int(length)
                while left > 0 and (data := await self._reader.read(left)):
                    left -= len(data)
                    yield data
                reply.cut = left > 0
            else:
                while data := await self._reader.read(1 << 16):
                    yield data
        except (asyncio.IncompleteReadError, ConnectionError):
            reply.cut = True

    async def _chunk(self) -> bytes:
        size = int(await self._reader.readuntil(b"\r\n"), 16)
        data = await self._reader.readexactly(size)
        assert await self._reader.readexactly(2) == b"\r\n"
        return data


def body(model: str | None = None, **fields: Any) -> bytes:
    """The JSON of a chat request: a question, a model where one is named, and more fields."""
    chosen = {} if model is None else {"model": model}
    return json.dumps({"messages": QUESTION, **chosen, **fields}).encode()


def post(
    key: str | bytes | None,
    payload: bytes,
    headers: Mapping[str, str] | None = None,
    *,
    path: str = "/chat",
    version: str = "HTTP/1.1",
    length: int | None = None,
) -> bytes:
    """The bytes of a POST.

    Args:
        key: for the Authorization header; None leaves it out.
        payload: the body, or the part of it that is sent at once.
        headers: more of them.
        path: where to.
        version: of HTTP.
        length: what Content-Length says, where it is not the payload's own.
    """
    lines = [f"POST {path} {version}", "Host: relay", f"Content-Length: {length or len(payload)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    head = "\r\n".join(lines).encode() + b"\r\n"
    if key is not None:
        head += b"Authorization: " + (key if isinstance(key, bytes) else key.encode()) + b"\r\n"
    return head + b"\r\n" + payload


def post_chunked(key: str, *chunks: bytes, headers: Mapping[str, str] | None = None) -> bytes:
    """The bytes of a POST to /chat whose body has no length yet, and its first chunks."""
    head = post(key, b"", {"Transfer-Encoding": "chunked", **(headers or {})})
    return head.replace(b"Content-Length: 0\r\n", b"") + b"".join(
        b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks
    )


async def ask(
    port: int,
    key: str | bytes | None,
    payload: bytes,
    headers: Mapping[str, str] | None = None,
    *,
    host: str = HOST,
) -> Reply:
    """Send one request on a connection of its own and read the whole reply."""
    async with await Wire.open(port, host) as wire:
        wire.send(post(key, payload, headers))
        return await wire.reply()


async def fetch(
    port: int, path: str, headers: Mapping[str, str] | None = None, *, method: str = "GET"
) -> Reply:
    """Send a request without a body on a connection of its own and read the whole reply."""
    fields = "".join(f"{name}: {value}\r\n" for name, value in (headers or {}).items())
    async with await Wire.open(port) as wire:
        wire.send(f"{method} {path} HTTP/1.1\r\nHost: relay\r\n{fields}\r\n".encode())
        return await (wire.head() if method == "HEAD" else wire.reply())


async def until(holds: Callable[[], object]) -> None:
    """Wait until a condition holds that nothing announces; bounded."""
    async with asyncio.timeout(PATIENCE_S):
        while not holds():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.002)


def wait_until(holds: Callable[[], object]) -> None:
    """Wait as `until` does, where there is no event loop."""
    end_s = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end_s, "it did not come about in time"
        time.sleep(0.005)


async def eventually(holds: Callable[[], Awaitable[object]]) -> None:
    """Wait until a condition holds that another process has to be asked for; bounded."""
    async with asyncio.timeout(PATIENCE_S):
        while not await holds():  # noqa: ASYNC110 - there is no event to wait for
            await asyncio.sleep(0.05)
