"""Clients that read slowly or not at all: nothing is lost, nothing grows, no wait is endless."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from relayd.state.records import Outcome
from tests.harness import KEY, Relay, running_relay
from tests.wire import DONE, DONE_BYTES, HOST, PATIENCE_S, Wire, body, post, until

_ENDLESS = "demo:text=x20000,deltas=100000,interval_ms=0"
_SMALL_BYTES = 4096


@asynccontextmanager
async def _blocked(relay: Relay, model: str) -> AsyncIterator[Wire]:
    """Give a client that has asked, reads nothing, and is waited for."""
    async with await Wire.open(relay.port, receive_buffer_bytes=_SMALL_BYTES) as wire:
        wire.pause()
        wire.send(post(KEY, body(model)))
        await until(lambda: any(stream.blocked for stream in relay.server.streams))
        yield wire


async def test_a_client_that_stalls_and_reads_on_loses_nothing() -> None:
    """Of a line that the kernel takes in parts; each chunk is whole lines, and the record tells the time."""
    async with running_relay() as relay:
        async with _blocked(relay, "demo:text=x100000,deltas=40,interval_ms=0") as wire:
            await asyncio.sleep(0.5)
            wire.resume()
            reply = await wire.reply()
        record = await relay.record()
    assert (reply.error, len(reply.text), reply.lines[-1]) == (None, 40 * 100_000, DONE)
    assert all(data.endswith(b"\n") for _, data in reply.pieces)
    assert (record.outcome, record.bytes_out) == (Outcome.COMPLETED, len(reply.body))
    assert record.duration_ms is not None
    assert 400 <= record.stalled_ms <= record.duration_ms


async def test_a_client_that_does_not_read_pauses_the_provider() -> None:
    """What it does not take is not fetched: a few buffers' worth, however long the answer is."""
    async with running_relay() as relay, _blocked(relay, _ENDLESS):
        (seen,) = relay.upstream.requests
        sent = -1
        while sent != seen.bytes_sent:
            sent = seen.bytes_sent
            await asyncio.sleep(0.3)
        assert sent < 16 << 20
        assert not seen.ended


@pytest.mark.parametrize("heartbeat_s", [0.05, 10.0])
async def test_a_client_that_stalls_for_too_long_is_reset(heartbeat_s: float) -> None:
    """Also while heartbeats would be due; what the kernel held for it is freed, and the provider let go."""
    async with (
        running_relay(server__write_timeout_s=0.3, chat__heartbeat_s=heartbeat_s) as relay,
        _blocked(relay, _ENDLESS) as wire,
    ):
        record = await relay.record()
        assert (record.outcome, record.status, record.error) == (Outcome.CLIENT_STALLED, 200, None)
        assert 290 <= record.stalled_ms <= (record.duration_ms or 0)
        await until(wire.lost)
        await relay.upstream.wait_closed(0)
        wire.resume()
        assert not (await wire.ended()).endswith(b"0\r\n\r\n")


async def test_a_stream_that_is_cancelled_while_its_client_stalls_ends_in_time() -> None:
    """The last lines have the write timeout, no more; the cause stays the cause."""
    async with running_relay(server__write_timeout_s=0.3) as relay, _blocked(relay, _ENDLESS):
        (stream,) = relay.server.streams
        assert relay.server.streams.cancel(stream.record.id)
        await relay.upstream.wait_closed(0)
        assert (await relay.record()).outcome is Outcome.CANCELLED


async def test_the_last_lines_do_not_overtake_what_is_queued() -> None:
    """Not even if the client has just read all that the kernel had, so that there is room for them."""
    loop = asyncio.get_running_loop()
    async with running_relay() as relay:
        with socket.create_connection((HOST, relay.port)) as client:
            client.sendall(post(KEY, body(_ENDLESS), {"Connection": "close"}))
            client.settimeout(0)
            read = bytearray()

            def read_all() -> None:
                with suppress(BlockingIOError):
                    while data := client.recv(1 << 20):
                        read.extend(data)

            await until(lambda: any(stream.blocked for stream in relay.server.streams))
            (stream,) = relay.server.streams
            # In one turn of the loop, so that the relay has no time to send what is queued.
            loop.call_soon(read_all)
            assert relay.server.streams.cancel(stream.record.id)
            async with asyncio.timeout(PATIENCE_S):
                while data := await loop.sock_recv(client, 1 << 20):
                    read.extend(data)
        assert read.endswith(DONE_BYTES + b"\r\n0\r\n\r\n")
        assert (await relay.record()).outcome is Outcome.CANCELLED


async def test_a_client_that_leaves_while_it_is_waited_for_is_noticed() -> None:
    """Before the write timeout."""
    async with running_relay() as relay, _blocked(relay, _ENDLESS) as wire:
        wire.reset()
        await relay.upstream.wait_closed(0)
        record = await relay.record()
        assert record.outcome is Outcome.CLIENT_CLOSED
        assert record.stalled_ms < 29_000


async def test_a_client_that_pipelines_and_never_reads_is_dropped() -> None:
    """Refusals that it does not take end with its connection, after the write timeout."""
    async with (
        running_relay(server__write_timeout_s=0.2, send_buffer_bytes=_SMALL_BYTES) as relay,
        await Wire.open(relay.port, receive_buffer_bytes=_SMALL_BYTES) as wire,
    ):
        wire.pause()
        wire.send(post(KEY, b"{") * 500)
        await until(wire.lost)
        assert (await relay.ask("demo:deltas=1")).status == 200
