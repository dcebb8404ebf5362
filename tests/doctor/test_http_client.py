"""`relayd.doctor.http_client`: answers read as they come, in every framing."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from relayd.doctor.http_client import Answer, NoAnswer
from tests.doctor.harness import site_at
from tests.wire import HOST

_TEXT = b"one\n\xe2\x82\xac\nthree\n"
_HEAD = b"HTTP/1.1 200 OK\r\n"


def _chunked(data: bytes, size: int) -> bytes:
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


@asynccontextmanager
async def _answering(reply: bytes, piece_bytes: int) -> AsyncIterator[int]:
    """A server that reads a head and answers with these bytes, piece by piece."""
    done: list[asyncio.Task[None] | None] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        done.append(asyncio.current_task())
        await reader.readuntil(b"\r\n\r\n")
        for at in range(0, len(reply), piece_bytes):
            if writer.is_closing():  # the client has read enough
                break
            writer.write(reply[at : at + piece_bytes])
            await asyncio.sleep(0)
        writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.gather(*(task for task in done if task is not None))


async def _ask(reply: bytes, *, piece_bytes: int = 1) -> Answer:
    async with _answering(reply, piece_bytes) as port:
        return await site_at(port).ask("GET", "/x")


@pytest.mark.parametrize(
    "reply",
    [
        _HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + _chunked(_TEXT, 1),
        _HEAD + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(_TEXT, mtime=0),
    ],
)
async def test_lines_are_whole_however_they_come(reply: bytes) -> None:
    """Split at every byte, and compressed."""
    answer = await _ask(reply)
    assert [line for _, line in answer.lines] == _TEXT.splitlines()
    assert answer.status == 200


@pytest.mark.parametrize(
    ("reply", "lines"),
    [
        (_HEAD + b"Content-Length: 100\r\n\r\n" + _TEXT, 3),
        (_HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\none\n\r\n", 1),
        (_HEAD + b"Transfer-Encoding: chunked\r\n\r\n4\r\none\n\r\nzz\r\n", 1),
        (_HEAD + b"Content-Encoding: gzip\r\n\r\nno gzip at all", 0),
    ],
)
async def test_a_body_that_breaks_off_is_no_failure(reply: bytes, lines: int) -> None:
    """The lines before the break are kept."""
    assert len((await _ask(reply)).lines) == lines


@pytest.mark.parametrize("is_compressed", [True, False])
async def test_an_endless_body_is_read_to_a_bound(*, is_compressed: bool) -> None:
    """Compressed to a thousandth or plain, 4 MiB of it are looked at."""
    body = b"x" * (16 << 20)
    reply = (
        _HEAD + b"Content-Encoding: gzip\r\n\r\n" + gzip.compress(body)
        if is_compressed
        else _HEAD + b"\r\n" + body
    )
    ((_, line),) = (await _ask(reply, piece_bytes=64 << 10)).lines
    assert len(line) == 4 << 20


@pytest.mark.parametrize("reply", [b"", b"SSH-2.0\r\n\r\n", b"HTTP/1.1 OK\r\n\r\n", b"HTTP/1.1 200"])
async def test_what_is_no_http_is_no_answer(reply: bytes) -> None:
    """Whatever it is, the error says so."""
    with pytest.raises(NoAnswer, match=r"^GET /x is not answered in HTTP$"):
        await _ask(reply)
