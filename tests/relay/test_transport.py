"""Connections to the provider: responses in any split, every way for them to break, and their reuse."""

from __future__ import annotations

import asyncio
import itertools
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.relay.transport import ON_CONNECTED, READ_BYTES, HttpTransport, Pool, incoming
from relayd.relay.transport.connection import Connection, ConnectionBroken, IncomingResponse
from relayd.relay.transport.dialer import Dialer, Origin, Resolver, Unreachable
from tests.relay.harness import (
    CHUNKED_HEAD,
    Break,
    PlayedProvider,
    Step,
    chunked,
    cut,
    running_provider,
)
from tests.support.certificates import Authority
from tests.wire import HOST, PATIENCE_S, until

_REQUEST = b"POST /x HTTP/1.1\r\nHost: here\r\nContent-Length: 2\r\n\r\n{}"
_HI = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"
_ALL = 1 << 30


@asynccontextmanager
async def _pool_of(
    *replies: Sequence[Step],
    authority: Authority | None = None,
    host: str = HOST,
    timeout_s: float = PATIENCE_S,
    resolver: Resolver | None = None,
    **options: Any,
) -> AsyncIterator[tuple[Pool, PlayedProvider]]:
    """Run a provider and the pool of connections to it, over TLS if an authority is given."""
    tls = None
    if authority is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        pair = authority.pair("provider")
        tls.load_cert_chain(pair.cert, pair.key)
    async with running_provider(*replies, tls=tls) as provider:
        trusted = None if authority is None else authority.trusted()
        dialer = Dialer(Origin(host, provider.port, trusted), timeout_s=timeout_s, resolver=resolver)
        pool = Pool(dialer, **options)
        try:
            yield pool, provider
        finally:
            await pool.close()


async def _send(pool: Pool) -> IncomingResponse:
    return await asyncio.wait_for(pool.send(_REQUEST, lambda: None), PATIENCE_S)


async def _read(response: IncomingResponse, max_bytes: int = _ALL) -> bytes:
    return await asyncio.wait_for(response.read(max_bytes), PATIENCE_S)


async def _exchange(pool: Pool) -> bytes:
    response = await _send(pool)
    body = await _read(response)
    response.close()
    return body


