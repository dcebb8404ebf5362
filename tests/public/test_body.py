"""Request bodies over real sockets: how they may come, and what becomes of refused ones."""

from __future__ import annotations

import asyncio
import urllib.error
import urllib.request
from itertools import pairwise

import pytest

from relayd.public.handlers import MAX_DRAINED_BYTES
from relayd.state.records import Outcome
from tests.harness import KEY, running_relay
from tests.wire import DONE, DONE_BYTES, HOST, PATIENCE_S, Wire, body, post, post_chunked

_THREE = "demo:text=words,deltas=3,interval_ms=0"
_WORDS = "The relay passes "
_MIB = 1 << 20


@pytest.mark.parametrize("cuts", [(), (10,), tuple(range(1, 60))])
async def test_a_chunked_body_is_read(cuts: tuple[int, ...]) -> None:
    """A body without a length is a body, in one chunk or many."""
    payload = body(_THREE)
    edges = [0, *cuts, len(payload)]
    chunks = [payload[start:end] for start, end in pairwise(edges)]
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        wire.send(post_chunked(KEY, *chunks) + b"0\r\n\r\n")
        assert (await wire.reply()).text == _WORDS


@pytest.mark.parametrize("version", ["HTTP/1.1", "HTTP/1.0"])
async def test_an_expectation_is_met_before_the_body(version: str) -> None:
    """A client like curl is told to continue; HTTP/1.0 knows no interim response (RFC 9110, 10.1.1)."""
    payload = body(_THREE)
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        wire.send(post(KEY, b"", {"Expect": "100-continue"}, version=version, length=len(payload)))
        if version == "HTTP/1.1":
            assert (await wire.head()).status == 100
        wire.send(payload)
        assert (await wire.reply()).text == _WORDS


async def test_a_refused_client_that_waits_to_continue_need_not_send() -> None:
    """It gets its answer in place of the interim response, and the connection ends."""
    async with running_relay(server__max_body_bytes=1000) as relay:
        for n, (key, length, status) in enumerate((("wrong", 100, 401), (KEY, 1001, 413))):
            async with await Wire.open(relay.port) as wire:
                wire.send(post(key, b"", {"Expect": "100-continue"}, length=length))
                reply = await wire.reply()
                assert reply.status == status
                assert reply.lines[-1] == DONE
                assert await wire.ended() == b""
            assert (await relay.record(n)).status == status


async def test_a_body_of_just_the_limit_is_read() -> None:
    """The limit is the limit, with a length and without."""
    payload = body(_THREE)
    async with (
        running_relay(server__max_body_bytes=len(payload)) as relay,
        await Wire.open(relay.port) as wire,
    ):
        for sent in (post(KEY, payload), post_chunked(KEY, payload) + b"0\r\n\r\n"):
            wire.send(sent)
            assert (await wire.reply()).text == _WORDS
        wire.send(post(KEY, payload + b" "))
        reply = await wire.reply()
    assert reply.status == 413
    assert reply.error == f"too_large: The body may have at most {len(payload)} bytes."
    assert reply.header("X-Relayd-Error") == "too_large"
    assert reply.lines[-1] == DONE


async def test_a_chunked_body_is_refused_as_soon_as_it_is_too_large() -> None:
    """Without a length the size shows only on the way: 413 comes before all of it is read, and once."""
    async with running_relay(server__max_body_bytes=1000) as relay, await Wire.open(relay.port) as wire:
        wire.send(post_chunked(KEY, b" " * 600, b" " * 600, headers={"Expect": "100-continue"}))
        assert (await wire.head()).status == 100
        assert (await wire.reply()).status == 413
        record = await relay.record()
        assert record.error is not None
        assert (record.outcome, record.error.code) == (Outcome.REJECTED, "too_large")
        wire.send(b"1\r\n \r\n0\r\n\r\n" + post(KEY, body(_THREE)))
        assert (await wire.reply()).text == _WORDS, "the rest is dropped, and the connection goes on"
        assert len(relay.records) <= 2


@pytest.mark.parametrize(("key", "status"), [(KEY, 413), ("wrong", 401)])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_refused_upload_is_drained_so_that_its_client_reads_the_answer(
    key: str,
    status: int,
    chunked: bool,  # noqa: FBT001 - the example
) -> None:
    """A client that sends 8 MiB before it reads gets its answer, no reset, and its connection stays."""
    data = b" " * (8 * _MIB)
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        wire.send(post_chunked(key, data) + b"0\r\n\r\n" if chunked else post(key, data))
        await wire.drained()
        reply = await wire.reply()
        assert reply.status == status
        assert reply.lines[-1] == DONE
        wire.send(post(KEY, body(_THREE)))
        assert (await wire.reply()).text == _WORDS
        assert relay.upstream.total_requests == 1


@pytest.mark.parametrize(
    ("path", "method", "key", "status"),
    [
        ("/chat", "POST", KEY, 413),
        ("/chat", "POST", "wrong", 401),
        ("/chats", "POST", KEY, 404),
        ("/chat", "PUT", KEY, 405),
    ],
)
async def test_urllib_reads_the_answer_to_a_refused_upload(
    path: str, method: str, key: str, status: int
) -> None:
    """Python's standard client sends all of the body first, and reports a reset as no answer."""
    async with running_relay() as relay:
        url = f"http://{HOST}:{relay.port}{path}"
        request = urllib.request.Request(
            url, data=b" " * (8 * _MIB), headers={"Authorization": key}, method=method
        )

        def upload() -> tuple[int, bytes]:
            with pytest.raises(urllib.error.HTTPError) as refused:
                urllib.request.urlopen(request, timeout=PATIENCE_S)  # noqa: S310 - its scheme is http
            with refused.value as reply:
                return reply.code, reply.read()

        code, content = await asyncio.to_thread(upload)
    assert code == status
    assert (DONE_BYTES in content) == (path == "/chat" and method == "POST")


