"""One HTTP/1.1 exchange over a Unix socket: as much of RFC 9112 as relayd's own server speaks.

A client library would do, but the one at hand takes 350 ms to import, which every command and the
first paint of the terminal app would wait for; this takes none.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_MAX_LINE_BYTES = 64 << 10
_MAX_CHUNK_BYTES = 16 << 20
_MAX_BODY_BYTES = 64 << 20
_STATUS_LINE_PARTS = 2


class Broken(Exception):
    """The connection ended, or what came over it is not HTTP, before the answer was whole."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of an answer; header names are in small letters. The body is still to come."""

    status: int
    headers: Mapping[str, str]
    reader: asyncio.StreamReader

    async def pieces(self) -> AsyncGenerator[bytes, None]:
        """The body as it comes.

        Raises:
            Broken: it ended early.
        """
        with _as_broken():
            if self.headers.get("transfer-encoding", "").lower() == "chunked":
                while size := await self._chunk_size():
                    chunk = await self.reader.readexactly(size + 2)
                    yield chunk[:-2]
            else:
                length = _size(self.headers.get("content-length", "0"), 10, _MAX_BODY_BYTES)
                yield await self.reader.readexactly(length)

    async def _chunk_size(self) -> int:
        line = await self.reader.readline()
        return _size(line.split(b";")[0].strip().decode("latin-1"), 16, _MAX_CHUNK_BYTES)

    async def body(self) -> bytes:
        """The whole body, of at most 64 MiB.

        Raises:
            Broken: it ended early, or is larger.
        """
        whole = bytearray()
        async for piece in self.pieces():
            whole += piece
            if len(whole) > _MAX_BODY_BYTES:
                raise Broken("The answer is too large.")
        return bytes(whole)


async def connect(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to the socket.

    Raises:
        OSError: as connect(2).
    """
    return await asyncio.open_unix_connection(str(path), limit=_MAX_LINE_BYTES)


async def exchange(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    request: tuple[str, str],
    headers: Mapping[str, str],
    body: bytes = b"",
) -> Answer:
    """Send a request, the only one of its connection, and read the head of its answer.

    Args:
        reader: of the connection.
        writer: of the connection.
        request: method and target, in ASCII.
        headers: more headers.
        body: sent with its length.

    Raises:
        Broken: the connection ended, or no HTTP came back.
    """
    method, target = request
    more = {"Host": "relayd", "Connection": "close", "Content-Length": str(len(body)), **headers}
    head = "".join(
        [f"{method} {target} HTTP/1.1\r\n", *(f"{name}: {more[name]}\r\n" for name in more), "\r\n"]
    )
    with _as_broken():
        writer.write(head.encode("ascii") + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        version, status = lines[0].split(" ")[:_STATUS_LINE_PARTS]
        if version != "HTTP/1.1":
            raise Broken("What answers is no HTTP server.")
        fields = (line.partition(":") for line in lines[1:] if line)
        found = {name.strip().lower(): value.strip() for name, _, value in fields}
        return Answer(int(status), found, reader)


@contextmanager
def _as_broken() -> Iterator[None]:
    """Turn every way in which a read can fail into `Broken`."""
    try:
        yield
    except (OSError, EOFError, ValueError, asyncio.LimitOverrunError) as error:
        raise Broken("The connection ended before the answer was whole.") from error


def _size(text: str, base: int, limit: int) -> int:
    size = int(text, base)
    if not 0 <= size <= limit:
        raise Broken(f"The daemon announced {size} bytes at once; {limit} is the most that makes sense.")
    return size