_WHOLE = [
    (CHUNKED_HEAD + chunked(b"hello", b" it") + b"0\r\n\r\n", b"hello it"),
    (CHUNKED_HEAD + b"5;name=value\r\nhello\r\n0\r\nTrailer: x\r\n\r\n", b"hello"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
    (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
    (b"HTTP/1.1 100 Continue\r\n\r\n" + _HI, b"hi"),
    (b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + CHUNKED_HEAD + b"1\r\nx\r\n0\r\n\r\n", b"x"),
]


@pytest.mark.parametrize(("sent", "body"), [*_WHOLE, (b"HTTP/1.1 200 OK\r\n\r\nto the end", b"to the end")])
@pytest.mark.parametrize("byte_by_byte", [False, True])
async def test_every_framing_is_read_whole(sent: bytes, body: bytes, byte_by_byte: bool) -> None:  # noqa: FBT001 - a parameter
    """Chunked, counted and close-delimited bodies, also behind interim responses."""
    pieces: list[Step] = [bytes([byte]) for byte in sent] if byte_by_byte else [sent]
    async with _pool_of([*pieces, Break.CLOSE]) as (pool, _):
        response = await _send(pool)
        assert response.status == 200
        assert await _read(response) == body
        assert response.ended


def test_interim_headers_are_not_those_of_the_response() -> None:
    """What an early hint said is gone; names are found in any case, values of one name are joined."""
    heads: list[IncomingResponse] = []
    connection = _ByHand(
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\nA: 1\r\na: 2\r\n\r\n"
    )
    heads += connection.responses
    assert [head.header(name) for head in heads for name in (b"link", b"a")] == ["", "1, 2"]


class _Transport(asyncio.Transport):
    """A transport to nowhere."""

    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send nothing."""

    def is_closing(self) -> bool:
        """Return whether it was aborted."""
        return self.aborted

    def abort(self) -> None:
        """Note it."""
        self.aborted = True

    def pause_reading(self) -> None:
        """Do nothing."""

    def resume_reading(self) -> None:
        """Do nothing."""


class _ByHand:
    """One connection whose reads are given, without a socket: what it pushed, and how it ended."""

    def __init__(self, *reads: bytes, eof: bool = False) -> None:
        self.pushed: list[bytes] = []
        self.ends: list[Exception | None] = []
        self.responses: list[IncomingResponse] = []
        self.failure: BaseException | None = None
        self.idle = 0
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(self._run(reads, eof=eof))
        finally:
            loop.close()

    async def _run(self, reads: Sequence[bytes], *, eof: bool) -> None:
        buffer = bytearray(READ_BYTES)
        connection = Connection(self._on_idle, lambda _lost: None, memoryview(buffer))
        connection.connection_made(_Transport())
        sending = asyncio.create_task(connection.send(_REQUEST))
        await asyncio.sleep(0)
        for read in reads:
            buffer[: len(read)] = read
            connection.buffer_updated(len(read))
            await asyncio.sleep(0)
            if sending.done() and not self.responses and sending.exception() is None:
                self.responses.append(sending.result())
                sending.result().start(self.pushed.append, self.ends.append)
        if eof:
            connection.eof_received()
        connection.connection_lost(None)
        await asyncio.wait((sending,))
        self.failure = sending.exception()
        for response in self.responses:
            response.close()

    def _on_idle(self, _connection: Connection) -> None:
        self.idle += 1


@given(st.sampled_from(_WHOLE), st.lists(st.integers(0, 10_000), max_size=8))
@settings(max_examples=60)
def test_where_the_bytes_of_a_response_are_cut_changes_nothing(
    sent_and_body: tuple[bytes, bytes], places: list[int]
) -> None:
    """Any split pushes the same body, in order, and one end; nothing is pushed empty."""
    sent, body = sent_and_body
    by_hand = _ByHand(*filter(None, cut(sent, places)))
    assert b"".join(by_hand.pushed) == body
    assert by_hand.ends == [None]
    assert all(by_hand.pushed)


@given(st.sampled_from(_WHOLE), st.integers(0, 10_000), st.booleans())
@settings(max_examples=60)
def test_a_response_cut_at_any_point_is_never_taken_for_a_whole_one(
    sent_and_body: tuple[bytes, bytes],
    place: int,
    eof: bool,  # noqa: FBT001 - an example
) -> None:
    """What came is pushed, and the end is an error: of the head, or of the body."""
    sent, body = sent_and_body
    by_hand = _ByHand(sent[: place % len(sent)] or b"H", eof=eof)
    if by_hand.responses:
        assert body.startswith(b"".join(by_hand.pushed))
        assert [type(end) for end in by_hand.ends] == [ConnectionBroken]
    else:
        assert isinstance(by_hand.failure, ConnectionBroken)


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-",
        b"not http at all\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X-Flood: " + b"x" * 70_000,
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000,
        b"HTTP/1.1 100 Continue\r\n\r\n" * 4000,
    ],
)
async def test_what_is_no_response_is_a_broken_connection(sent: bytes) -> None:
    """An early end, other protocols, two lengths, endless headers and endless interim responses."""
    async with _pool_of([sent, Break.CLOSE]) as (pool, _):
        with pytest.raises(ConnectionBroken):
            await _send(pool)
        await until(lambda: pool.is_closed)


@pytest.mark.parametrize(
    ("start", "again"),
    [
        (b"HTTP/1.1 200 OK\r\n", b"X: " + b"y" * 1000 + b"\r\n"),
        (CHUNKED_HEAD + b"2\r\nhi\r\n0\r\n", b"X: " + b"y" * 1000 + b"\r\n"),
        (CHUNKED_HEAD + b"2\r\nhi\r\n0\r\nX: ", b"y" * 1000),
        (CHUNKED_HEAD + b"2\r\nhi\r\n2;x=", b"y" * 1000),
    ],
    ids=["head", "trailers", "trailer", "chunk extension"],
)
async def test_what_is_no_body_may_not_go_on_for_ever(start: bytes, again: bytes) -> None:
    """64 KiB of it end the connection, which leaves the event loop free for others."""
    async with _pool_of([start, *itertools.repeat(again, 10_000)]) as (pool, provider):
        with pytest.raises(ConnectionBroken, match="more than 65536 bytes of headers"):
            await _read(await _send(pool))
        await provider.relay_left()
        assert provider.sent_bytes < 10_000_000


async def test_the_bound_of_what_is_no_body_is_not_one_of_the_body() -> None:
    """It counts anew behind each piece: a long answer of tiny chunks has more of it in all."""
    piece = chunked(b"x" * 10) * 100
    async with _pool_of([CHUNKED_HEAD, *[piece] * 500, b"0\r\n\r\n"]) as (pool, _):
        assert len(await _exchange(pool)) == 500_000


@pytest.mark.parametrize("how", [Break.CLOSE, Break.RESET])
@pytest.mark.parametrize("head", [CHUNKED_HEAD + b"5\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"])
async def test_a_cut_body_is_pushed_as_far_as_it_came(head: bytes, how: Break) -> None:
    """Then comes the error, once."""
    go = asyncio.Event()
    pushed: list[bytes] = []
    ended = asyncio.get_running_loop().create_future()
    async with _pool_of([head + b"hel", go, how]) as (pool, _):
        (await _send(pool)).start(pushed.append, ended.set_result)
        await until(lambda: pushed)
        go.set()
        assert isinstance(await asyncio.wait_for(ended, PATIENCE_S), ConnectionBroken)
    assert pushed == [b"hel"]


async def test_one_read_is_one_piece() -> None:
    """However many chunks of HTTP it held; and no read is larger than the cap."""
    events = [b"data: %d\n\n" % n for n in range(50)]
    large = b"x" * (1 << 20)
    go = asyncio.Event()
    pushed: list[bytes] = []
    ended = asyncio.get_running_loop().create_future()
    async with _pool_of([CHUNKED_HEAD, go, chunked(*events), chunked(large) + b"0\r\n\r\n"]) as (pool, _):
        (await _send(pool)).start(pushed.append, ended.set_result)
        go.set()
        assert await asyncio.wait_for(ended, PATIENCE_S) is None
    assert b"".join(pushed) == b"".join(events) + large
    assert pushed[0].startswith(b"".join(events))
    assert max(map(len, pushed)) <= READ_BYTES


async def test_a_paused_response_stops_the_provider() -> None:
    """What is unread stays bounded, before `start` as well as after a pause; nothing is lost by it."""
    size, half = 24 << 20, 1 << 20
    steps = [b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size, *[b"x" * 65_536] * (size >> 16)]
    async with _pool_of(steps) as (pool, provider):
        response = await _send(pool)
        await _stopped(provider)
        assert provider.sent_bytes < size
        body = bytearray()

        def on_chunk(data: bytes) -> None:
            body.extend(data)
            if len(body) - len(data) < half <= len(body):
                response.pause_reading()

        ended = asyncio.get_running_loop().create_future()
        response.start(on_chunk, ended.set_result)
        await until(lambda: len(body) >= half)
        await _stopped(provider)
        assert len(body) < half + READ_BYTES
        assert provider.sent_bytes < size
        response.resume_reading()
        assert await asyncio.wait_for(ended, PATIENCE_S) is None
        assert len(body) == size


async def _stopped(provider: PlayedProvider) -> None:
    before = -1
    while provider.sent_bytes != before:
        before = provider.sent_bytes
        await asyncio.sleep(0.05)


async def test_a_reader_that_fails_ends_the_body_with_its_error() -> None:
    """It is pushed nothing more, and is told once."""
    pushed: list[bytes] = []
    ends: list[Exception | None] = []
    go = asyncio.Event()
    bug = ZeroDivisionError()

    def on_chunk(data: bytes) -> None:
        pushed.append(data)
        raise bug

    async with _pool_of([CHUNKED_HEAD + b"2\r\nhi\r\n", go, b"2\r\nho\r\n0\r\n\r\n"]) as (pool, provider):
        response = await _send(pool)
        response.start(on_chunk, ends.append)
        await until(lambda: ends)
        go.set()
        await _stopped(provider)
        response.close()
    assert (pushed, ends) == ([b"hi"], [bug])


async def test_a_body_is_read_as_far_as_asked() -> None:
    """The rest is not read, and its connection is cut with it."""
    async with _pool_of([b"HTTP/1.1 500 X\r\nContent-Length: 9000000\r\n\r\n", b"x" * 9_000_000]) as (
        pool,
        provider,
    ):
        response = await _send(pool)
        assert await _read(response, 1000) == b"x" * 1000
        response.close()
        await provider.relay_left()
        assert provider.sent_bytes < 9_000_000


# Reuse.


async def test_a_connection_serves_again_after_a_whole_body() -> None:
    """Closing a response twice gives it back once."""
    async with _pool_of([_HI]) as (pool, provider):
        for _ in range(3):
            response = await _send(pool)
            assert await _read(response) == b"hi"
            response.close()
            response.close()
            assert not pool.is_closed
        assert provider.connections == 1


@pytest.mark.parametrize(
    "sent",
    [
        _HI.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"),
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        _HI + _HI.replace(b"hi", b"no"),
        _HI + b"garbage",
    ],
    ids=["close", "HTTP/1.0", "second response", "garbage"],
)
async def test_a_connection_that_cannot_be_trusted_is_not_used_again(sent: bytes) -> None:
    """The response itself is whole, and nothing glued to it is part of it."""
    async with _pool_of([sent]) as (pool, provider):
        for _ in range(2):
            assert await _exchange(pool) == b"hi"
        assert provider.connections == 2


async def test_bytes_that_were_not_asked_for_end_an_idle_connection() -> None:
    """They could be taken for the next response."""
    go = asyncio.Event()
    async with _pool_of([_HI, go, _HI]) as (pool, provider):
        assert await _exchange(pool) == b"hi"
        assert not pool.is_closed
        go.set()
        await until(lambda: pool.is_closed)
        assert await _exchange(pool) == b"hi"
        assert provider.connections == 2


async def test_a_connection_whose_body_was_never_read_serves_again() -> None:
    """The read that ended it brought more than is kept unread, and so had paused the connection."""
    size = READ_BYTES + 100
    large = b"HTTP/1.1 429 X\r\nContent-Length: %d\r\n\r\n" % size + b"x" * size
    async with _pool_of([large], [_HI]) as (pool, provider):
        response = await _send(pool)
        await asyncio.sleep(0.05)
        response.close()
        assert await _exchange(pool) == b"hi"
        assert provider.connections == 1


async def test_a_kept_connection_that_the_provider_closed_is_replaced() -> None:
    """The end is seen before the request is written, which could not be sent again."""
    async with _pool_of([_HI, Break.CLOSE]) as (pool, provider):
        for _ in range(5):
            assert await _exchange(pool) == b"hi"
        assert len(provider.requests) == 5


async def test_an_idle_connection_is_closed_in_time() -> None:
    """It leaves before providers and their proxies close it; one in use stays."""
    go = asyncio.Event()
    slow: list[Step] = [CHUNKED_HEAD, go, b"2\r\nhi\r\n0\r\n\r\n"]
    async with _pool_of([_HI], slow, idle_timeout_s=0.3) as (pool, provider):
        await _exchange(pool)
        response = await _send(pool)
        asyncio.get_running_loop().call_later(0.6, go.set)
        assert await _read(response) == b"hi"
        response.close()
        await until(lambda: pool.is_closed)
        await provider.relay_left()


async def test_idle_connections_are_bounded() -> None:
    """Those beyond the bound are closed when their response ends."""
    async with _pool_of([_HI], max_idle=2) as (pool, provider):
        responses = [await _send(pool) for _ in range(4)]
        for response in responses:
            await _read(response)
            response.close()
        await provider.relay_left()
        await provider.relay_left()
        kept = [await _send(pool) for _ in range(2)]
        assert provider.connections == 4
        for response in kept:
            response.close()


async def test_closing_an_unfinished_response_cuts_its_connection() -> None:
    """The provider sees at once that it may stop."""
    async with _pool_of([CHUNKED_HEAD + b"5\r\nhello\r\n", Break.WAIT]) as (pool, provider):
        (await _send(pool)).close()
        await provider.relay_left()


async def test_cancelling_a_wait_for_the_head_cuts_the_connection() -> None:
    """A client that leaves before the headers frees the provider."""
    async with _pool_of([Break.WAIT]) as (pool, provider):
        sending = asyncio.create_task(_send(pool))
        await until(lambda: provider.requests)
        sending.cancel()
        await asyncio.wait((sending,))
        await provider.relay_left()


@pytest.mark.parametrize("ends", [True, False])
async def test_the_end_of_a_body_may_linger_for_a_while(ends: bool) -> None:  # noqa: FBT001 - a parameter
    """What still comes is dropped; the connection serves again if the end came in time, else it is cut."""
    go = asyncio.Event()
    pushed: list[bytes] = []
    async with _pool_of([CHUNKED_HEAD + b"5\r\nhello\r\n", go, b"3\r\nend\r\n0\r\n\r\n"], [_HI]) as (
        pool,
        provider,
    ):
        response = await _send(pool)
        response.start(pushed.append, lambda _error: pytest.fail("a closed response was told of its end"))
        await until(lambda: pushed)
        response.close(linger_s=PATIENCE_S if ends else 0.05)
        if ends:
            go.set()
            await until(lambda: response.ended)
            assert await _exchange(pool) == b"hi"
        else:
            await until(lambda: provider.connections)
            await asyncio.sleep(0.1)
            go.set()
            await provider.relay_left()
        assert (pushed, provider.connections) == ([b"hello"], 1)


async def test_closing_the_pool_cuts_every_connection() -> None:
    """Idle ones and those in use; a wait for a response ends with an error."""
    async with _pool_of([_HI], [Break.WAIT]) as (pool, provider):
        first = await _send(pool)
        second = asyncio.create_task(_send(pool))
        await _read(first)
        # Only now: else the second request may use the first one's connection.
        await until(lambda: len(provider.requests) == 2)
        first.close()
        await pool.close()
        with pytest.raises(ConnectionBroken):
            await second
        await provider.relay_left()
        await provider.relay_left()


# TLS.


@pytest.mark.parametrize("slow", [False, True], ids=["read at once", "read late"])
async def test_over_tls_nothing_is_lost_that_came_before_the_end(tmp_path: Path, *, slow: bool) -> None:
    """The provider closes right behind a large answer: all of it arrives, also for a late reader."""
    size = 200_000
    head = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: %d\r\n\r\n" % size
    steps: list[Step] = [head + b"x" * size, Break.CLOSE]
    async with _pool_of(steps, authority=Authority(tmp_path)) as (pool, _):
        for _ in range(10):
            response = await _send(pool)
            if slow:
                await asyncio.sleep(0.05)
            assert len(await _read(response)) == size
            response.close()


async def test_over_tls_a_connection_serves_again(tmp_path: Path) -> None:
    """The handshake is done once."""
    async with _pool_of([_HI], authority=Authority(tmp_path)) as (pool, provider):
        assert [await _exchange(pool) for _ in range(3)] == [b"hi"] * 3
        assert provider.connections == 1


async def test_a_certificate_that_is_not_trusted_is_unreachable(tmp_path: Path) -> None:
    """The sentence says why; nothing was sent."""
    async with _pool_of([_HI], authority=Authority(tmp_path)) as (pool, provider):
        stranger = Pool(
            Dialer(Origin(HOST, provider.port, ssl.create_default_context()), timeout_s=PATIENCE_S)
        )
        with pytest.raises(Unreachable, match="its certificate is not trusted"):
            await _send(stranger)
        await stranger.close()
        assert provider.requests == []
        assert await _exchange(pool) == b"hi"


# Addresses.


class _Lookups:
    """Stands in for the system's resolver: after a while every name is this machine, unless it fails."""

    def __init__(self, *errors: OSError) -> None:
        self.names: list[str] = []
        self.errors = list(errors)
        self.go = asyncio.Event()

    async def getaddrinfo(self, host: str, port: int, **_options: object) -> list[Any]:
        """Return an address when the test says so."""
        self.names.append(host)
        await self.go.wait()
        if self.errors:
            raise self.errors.pop()
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (HOST, port))]


