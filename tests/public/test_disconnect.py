"""A client that leaves is noticed at once, in every phase, whatever it left unread."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from functools import partial

import pytest

from relayd.public.disconnect import DisconnectWatcher
from relayd.state.records import Outcome, Phase, RequestRecord
from tests.harness import KEY, Relay, running_relay
from tests.wire import Wire, body, fetch, post, post_chunked, until

_WAYS: dict[str, Callable[[Wire], None]] = {
    "FIN": Wire.finish,
    "RST": Wire.reset,
    "half-close": Wire.half_close,
}
_QUICK = "demo:deltas=1"
_LIMIT_S = 0.1
_TRIES = 20
"""A machine busy with other tests may stand still for longer than the limit: one try must keep it."""


async def _left(relay: Relay, n: int) -> RequestRecord:
    """Return the record of a client that left, whose slot must be free: the relay has only one."""
    record = await relay.record(n)
    assert (record.outcome, record.phase, record.error) == (Outcome.CLIENT_CLOSED, Phase.DONE, None)
    assert (await relay.ask(_QUICK)).status == 200
    await relay.record(n + 1)
    return record


@pytest.mark.parametrize("way", _WAYS)
async def test_leaving_within_the_head_is_no_request(way: str) -> None:
    """There is nothing to record."""
    async with running_relay(server__max_streams=1) as relay:
        async with await Wire.open(relay.port) as wire:
            wire.send(post(KEY, body())[:40])
            _WAYS[way](wire)
            await until(wire.lost)
        assert (await relay.ask(_QUICK)).status == 200
        assert (await relay.record()).outcome is Outcome.COMPLETED


@pytest.mark.parametrize("expects", [False, True])
@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("way", _WAYS)
async def test_leaving_within_the_body_is_recorded(way: str, chunked: bool, expects: bool) -> None:  # noqa: FBT001 - the example
    """Nothing is asked of the provider, and the slot is free."""
    headers = {"Expect": "100-continue"} if expects else {}
    sent = post_chunked(KEY, body()[:10], headers=headers)
    if not chunked:
        sent = post(KEY, body()[:10], headers, length=1000)
    async with running_relay(server__max_streams=1) as relay:
        for n in range(0, 4, 2):
            async with await Wire.open(relay.port) as wire:
                wire.send(sent)
                if n:
                    # The relay waits for the rest; the first time, all came at once.
                    await until(lambda: wire.taken(len(sent)) == len(sent))
                _WAYS[way](wire)
                record = await _left(relay, n)
                assert (record.status, record.model) == (None, None)
        assert relay.upstream.total_requests == 2


@pytest.mark.parametrize("unread", [b"", b"\r\n", post(KEY, body(_QUICK))], ids=["", "CRLF", "pipelined"])
@pytest.mark.parametrize("fault", ["stall_headers", "stall_first", "stall_mid"])
@pytest.mark.parametrize("way", _WAYS)
async def test_leaving_ends_the_request_at_the_provider_at_once(way: str, fault: str, unread: bytes) -> None:
    """Before its headers, before its first word and in a silence: within 100 ms, whatever was pipelined."""
    async with running_relay(server__max_streams=1) as relay:
        delays_s = []
        for n in range(0, 2 * _TRIES, 2):
            async with await Wire.open(relay.port) as wire:
                wire.send(post(KEY, body(f"demo:fault={fault},interval_ms=0")) + unread)
                if fault == "stall_mid":
                    reply = await wire.head()
                    while len(reply.body) < 100:
                        await wire.first_piece(reply)
                else:
                    await relay.upstream.wait_request(n)
                left_at = time.monotonic()
                _WAYS[way](wire)
                seen = await relay.upstream.wait_closed(n)
                assert seen.closed_by_client_at is not None
                delays_s.append(seen.closed_by_client_at - left_at)
                record = await _left(relay, n)
                assert record.status == (200 if fault == "stall_mid" else None)
            if delays_s[-1] < _LIMIT_S:
                break
        assert min(delays_s) < _LIMIT_S


async def test_a_client_that_half_closed_sees_no_orderly_end() -> None:
    """It still reads; its reply is cut, so that it cannot pass for whole."""
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        await wire.begin(post(KEY, body("demo:text=words,deltas=100,interval_ms=20")))
        wire.half_close()
        rest = await wire.ended()
        assert b"0\r\n\r\n" not in rest
        assert b'"done":true' not in rest
        assert (await relay.record()).outcome is Outcome.CLIENT_CLOSED


async def test_a_request_that_comes_with_its_fin_gets_no_empty_success() -> None:
    """Nothing is answered rather than an empty 200."""
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        wire.send(post(KEY, body("demo:fault=stall_headers")))
        wire.half_close()
        assert await wire.ended() == b""
        assert (await relay.record()).outcome is Outcome.CLIENT_CLOSED


async def test_a_stream_does_not_end_with_another_client() -> None:
    """Descriptors of clients that left are used again, and their watches are not."""
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        wire.send(post(KEY, body("demo:text=words,deltas=9,interval_ms=50")))
        head = await wire.head()
        for _ in range(20):
            async with await Wire.open(relay.port) as other:
                other.send(post(KEY, body("demo:fault=stall_first")))
                other.reset()
            assert (await fetch(relay.port, "/healthz")).status == 200
        await wire.rest(head)
        assert (head.cut, head.error) == (False, None)
        assert head.text == "The relay passes each delta on as one line, "


async def test_a_departure_is_told_once_and_only_while_it_is_watched(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of many in one turn of the loop each is told, whatever the others' callbacks do."""
    watcher = DisconnectWatcher()
    pairs = [socket.socketpair() for _ in range(5)]
    told: list[int] = []
    ends: list[Callable[[], None]] = []

    def leave(n: int) -> None:
        told.append(n)
        if n == 0:
            # Its own departure is in the same turn.
            ends[1]()
        if n == 2:
            raise ZeroDivisionError("a bug")

    ends += [watcher.watch(mine, partial(leave, n)) for n, (mine, _) in enumerate(pairs)]
    ends[3]()
    for _, theirs in pairs:
        theirs.close()
    await until(lambda: 4 in told)
    assert told == [0, 2, 4]
    assert "ZeroDivisionError" in caplog.text
    for end in ends:
        end()
    for mine, _ in pairs:
        mine.close()
    watcher.close()


async def test_a_descriptor_that_is_used_again_has_a_watch_of_its_own() -> None:
    """The end of an old watch, after its socket was closed, does not end the new one."""
    watcher = DisconnectWatcher()
    told: list[str] = []
    mine, theirs = socket.socketpair()
    fileno = mine.fileno()
    end_old = watcher.watch(mine, lambda: told.append("old"))
    mine.close()
    theirs.close()
    mine, theirs = socket.socketpair()
    with mine, theirs:
        assert fileno in {mine.fileno(), theirs.fileno()}
        again, other = (mine, theirs) if mine.fileno() == fileno else (theirs, mine)
        watcher.watch(again, lambda: told.append("new"))
        end_old()
        other.shutdown(socket.SHUT_WR)
        await until(lambda: told)
    assert told == ["new"]
    watcher.close()