@pytest.mark.parametrize("chunked", [False, True])
async def test_more_than_32_mib_are_not_drained(chunked: bool) -> None:  # noqa: FBT001 - the example
    """The rest of a refused upload is not worth reading; the connection ends."""
    size = 4 * MAX_DRAINED_BYTES
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        wire.send(
            post_chunked("wrong", b"x") + b"%x\r\n" % size if chunked else post("wrong", b"", length=size)
        )
        sent, piece = 0, b" " * _MIB
        while sent < size and not wire.lost():
            wire.send(piece)
            sent += len(piece)
            try:
                await wire.drained()
            except ConnectionError:
                break
        assert MAX_DRAINED_BYTES <= sent < 2 * MAX_DRAINED_BYTES
        assert (await relay.record()).outcome is Outcome.DENIED


async def test_a_body_above_32_mib_is_read_where_the_operator_allows_it() -> None:
    """The bound of refused bodies is none of admitted ones."""
    payload = body(_THREE, user="x" * (33 * _MIB))
    async with running_relay(server__max_body_bytes=40 * _MIB) as relay, await Wire.open(relay.port) as wire:
        wire.send(post(KEY, payload))
        reply = await wire.reply()
    assert (reply.status, reply.text) == (200, _WORDS)


@pytest.mark.parametrize(("key", "error"), [(KEY, "bad_request"), ("wrong", "unauthorized")])
async def test_a_body_in_tiny_pieces_is_cut(key: str, error: str) -> None:
    """Each costs everybody a turn of the event loop; a client without a key has no more of them."""
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        wire.send(post(key, b"", length=3000))
        reading = asyncio.create_task(wire.reply(), name="reply")
        sent = 0
        while not wire.lost():
            wire.send(b" ")
            sent += 1
            await asyncio.sleep(0.0005)
        assert 1024 < sent < 2000
        reply = await reading
        assert reply.header("X-Relayd-Error") == error
        assert reply.lines[-1] == DONE
        if key == KEY:
            assert reply.error == "bad_request: The body arrives in too many tiny pieces."
        assert b"HTTP" not in await wire.ended()
        assert (await relay.record()).status == reply.status


async def test_pieces_of_an_ordinary_network_are_not_tiny() -> None:
    """Two thousand of 64 bytes are read."""
    payload = body(_THREE, user="x" * (64 * 2000))
    chunks = [payload[start : start + 64] for start in range(0, len(payload), 64)]
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        wire.send(post_chunked(KEY, *chunks) + b"0\r\n\r\n")
        assert (await wire.reply()).text == _WORDS


@pytest.mark.parametrize("expects", [False, True])
async def test_a_slow_body_has_its_time(expects: bool) -> None:  # noqa: FBT001 - the example
    """A body that does not arrive is a bad request, and its slot is free again."""
    async with running_relay(server__body_timeout_s=1, server__max_streams=1) as relay:
        async with await Wire.open(relay.port) as wire:
            wire.send(post(KEY, b"", {"Expect": "100-continue"} if expects else {}, length=100))
            if expects:
                assert (await wire.head()).status == 100
            reply = await wire.reply()
            assert (reply.status, reply.lines[-1]) == (400, DONE)
            assert reply.error == "bad_request: The body did not arrive within 1 s."
            assert await wire.ended() == b""
        record = await relay.record()
        assert (record.outcome, record.status) == (Outcome.REJECTED, 400)
        assert record.duration_ms is not None
        assert record.duration_ms >= 990
        assert (await relay.ask(_THREE)).status == 200


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (post("wrong", b"x", length=1000), 401),
        (post(None, b"x", path="/nowhere", length=1000), None),
        (post(None, b"x", path="/healthz", length=100).replace(b"POST", b"GET", 1), None),
    ],
    ids=["refused", "no route", "another route"],
)
async def test_every_body_has_the_same_time(sent: bytes, status: int | None) -> None:
    """One that is dropped, too: nothing but a refusal comes before the end of the connection."""
    async with running_relay(server__body_timeout_s=0.3) as relay, await Wire.open(relay.port) as wire:
        wire.send(sent)
        if status is not None:
            assert (await wire.reply()).status == status
        assert await wire.ended() == b""
        assert len(relay.records) <= 1


async def test_the_time_of_a_body_ends_with_its_last_byte() -> None:
    """Neither a stream nor the next request of its connection is cut by it."""
    async with running_relay(server__body_timeout_s=1) as relay, await Wire.open(relay.port) as wire:
        for sent in (
            post(None, b"x" * 100_000, path="/healthz").replace(b"POST", b"GET", 1),
            post(KEY, b"{"),
        ):
            wire.send(sent)
            assert (await wire.reply()).status in {200, 400}
        wire.send(post(KEY, body("demo:text=words,deltas=3,interval_ms=700")))
        reply = await wire.reply()
        assert (reply.error, reply.text) == (None, _WORDS)
        assert (await relay.record(1)).outcome is Outcome.COMPLETED