async def test_many_connections_at_once_look_a_name_up_once() -> None:
    """One that gives up leaves the lookup to the others; its result serves for a while."""
    lookups = _Lookups()
    resolver = Resolver(lookups.getaddrinfo)
    async with _pool_of([_HI], host="provider.test", resolver=resolver) as (pool, _):
        sending = [asyncio.create_task(_send(pool)) for _ in range(50)]
        await until(lambda: lookups.names)
        sending[0].cancel()
        await asyncio.wait(sending[:1])
        lookups.go.set()
        responses = await asyncio.gather(*sending[1:])
        assert [await _read(response) for response in responses] == [b"hi"] * 49
        await _send(pool)
    assert lookups.names == ["provider.test"]


async def test_a_result_of_a_lookup_grows_old() -> None:
    """After its time the name is looked up again."""
    lookups = _Lookups()
    lookups.go.set()
    resolver = Resolver(lookups.getaddrinfo, ttl_s=0.05)
    async with _pool_of([_HI], host="provider.test", resolver=resolver) as (pool, _):
        async with asyncio.timeout(PATIENCE_S):
            while len(lookups.names) < 2:
                await _send(pool)


async def test_a_failed_lookup_is_told_to_all_and_not_kept() -> None:
    """The next request asks again."""
    lookups = _Lookups(socket.gaierror(-2, "Name or service not known"))
    resolver = Resolver(lookups.getaddrinfo)
    async with _pool_of([_HI], host="provider.test", resolver=resolver) as (pool, _):
        sending = [asyncio.create_task(_send(pool)) for _ in range(3)]
        await until(lambda: lookups.names)
        lookups.go.set()
        failures = await asyncio.gather(*sending, return_exceptions=True)
        assert [str(failure) for failure in failures] == ["Name or service not known"] * 3
        assert all(isinstance(failure, Unreachable) for failure in failures)
        assert await _exchange(pool) == b"hi"


