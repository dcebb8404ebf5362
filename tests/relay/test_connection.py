"""One connection to the provider: answers in any split, and every way for them to break."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from relayd.relay.answer import Answer, Broken
from relayd.relay.pool import READ_BYTES, Origin, Pool
from tests.support.certificates import Authority
from tests.wire import until

_HEAD = b"POST /x HTTP/1.1\r\nHost: here\r\nContent-Length: 2\r\n\r\n"
_CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def _provider(
    script: Script, *, stale_within_s: float = 2.0, authority: Authority | None = None
) -> AsyncGenerator[Pool, None]:
    """A pool whose provider follows the script on each connection, after the request has come.

    Args:
        script: what it does.
        stale_within_s: of the pool.
        authority: it speaks TLS, with a certificate of this one.
    """
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        try:
            await reader.readexactly(len(_HEAD) + 2)
            await script(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()

    context = None
    if authority is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        pair = authority.pair("provider")
        context.load_cert_chain(pair.cert, pair.key)
    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    trusted = None if authority is None else authority.trusted()
    origin = Origin("127.0.0.1", server.sockets[0].getsockname()[1], trusted)
    pool = Pool(origin, connect_timeout_s=5, stale_within_s=stale_within_s)
    try:
        yield pool
    finally:
        await pool.close()
        server.close()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _ask(pool: Pool) -> Answer:
    async with asyncio.timeout(30):
        return await pool.send(_HEAD, b"{}", lambda: None)


async def _whole(answer: Answer) -> bytes:
    body = b""
    async with asyncio.timeout(30):
        while piece := await answer.read():
            body += piece
    return body


def _says(*pieces: bytes, then_wait: bool = False) -> Script:
    """A provider that writes these pieces, each on its own, then closes or waits."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.001)
        if then_wait:
            await reader.read()

    return script


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (_CHUNKED + b"5\r\nhello\r\n3\r\n it\r\n0\r\n\r\n", b"hello it"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
        (b"HTTP/1.1 200 OK\r\n\r\nuntil the end", b"until the end"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi", b"hi"),
        (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + _CHUNKED + b"1\r\nx\r\n0\r\n\r\n", b"x"),
    ],
)
async def test_every_framing_is_read_whole_also_byte_by_byte(answer: bytes, body: bytes) -> None:
    """Chunked, counted and close-delimited bodies arrive whole, however their bytes are cut."""
    for pieces in ([answer], [bytes([byte]) for byte in answer]):
        async with _provider(_says(*pieces)) as pool:
            got = await _ask(pool)
            assert got.status == 200
            assert await _whole(got) == body
            assert got.ended
            got.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-",
        b"not http at all\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-Flood: " + b"x" * 70_000,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000,
    ],
)
async def test_a_head_that_is_none_is_broken(answer: bytes) -> None:
    """An early end, other protocols, two lengths and endless headers are one typed error."""
    async with _provider(_says(answer)) as pool:
        with pytest.raises(Broken):
            await _ask(pool)


