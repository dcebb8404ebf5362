"""What a write to a client comes to: sent, waited for, or nobody there."""

from __future__ import annotations

import asyncio

import pytest

from relayd.relay.stream import StreamLimits
from relayd.state.records import Outcome
from tests.public.room import KEY, Setup, public_room
from tests.wire import DONE, DONE_BYTES, Wire, body, post, until

_NARROW = Setup(send_buffer_bytes=4096, write_timeout_s=0.3)
_FLOOD = "demo:text=x20000,deltas=200,interval_ms=0"
_ENDLESS = "demo:text=x20000,deltas=100000,interval_ms=0"


async def test_a_whole_answer_in_one_piece_is_one_reply() -> None:
    """An answer that comes at once has a length or chunks, and ends either way."""
    async with public_room() as room:
        reply = await room.ask("demo:text=words,deltas=2,interval_ms=0,fault=coalesced,batch=100")
    assert reply.text == "The relay "
    assert reply.body.endswith(DONE_BYTES)
    assert not reply.cut


async def test_a_client_that_stalls_and_reads_on_loses_nothing() -> None:
    """A pause shorter than the write timeout only takes its time, which the record tells."""
    async with public_room() as room, await Wire.open(room.port) as wire:
        wire.pause()
        wire.send(post(KEY, body(_FLOOD)))
        await until(lambda: any(stream.writing for stream in room.registry))
        await asyncio.sleep(0.1)
        wire.resume()
        reply = await wire.reply()
        record = await room.book.record()
    assert len(reply.text) == 20000 * 200
    assert reply.lines[-1] == DONE
    assert record.outcome is Outcome.COMPLETED
    assert record.stalled_ms > 0


@pytest.mark.parametrize("heartbeat_s", [0.05, 10.0])
async def test_a_client_that_stalls_for_too_long_is_cut(heartbeat_s: float) -> None:
    """Also while heartbeats would be due; what waited for it is freed."""
    setup = Setup(send_buffer_bytes=4096, write_timeout_s=0.3, limits=StreamLimits(heartbeat_s=heartbeat_s))
    async with public_room(setup) as room, await Wire.open(room.port, receive_buffer_bytes=4096) as wire:
        wire.pause()
        wire.send(post(KEY, body(_ENDLESS)))
        record = await room.book.record()
        assert (record.outcome, record.error) == (Outcome.CLIENT_STALLED, None)
        assert record.stalled_ms >= 300
        await until(wire.lost)
        await room.demo.wait_closed(0)


async def test_a_stream_that_is_ended_while_its_client_stalls_ends_in_time() -> None:
    """The last lines have the write timeout, no more; the cause stays the cause."""
    async with public_room(_NARROW) as room, await Wire.open(room.port, receive_buffer_bytes=4096) as wire:
        wire.pause()
        wire.send(post(KEY, body(_ENDLESS)))
        await until(lambda: any(stream.writing for stream in room.registry))
        room.registry.cancel(next(iter(room.registry)).record.id)
        await room.demo.wait_closed(0)
        record = await room.book.record()
        assert record.outcome is Outcome.CANCELLED


async def test_no_head_is_sent_before_there_is_something_to_say() -> None:
    """So that a failure can still have its status."""
    async with public_room() as room, await Wire.open(room.port) as wire:
        wire.send(post(KEY, body("demo:fault=stall_first")))
        await room.demo.wait_request(0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(wire.head(), 0.1)
