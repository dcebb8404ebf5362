"""Behaviour of `relayd.admin.http1`: answers in any pieces, and nothing taken for one that is not."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.admin.http1 import Broken, connect, exchange


@asynccontextmanager
async def _server(path: Path, pieces: list[bytes], *, hold: bool = False) -> AsyncIterator[list[bytes]]:
    """Answers one request with these pieces, each on its own; keeps what was asked."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0)
        if hold:
            await reader.read()
        writer.close()

    server = await asyncio.start_unix_server(serve, str(path))
    try:
        yield asked
    finally:
        server.close()
        await server.wait_closed()


async def _ask(path: Path) -> tuple[int, bytes]:
    reader, writer = await connect(path)
    try:
        async with asyncio.timeout(30):
            answer = await exchange(reader, writer, ("GET", "/x"), {"X-More": "1"})
            return answer.status, await answer.body()
    finally:
        writer.close()


async def test_the_request_is_what_http_asks_for(tmp_path: Path) -> None:
    """Method, target, host, length and the given headers; one request for each connection."""
    async with _server(tmp_path / "s", [b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"]) as asked:
        assert await _ask(tmp_path / "s") == (200, b"ok")
    lines = asked[0].decode().split("\r\n")
    assert lines[0] == "GET /x HTTP/1.1"
    assert {"Host: relayd", "Connection: close", "Content-Length: 0", "X-More: 1"} <= set(lines[1:])


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=50), max_size=6),
    cuts=st.lists(st.integers(0, 400), max_size=8),
    extension=st.booleans(),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_a_body_in_chunks_is_whole_however_it_is_cut(
    chunks: list[bytes], cuts: list[int], *, extension: bool
) -> None:
    """Any chunks, sent in any pieces, give the same body."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    extra = b";x=1" if extension else b""
    wire = head + b"".join(b"%x%b\r\n%b\r\n" % (len(chunk), extra, chunk) for chunk in chunks) + b"0\r\n\r\n"

    async def ask() -> bytes:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        with theirs:
            places = [0, *sorted(cut % len(wire) for cut in cuts), len(wire)]
            for start, end in pairwise(places):
                theirs.sendall(wire[start:end])
            try:
                answer = await exchange(reader, writer, ("GET", "/"), {})
                return await answer.body()
            finally:
                writer.close()

    assert asyncio.run(ask()) == b"".join(chunks)


@pytest.mark.parametrize(
    "wire",
    [
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1\r\n\r\n",
        b"HTTP/1.1 yes OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nok",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 70_000 + b"\r\n\r\n",
    ],
)
async def test_what_is_no_whole_answer_is_broken(wire: bytes, tmp_path: Path) -> None:
    """Never a part passed off as the whole, never an error that callers do not know."""
    async with _server(tmp_path / "s", [wire]):
        with pytest.raises(Broken):
            await _ask(tmp_path / "s")


@pytest.mark.parametrize(
    "size", [b"Content-Length: 99999999999\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nfffffff\r\n"]
)
async def test_more_than_makes_sense_is_not_even_begun(size: bytes, tmp_path: Path) -> None:
    """A size beyond the bounds ends the exchange at once, while the connection is still open."""
    async with _server(tmp_path / "s", [b"HTTP/1.1 200 OK\r\n" + size + b"ok"], hold=True):
        with pytest.raises(Broken, match="makes sense"):
            await _ask(tmp_path / "s")