async def test_a_lookup_that_hangs_ends_in_time_and_with_the_pool() -> None:
    """It counts as part of connecting; no task is left behind."""
    resolver = Resolver(_Lookups().getaddrinfo)
    async with _pool_of(host="provider.test", resolver=resolver, timeout_s=0.05) as (pool, _):
        with pytest.raises(Unreachable, match=r"no connection within 0\.05 s"):
            await _send(pool)


async def test_a_numeric_address_is_never_looked_up() -> None:
    """There is nothing to find out, in either family."""
    lookups = _Lookups()
    resolver = Resolver(lookups.getaddrinfo)
    found = [(await resolver.resolve(host, 80))[0][4] for host in (HOST, "::1")]
    assert found == [(HOST, 80), ("::1", 80, 0, 0)]
    assert lookups.names == []


async def test_a_refused_connection_says_so() -> None:
    """In the system's words, without the address."""
    with socket.socket() as sock:
        # Bound and not listening: no other process can have the port.
        sock.bind((HOST, 0))
        pool = Pool(Dialer(Origin(HOST, sock.getsockname()[1], None), timeout_s=PATIENCE_S))
        with pytest.raises(Unreachable, match=r"^Connection refused$"):
            await _send(pool)
        await pool.close()


async def test_a_provider_that_never_accepts_is_given_up_in_time() -> None:
    """A full backlog swallows the attempt; the timeout ends it."""
    with ExitStack() as stack:
        sock = stack.enter_context(socket.socket())
        sock.bind((HOST, 0))
        sock.listen(0)
        for _ in range(4):
            filler = stack.enter_context(socket.socket())
            filler.setblocking(False)  # noqa: FBT003 - the standard library's signature
            filler.connect_ex(sock.getsockname())
        pool = Pool(Dialer(Origin(HOST, sock.getsockname()[1], None), timeout_s=0.2))
        with pytest.raises(Unreachable, match=r"no connection within 0\.2 s"):
            await _send(pool)
        await pool.close()


# What httpx2 sees.


async def test_a_request_of_httpx2_is_sent_as_it_was_built() -> None:
    """Target, headers and body arrive, with one length; its connection is told when it is there."""
    connected: list[int] = []
    async with running_provider([_HI]) as provider:
        transport = HttpTransport(Dialer(Origin(HOST, provider.port, None), timeout_s=PATIENCE_S))
        request = httpx2.Request(
            "POST",
            f"{provider.base_url}/chat?a=%20b",
            headers={b"X-Odd": "Ünïcode".encode("latin-1"), b"Content-Length": b"5"},
            content=b"hello",
            extensions={ON_CONNECTED: lambda: connected.append(len(provider.requests))},
        )
        response = await transport.handle_async_request(request)
        assert (response.status_code, await incoming(response).read(_ALL)) == (200, b"hi")
        await response.aclose()
        await transport.aclose()
    head, _, body = provider.requests[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/chat?a=%20b HTTP/1.1\r\n")
    assert head.lower().count(b"content-length: 5") == 1
    assert f"\r\nHost: {HOST}:{provider.port}".encode() in head
    assert "\r\nX-Odd: Ünïcode".encode("latin-1") in head
    assert body == b"hello"
    assert connected == [0]
