"""A client that leaves is noticed in every phase, whatever it left unread."""

from __future__ import annotations

import pytest

from relayd.state.records import Outcome
from tests.public.room import KEY, Room, public_room
from tests.wire import Wire, body, post


def _leave(wire: Wire, how: str) -> None:
    if how == "fin":
        wire.finish()
    elif how == "rst":
        wire.reset()
    else:
        wire.half_close()


async def _free(room: Room) -> None:
    assert await room.registry.wait_empty(5.0), "a place was never given back"


@pytest.mark.parametrize("how", ["fin", "rst", "half"])
async def test_leaving_with_half_a_body_frees_the_place(how: str) -> None:
    """Head, some of the body and the end arrive at once: the place is given back, the record closed."""
    async with public_room() as room:
        for n in range(20):
            async with await Wire.open(room.port) as wire:
                wire.send(post(KEY, body()[:10], length=1000))
                _leave(wire, how)
                record = await room.book.record(n)
                assert record.outcome is Outcome.CLIENT_CLOSED
        await _free(room)


@pytest.mark.parametrize("how", ["fin", "rst", "half"])
async def test_leaving_in_the_middle_of_the_body_frees_the_place(how: str) -> None:
    """The same when the server had already begun to wait for the rest."""
    async with public_room() as room:
        for n in range(20):
            async with await Wire.open(room.port) as wire:
                wire.send(post(KEY, body()[:10], length=1000))
                await room.admitted(n)
                _leave(wire, how)
                assert (await room.book.record(n)).outcome is Outcome.CLIENT_CLOSED
        await _free(room)


async def test_who_closed_only_one_side_sees_no_orderly_end() -> None:
    """A half-closed connection counts as left: its reply is cut, so that it cannot pass for whole."""
    async with public_room() as room, await Wire.open(room.port) as wire:
        wire.send(post(KEY, body("demo:text=words,deltas=100,interval_ms=20")))
        reply = await wire.head()
        await wire.first_piece(reply)
        wire.half_close()
        rest = await wire.ended()
        assert b"0\r\n\r\n" not in rest
        assert b'"done":true' not in rest
        assert (await room.book.record()).outcome is Outcome.CLIENT_CLOSED
        await room.demo.wait_closed(0)


async def test_who_closed_one_side_with_the_request_gets_no_empty_success() -> None:
    """Request and FIN arrive at once: nothing is answered rather than an empty 200."""
    async with public_room() as room:
        for n in range(20):
            async with await Wire.open(room.port) as wire:
                wire.send(post(KEY, body("demo:fault=stall_headers")))
                wire.half_close()
                assert await wire.ended() == b""
            assert (await room.book.record(n)).outcome is Outcome.CLIENT_CLOSED
        await _free(room)


async def test_who_left_before_the_body_was_looked_at_asks_nobody() -> None:
    """With `Expect: 100-continue` Tornado finds the connection gone by itself; nobody else would be told."""
    async with public_room() as room:
        for n in range(5):
            async with await Wire.open(room.port) as wire:
                wire.send(post(KEY, body("demo:fault=stall_headers"), {"Expect": "100-continue"}))
                wire.reset()
            assert (await room.book.record(n)).outcome is Outcome.CLIENT_CLOSED
        await _free(room)
