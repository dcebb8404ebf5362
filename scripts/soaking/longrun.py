"""What only many repetitions show."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from pathlib import Path

from soaking.row import Row, Seen
from tests.e2e.daemon import KEY
from tests.support.restarts import restarted
from tests.support.siege import Usage, besieged, provider
from tests.wire import Wire, body, post

_QUICK = "demo:text=words,deltas=5,interval_ms=0,first_ms=0"
_MIB = 1024
_MAX_GROWTH_MIB = 2
_CELL = re.compile(r"times, p50 [0-9.]+ ms, max ([0-9.]+) ms")
"""As tests/e2e/test_leaving.py says it."""


async def streams(home: Path, size: float) -> Seen:
    """100,000 streams: memory after a tenth and after the last; descriptors back at base."""
    number = round(100_000 * size)
    with provider() as base_url, besieged(home, base_url) as daemon:
        base = Usage.of(daemon.pid)
        wrong = await _many(daemon.port, number // 10)
        early = Usage.of(daemon.pid)
        wrong += await _many(daemon.port, number - number // 10)
        late = Usage.of(daemon.pid)
        # Kept connections to the provider go after 15 s of idleness.
        await asyncio.sleep(20)
        end = Usage.of(daemon.pid)
    grown = (late.rss_kib - early.rss_kib) / _MIB
    return Seen(
        f"{number} streams, {wrong} not whole; memory {early.rss_kib / _MIB:.1f} MiB after a tenth,"
        f" {grown:+.1f} MiB after the last; descriptors {base.descriptors} before, {end.descriptors} after;"
        f" {(late.cpu_s - base.cpu_s) / number * 1000:.2f} ms of CPU a stream",
        held=not wrong and grown <= _MAX_GROWTH_MIB and end.descriptors <= base.descriptors + 1,
    )


async def _many(port: int, number: int) -> int:
    left, wrong = iter(range(number)), 0

    async def client() -> None:
        nonlocal wrong
        async with await Wire.open(port) as wire:
            for _ in left:
                wire.send(post(KEY, body(_QUICK)))
                reply = await wire.reply()
                wrong += reply.text != "The relay passes each delta "

    await asyncio.gather(*(client() for _ in range(20)))
    return wrong


async def restarts(home: Path, size: float) -> Seen:
    """20 restarts under load with a kept socket: no connection refused, every stream whole or typed."""
    times = max(1, round(20 * size))
    ends = await restarted(home, times)
    return Seen(f"{times} restarts; requests ended {dict(ends)}", held=set(ends) <= {"whole", "draining"})


async def leaving(home: Path, size: float) -> Seen:
    """Each phase and way in which a client can leave, 100 times: the provider is told within 100 ms."""
    rounds = max(1, round(100 * size))
    test = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider"),
        *(f"--basetemp={home / 'leaving'}", "tests/e2e/test_leaving.py"),
        env={**os.environ, "RELAYD_TEST_ROUNDS": str(rounds)},
        stdout=subprocess.PIPE,
    )
    said, _ = await test.communicate()
    cells = [float(most) for most in _CELL.findall(said.decode())]
    return Seen(
        f"{len(cells)} cells, {rounds} times each; the slowest took {max(cells, default=0):.1f} ms",
        held=test.returncode == 0,
    )


ROWS: tuple[Row, ...] = (streams, restarts, leaving)
