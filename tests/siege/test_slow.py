"""Clients that never read, never finish their head, or never finish their body."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.support.siege import (
    SLOW_BODY,
    SLOW_BODY_WITHOUT_KEY,
    SLOW_HEAD,
    Usage,
    besieged,
    gone_after_s,
    ordinary,
    provider,
    resumed,
    slow,
    stuck_readers,
)
from tests.wire import until

_STUCK = 30


@pytest.mark.timeout(120)
async def test_clients_that_do_not_read_cost_little_and_disturb_nobody(tmp_path: Path) -> None:
    """Their memory is bounded, others lose no line, and who reads on gets all of it, exactly."""
    with provider() as base_url, besieged(tmp_path, base_url) as daemon:
        await ordinary(daemon.port, 10, 2)
        async with AsyncExitStack() as stack:
            before = Usage.of(daemon.pid)
            wires = await stuck_readers(stack, daemon.port, _STUCK)
            seen = await ordinary(daemon.port, 10, 3)
            assert (await daemon.admin.status()).streams.streaming == _STUCK
            after = Usage.of(daemon.pid)
            assert seen.wrong == 0
            # 64 MiB for a thousand, and what an allocator holds back whatever the number.
            assert after.rss_kib - before.rss_kib < 64 * 1024 * _STUCK // 1000 + 6 * 1024
            ends = Counter(await asyncio.gather(*map(resumed, wires)))
        assert ends == {"exact": _STUCK}


async def test_clients_that_never_read_are_given_up(tmp_path: Path) -> None:
    """After the write timeout their connection ends without an orderly end, and their record says why."""
    settings = {"server.write_timeout_s": 1}
    with provider() as base_url, besieged(tmp_path, base_url, settings) as daemon:
        async with AsyncExitStack() as stack:
            wires = await stuck_readers(stack, daemon.port, 10)
            # What the kernel holds for them comes before the connection's end, so only the log tells.
            await until(lambda: [r.outcome for r in daemon.records()] == ["client_stalled"] * 10)
            assert Counter(await asyncio.gather(*map(resumed, wires))) == {"cut": 10}


@pytest.mark.parametrize(
    ("start", "trickle"), [(SLOW_HEAD, b"x"), (SLOW_BODY, b" "), (SLOW_BODY_WITHOUT_KEY, b" ")]
)
async def test_clients_that_take_their_time_are_cut_in_time(
    tmp_path: Path, start: bytes, trickle: bytes
) -> None:
    """A byte now and then buys no time: the head has its time, the body has its own."""
    settings = {"server.header_timeout_s": 1, "server.body_timeout_s": 1}
    with provider() as base_url, besieged(tmp_path, base_url, settings) as daemon:
        before = Usage.of(daemon.pid)
        async with AsyncExitStack() as stack:
            wires = await slow(stack, daemon.port, 100, start)
            await gone_after_s(wires, trickle, 40)
        await until(lambda: Usage.of(daemon.pid).descriptors <= before.descriptors)
