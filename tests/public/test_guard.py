"""Connections that say too much before they say who they are."""

from __future__ import annotations

import socket

import pytest

from relayd.public.guard import MAX_HEADER_BYTES
from relayd.state.records import Outcome
from tests.public.room import KEY, Setup, public_room
from tests.wire import DONE, Wire, body, post, until


@pytest.mark.parametrize("size", [MAX_HEADER_BYTES, 1 << 20])
@pytest.mark.parametrize("name", ["Authorization", "X-Filler"])
async def test_a_head_that_is_too_large_gets_the_answer_of_a_wrong_key(size: int, name: str) -> None:
    """Lines and header as for any wrong key; the connection ends, and is not reset before it was read."""
    async with public_room() as room:
        wrong = await room_refusal(room.port)
        async with await Wire.open(room.port) as wire:
            wire.send(post(KEY, body(), {name: "x" * size}))
            reply = await wire.reply()
            assert await wire.ended() == b""
    assert (reply.status, reply.body) == (401, wrong)
    assert reply.header("X-Relayd-Error") == "unauthorized"
    assert reply.header("Connection") == "close"
    assert reply.lines[-1] == DONE


async def room_refusal(port: int) -> bytes:
    """The body that a wrong key gets."""
    async with await Wire.open(port) as wire:
        wire.send(post("wrong", body()))
        return (await wire.reply()).body


async def test_a_head_of_just_the_size_is_read() -> None:
    """The limit is the limit."""
    async with public_room() as room, await Wire.open(room.port) as wire:
        request = post(KEY, b"", {"X-Filler": ""})
        filler = "x" * (MAX_HEADER_BYTES - len(request) - 10)
        wire.send(post(KEY, body("demo:deltas=1"), {"X-Filler": filler}))
        assert (await wire.reply()).status == 200


async def test_a_large_head_after_a_good_request_ends_the_connection_too() -> None:
    """Kept connections have the same bound."""
    async with public_room() as room, await Wire.open(room.port) as wire:
        wire.send(post(KEY, body("demo:deltas=1")))
        assert (await wire.reply()).status == 200
        wire.send(b"POST /chat HTTP/1.1\r\nX: " + b"x" * (1 << 20))
        assert (await wire.reply()).status == 401
        await until(wire.lost)


async def test_a_large_chunk_size_is_not_taken_for_a_large_head() -> None:
    """A chunked body that never says its size ends its connection, without a second answer."""
    head = post(KEY, b"", {"Transfer-Encoding": "chunked"}).replace(b"Content-Length: 0\r\n", b"")
    async with public_room() as room, await Wire.open(room.port) as wire:
        wire.send(head + b"0" * (1 << 20))
        assert b"401" not in await wire.ended()
        assert await room.registry.wait_empty(5)


async def test_lines_go_to_the_kernel_in_order_however_little_it_takes() -> None:
    """Parts that the kernel would not take wait, and what comes after them waits behind them."""
    setup = Setup(send_buffer_bytes=4096)
    async with public_room(setup) as room, await Wire.open(room.port, receive_buffer_bytes=4096) as wire:
        wire.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        wire.send(post(KEY, body("demo:text=x30000,deltas=40,interval_ms=0")))
        reply = await wire.reply()
    assert not reply.cut
    assert reply.text == "x" * 30000 * 40
    assert reply.lines[-1] == DONE


async def test_what_was_sent_ahead_of_a_refusal_is_not_looked_at() -> None:
    """A packet of hundreds of heads without a key is one refusal, one record, and a closed connection."""
    async with public_room() as room, await Wire.open(room.port) as wire:
        wire.send(post("wrong", b"") * 200)
        assert (await wire.ended()).count(b"HTTP/1.1 ") == 1
        await until(lambda: len(room.connections) == 0)
        assert [record.outcome for record in room.book.closed] == [Outcome.DENIED]


async def test_a_body_that_is_not_http_is_refused_in_lines() -> None:
    """Whatever its framing is, who sent it is told and recorded as one who sent something bad."""
    head = post(KEY, b"", {"Transfer-Encoding": "chunked"}).replace(b"Content-Length: 0\r\n", b"")
    for wrong in (b"0\r\nTrailer: x\r\n\r\n", b"zz\r\n", b"2\r\nabX\r\n"):
        async with public_room() as room, await Wire.open(room.port) as wire:
            wire.send(head + wrong)
            reply = await wire.reply()
            assert reply.status == 400
            assert reply.header("X-Relayd-Error") == "bad_request"
            assert reply.lines[-1] == DONE
            record = await room.book.record()
            assert (record.outcome, record.status) == (Outcome.REJECTED, 400)
            assert await room.registry.wait_empty(5)