@pytest.mark.parametrize(
    "answer", [_CHUNKED + b"5\r\nhel", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhel"]
)
async def test_a_body_that_is_cut_gives_what_came_and_then_breaks(answer: bytes) -> None:
    """What arrived before the cut is not lost, and the cut is never taken for the end."""
    async with _provider(_says(answer)) as pool:
        got = await _ask(pool)
        assert await got.read() == b"hel"
        with pytest.raises(Broken):
            await _whole(got)


async def test_a_connection_serves_again_after_a_whole_body() -> None:
    """The next request goes over the same connection, once the last body was read to its end."""
    connections = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        while True:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
            await reader.readexactly(len(_HEAD) + 2)

    async with _provider(script) as pool:
        for _ in range(3):
            answer = await _ask(pool)
            assert await _whole(answer) == b"hi"
            answer.close()
            answer.close()
    assert connections == 1


async def test_an_unread_body_ends_its_connection() -> None:
    """Closing an answer early cuts the connection at once, so that the provider stops."""
    left = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(_CHUNKED + b"5\r\nhello\r\n")
        try:
            await reader.read()
        finally:
            left.set()

    async with _provider(script) as pool:
        answer = await _ask(pool)
        answer.close()
        async with asyncio.timeout(30):
            await left.wait()


@pytest.mark.parametrize("ends", [True, False])
async def test_an_answer_whose_end_is_late_is_waited_for_beside_the_next(ends: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Who read all that matters goes on at once; the connection serves again if the end comes in time."""
    connections: list[asyncio.StreamWriter] = []
    cut = asyncio.Event()

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(writer)
        writer.write(_CHUNKED + b"5\r\nhello\r\n")
        if len(await reader.read(len(_HEAD) + 2)) == len(_HEAD) + 2:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
            await reader.read()
        cut.set()

    async with _provider(script) as pool:
        answer = await _ask(pool)
        assert await answer.read() == b"hello"
        answer.close(wait_s=30 if ends else 0.05)
        async with asyncio.timeout(30):
            if ends:
                connections[0].write(b"0\r\n\r\n")
                await until(lambda: pool.idle)
                assert await _whole(await _ask(pool)) == b"hi"
            else:
                await cut.wait()
    assert len(connections) == 1


async def test_a_kept_connection_that_the_provider_closed_is_replaced() -> None:
    """A request that finds its kept connection dead goes over a new one, unseen by the caller."""
    async with _provider(_says(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")) as pool:
        for _ in range(5):
            answer = await _ask(pool)
            assert await _whole(answer) == b"hi"
            answer.close()


async def test_a_reader_that_stops_stops_the_provider() -> None:
    """Unread, a body holds a bounded buffer, and goes on whole when it is read again."""
    size = 8 << 20
    sent = 0

    async def script(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        piece = b"x" * 65_536
        while sent < size:
            writer.write(piece)
            await writer.drain()
            sent += len(piece)

    async with _provider(script) as pool:
        answer = await _ask(pool)
        before = -1
        while sent != before:
            before = sent
            await asyncio.sleep(0.05)
        assert sent < size
        assert answer._buffered_bytes < 1 << 20
        assert len(await _whole(answer)) == size


async def test_one_read_brings_only_so_much() -> None:
    """However much the kernel has: what a client that does not read leaves in the relay is bounded by it."""
    size = 1 << 20
    head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size
    pieces: list[bytes] = []

    def take(piece: bytes) -> bool:
        pieces.append(piece)
        return True

    async with _provider(_says(head + b"x" * size)) as pool, asyncio.timeout(30):
        answer = await _ask(pool)
        assert await answer.pour(take) is False
    assert sum(map(len, pieces)) == size
    # The first can be two reads: what had come before anybody poured.
    assert max(map(len, pieces[1:])) <= READ_BYTES


@pytest.mark.parametrize("slow", [False, True], ids=["read at once", "read late"])
async def test_over_tls_nothing_is_lost_that_came_before_the_end(tmp_path: Path, *, slow: bool) -> None:
    """The provider closes right behind a large answer: all of it arrives, also for who reads late."""
    size = 200_000

    async def script(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.set_write_buffer_limits(0)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size)
        await writer.drain()
        # As a provider that is ended: no last word of TLS, only the end of the connection.
        writer.transport.abort()

    async with _provider(script, authority=Authority(tmp_path)) as pool, asyncio.timeout(60):
        for _ in range(20):
            answer = await _ask(pool)
            if slow:
                await asyncio.sleep(0.05)
            assert len(await _whole(answer)) == size
            answer.close()


async def test_cancelling_a_wait_for_the_head_cuts_the_connection() -> None:
    """A client that leaves before the headers frees the provider at once."""
    asked, left = asyncio.Event(), asyncio.Event()

    async def script(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        asked.set()
        with suppress(ConnectionError):
            assert await reader.read() == b""
        left.set()

    async with _provider(script) as pool:
        asking = asyncio.create_task(_ask(pool), name="asking")
        async with asyncio.timeout(30):
            await asked.wait()
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        async with asyncio.timeout(30):
            await left.wait()


async def test_a_second_answer_glued_to_the_first_is_ignored() -> None:
    """The first is read whole at once; the connection, which cannot be trusted, is not used again."""
    connections = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        one = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
        writer.write(one + one.replace(b"hi", b"no"))
        await reader.read()

    async with _provider(script) as pool:
        for _ in range(2):
            answer = await _ask(pool)
            assert await _whole(answer) == b"hi"
            answer.close()
    assert connections == 2


async def test_a_request_that_may_have_been_seen_is_not_sent_again() -> None:
    """A kept connection that breaks after a while had taken the request: it is told, not repeated."""
    requests = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal requests
        requests += 1
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        await reader.readexactly(len(_HEAD) + 2)
        requests += 1
        await asyncio.sleep(0.1)

    async with _provider(script, stale_within_s=0.0) as pool:
        answer = await _ask(pool)
        assert await _whole(answer) == b"hi"
        answer.close()
        with pytest.raises(Broken):
            await _ask(pool)
    assert requests == 2
