"""A client that leaves, at any phase and in any way, ends its request at the provider.

Each combination 100 times, each held to 100 ms less what others on the machine took; `-rA` shows the figures.
tests/public/test_disconnect.py has each once, without a process of its own.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import product
from pathlib import Path

import pytest

from relayd.state.reader import MAX_ROWS
from relayd.state.records import Outcome, Phase, RequestRecord
from tests.e2e.daemon import KEY, PROVIDER_KEY, Daemon
from tests.support.upstream import FaultUpstream
from tests.wire import Wire, body, post, until

_ROUNDS, _LIMIT_S = 100, 0.1
_PHASES = {
    "before headers": "fault=stall_headers",
    "before the first token": "fault=stall_first",
    "in a silence": "fault=stall_mid,interval_ms=0",
    "mid-stream": "deltas=10000,interval_ms=20",
}
_WAYS: dict[str, Callable[[Wire], None]] = {
    "FIN": Wire.finish,
    "RST": Wire.reset,
    "half-close": Wire.half_close,
}
_UNREAD = {
    "nothing": b"",
    "a line end": b"\r\n",
    "a pipelined request": post(KEY, body("demo:deltas=1")),
}


@asynccontextmanager
async def _relay(home: Path) -> AsyncIterator[tuple[Daemon, FaultUpstream]]:
    async with FaultUpstream(PROVIDER_KEY) as demo:
        settings = {"upstream.base_url": demo.base_url, "upstream.max_retries": 0}
        with Daemon(home, settings=settings) as daemon:
            yield daemon, demo


async def _leave(
    daemon: Daemon, demo: FaultUpstream, script: str, unread: bytes, leave: Callable[[Wire], None]
) -> float:
    """Ask and leave; return after how many seconds the provider's connection was closed."""
    n = demo.total_requests
    async with await Wire.open(daemon.port) as wire:
        wire.send(post(KEY, body(f"demo:{script}")) + unread)
        seen = await demo.wait_request(n)
        if "stall_headers" not in script:
            await until(lambda: seen.head_at is not None)
        if "stall" not in script or "stall_mid" in script:
            await wire.first_piece(await wire.head())
        left_at, waited_s = time.monotonic(), _waited_s(daemon)
        leave(wire)
        await demo.wait_closed(n)
        assert seen.closed_by_client_at is not None
        return seen.closed_by_client_at - left_at - (_waited_s(daemon) - waited_s)


@pytest.mark.usefixtures("only_large")
@pytest.mark.timeout(seconds=900)
async def test_the_provider_is_told_at_once(tmp_path: Path) -> None:
    """In each phase, by FIN, RST or half-close, with nothing unread, or with unread bytes."""
    async with _relay(tmp_path) as (daemon, demo):
        for phase, way, left_over in product(_PHASES, _WAYS, _UNREAD):
            unread, leave = _UNREAD[left_over], _WAYS[way]
            took = [await _leave(daemon, demo, _PHASES[phase], unread, leave) for _ in range(_ROUNDS)]
            _judge(f"{phase}, {way}, {left_over} unread", took)
        asked = len(_PHASES) * len(_WAYS) * len(_UNREAD) * _ROUNDS
        assert demo.total_requests == asked, "a pipelined request of a client that left was served"
        for way, leave in _WAYS.items():
            took = [await _leave_blocked(daemon, demo, leave) for _ in range(_ROUNDS)]
            _judge(f"while the relay waits for the client, {way}", took)
        asked += len(_WAYS) * _ROUNDS
        await until(lambda: sum(record.model is not None for record in _records(daemon)) == asked)
        await until(lambda: all(record.phase is Phase.DONE for record in _records(daemon)))
        assert {record.outcome for record in _records(daemon)} == {Outcome.CLIENT_CLOSED}
        assert "Traceback" not in daemon.stderr


def _waited_s(daemon: Daemon) -> float:
    """Return for how long the daemon and this process were ready to run and did not (proc(5), schedstat)."""
    files = [Path(f"/proc/{pid}/schedstat") for pid in (os.getpid(), daemon.pid)]
    return sum(int(file.read_text().split()[1]) for file in files) / 1e9


def _records(daemon: Daemon) -> list[RequestRecord]:
    found = daemon.records()
    assert len(found) < MAX_ROWS
    return found


async def _leave_blocked(daemon: Daemon, demo: FaultUpstream, leave: Callable[[Wire], None]) -> float:
    n = demo.total_requests
    async with await Wire.open(daemon.port, receive_buffer_bytes=4096) as wire:
        wire.pause()
        wire.send(post(KEY, body("demo:text=x200000,deltas=10000,interval_ms=0")))
        seen = await demo.wait_request(n)
        await until(_stands_still(lambda: seen.bytes_sent))
        left_at, waited_s = time.monotonic(), _waited_s(daemon)
        leave(wire)
        await demo.wait_closed(n)
        assert seen.closed_by_client_at is not None
        return seen.closed_by_client_at - left_at - (_waited_s(daemon) - waited_s)


def _stands_still(figure: Callable[[], int]) -> Callable[[], bool]:
    """Whether a figure that grew has not changed for 50 ms."""
    known, since = 0, time.monotonic()

    def still() -> bool:
        nonlocal known, since
        if figure() != known:
            known, since = figure(), time.monotonic()
        return known > 0 and time.monotonic() - since > 0.05

    return still


def _judge(cell: str, took: list[float]) -> None:
    ordered = sorted(took)
    middle, last = ordered[len(ordered) // 2] * 1000, ordered[-1] * 1000
    sys.stdout.write(f"{cell}: {len(took)} times, p50 {middle:.1f} ms, max {last:.1f} ms\n")
    assert ordered[-1] < _LIMIT_S, f"{cell}: {took}"
