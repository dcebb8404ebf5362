"""What happens when descriptors or the disk run out, with the daemon at work."""

from __future__ import annotations

import asyncio
import resource
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from tests.e2e.daemon import KEY
from tests.support.fulldisk import OVERFLOW, filled
from tests.support.siege import Usage, ask_one, besieged, fresh_address, provider
from tests.support.tmpfs import CannotMount
from tests.wire import Wire, body, post, until

_QUICK = "demo:text=words,deltas=20,interval_ms=0,first_ms=0"


async def test_running_out_of_descriptors_is_survived(tmp_path: Path) -> None:
    """No spin and no end: open streams go on, silent connections make room, a new client is served."""
    with provider() as base_url, besieged(tmp_path, base_url, {"log.level": "warning"}) as daemon:
        async with AsyncExitStack() as stack:
            streaming = await stack.enter_async_context(await Wire.open(daemon.port))
            streaming.send(post(KEY, body("demo:text=words,deltas=30,interval_ms=100")))
            head = await streaming.head()
            limit = Usage.of(daemon.pid).descriptors + 40
            resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (limit, limit))
            for _ in range(200):
                await stack.enter_async_context(await Wire.open(daemon.port))
            await until(lambda: "accepting paused" in daemon.stderr)
            before = Usage.of(daemon.pid).cpu_s
            await asyncio.sleep(1)
            assert Usage.of(daemon.pid).cpu_s - before < 0.5, "it spins"
            async with asyncio.timeout(30):
                assert (await ask_one(daemon.port, _QUICK, fresh_address())).status == 200
            async for _ in streaming.pieces(head):
                pass
            assert head.error is None
            assert len([line for line in head.lines if line["content"]]) == 31
        async with asyncio.timeout(30):
            assert (await ask_one(daemon.port, _QUICK, fresh_address())).status == 200


async def test_a_full_disk_stops_no_stream_and_loses_no_request_uncounted(tmp_path: Path) -> None:
    """While it is full, answers are whole and the log waits; after it, each has its record or is counted."""
    with provider() as base_url:
        try:
            seen = await filled(tmp_path, base_url, 0, clients=5)
        except CannotMount as error:
            pytest.skip(f"cannot mount a tmpfs here: {error}")
    assert seen.was_full
    assert seen.wrong == 0
    # More came than may wait, so that there is a loss to be counted.
    assert (seen.refused, seen.lost > 0) == (OVERFLOW, True)
    assert (seen.records + seen.lost, seen.told) == (seen.streams + seen.refused, seen.lost)
