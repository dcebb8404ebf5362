"""What happens when descriptors or the disk run out, with the daemon at work."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
import time
from collections.abc import Iterator
from contextlib import AsyncExitStack, closing, contextmanager
from pathlib import Path

import pytest

from relayd.state.records import Outcome
from tests.e2e.daemon import KEY, Daemon
from tests.load.harness import (
    Usage,
    ask_as,
    fill,
    fresh_address,
    loaded_daemon,
    ordinary,
    report,
    small_disk,
)
from tests.wire import DONE_BYTES, HOST, PATIENCE_S, Wire, body, post, until

pytestmark = pytest.mark.usefixtures("only_large")

_PIPELINED = 500


async def test_running_out_of_descriptors_is_survived(tmp_path: Path) -> None:
    """The loop does not spin, an open stream is finished, and new clients are served when there is room."""
    with loaded_daemon(tmp_path) as daemon:
        async with AsyncExitStack() as stack:
            wire = await stack.enter_async_context(await Wire.open(daemon.port))
            wire.send(post(KEY, body("demo:text=words,deltas=30,interval_ms=100")))
            streaming = await wire.head()
            limit = Usage.of(daemon).descriptors + 40
            resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (limit, limit))
            for _ in range(200):
                await stack.enter_async_context(await Wire.open(daemon.port))
            await until(lambda: "accepting paused" in daemon.stderr)
            cpu_s, began_s = Usage.of(daemon).cpu_s, time.monotonic()
            await wire.rest(streaming)
            share = (Usage.of(daemon).cpu_s - cpu_s) / (time.monotonic() - began_s)
            report(f"without descriptors: {share:.0%} of a core")
            # A loop that spins takes all of a core.
            assert share < 0.5
        assert streaming.error is None
        assert len(streaming.lines) == 31
        assert (await ask_as(fresh_address(), daemon.port)).status == 200


@contextmanager
def _daemon_onsmall_disk(home: Path, mib: int) -> Iterator[tuple[Daemon, Path]]:
    with small_disk(home / "disk", mib) as disk, loaded_daemon(home, {"state_dir": str(disk)}) as daemon:
        daemon.state_dir = disk
        yield daemon, disk / "ballast"


@pytest.mark.timeout(seconds=600)
async def test_a_full_disk_stops_no_stream_and_loses_no_request_uncounted(tmp_path: Path) -> None:
    """While it is full, answers are whole and the log waits; after it, each has its record or is counted."""
    clients, rounds = 50, 60
    with _daemon_onsmall_disk(tmp_path, 64) as (daemon, ballast):
        assert (await ordinary(daemon.port, clients, 1)).wrong == 0
        fill(ballast)
        flood = asyncio.create_task(_refused_until_some_are_lost(daemon), name="refused requests")
        assert (await ordinary(daemon.port, clients, rounds)).wrong == 0
        refused = await flood
        await _log_error(daemon)
        ballast.unlink()
        health = (await daemon.admin.status()).log
        async with asyncio.timeout(60):
            while health.error or health.queued:
                await asyncio.sleep(0.02)
                health = (await daemon.admin.status()).log
        records, lost_by_log = _on_disk(daemon)
        report(f"full disk: {records} requests recorded, {health.lost} counted as lost")
    assert (records + health.lost, lost_by_log) == (clients * (1 + rounds) + refused, health.lost)


async def _log_error(daemon: Daemon) -> None:
    """Wait until the log could not be written, which is tried in groups."""
    async with asyncio.timeout(PATIENCE_S):
        while (await daemon.admin.status()).log.error is None:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.02)


async def _refused_until_some_are_lost(daemon: Daemon) -> int:
    """Send requests whose body is no request, many at a time, until more came than may wait; return how many.

    The log's file may have room for thousands of records when the disk is full.
    """
    request = post(KEY, b"{}", {"X-Forwarded-For": fresh_address()})
    reader, writer = await asyncio.open_connection(HOST, daemon.port)
    sent = 0
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not (await daemon.admin.status()).log.lost:
                writer.write(request * _PIPELINED)
                sent += _PIPELINED
                for _ in range(_PIPELINED):
                    assert (await reader.readuntil(DONE_BYTES)).startswith(b"HTTP/1.1 400 ")
    finally:
        writer.close()
    return sent


def _on_disk(daemon: Daemon) -> tuple[int, int]:
    """Return how many requests have a record, and how many the log says were lost."""
    with closing(sqlite3.connect(f"file:{daemon.database}?mode=ro", uri=True)) as connection:
        (records,) = connection.execute("SELECT count(*) FROM requests").fetchone()
        (lost,) = connection.execute("SELECT coalesce(sum(count), 0) FROM lost").fetchone()
    return records, lost


async def test_a_daemon_that_dies_while_the_disk_is_full_comes_back(tmp_path: Path) -> None:
    """The ring that is there is enough to serve by; what was left open is closed once there is space."""
    with _daemon_onsmall_disk(tmp_path, 16) as (daemon, ballast):
        async with await Wire.open(daemon.port) as wire:
            wire.send(post(KEY, body("demo:deltas=1000,interval_ms=100")))
            lost = await wire.head()
            await until(lambda: len(daemon.records()) == 1)
            fill(ballast)
            daemon.kill()
        daemon.start()
        asked = 0
        # The file of the WAL has some room that is used again.
        while (await daemon.admin.status()).log.error is None:
            assert (await ordinary(daemon.port, 50, 1)).wrong == 0
            asked += 50
        ballast.unlink()
        assert (await daemon.record(lost)).outcome is Outcome.CRASHED
        await until(lambda: len(daemon.records()) == 1 + asked)
