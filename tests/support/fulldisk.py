"""A daemon at work while the disk of its state is full, and what became of its log."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.daemon import KEY, Daemon
from tests.support.siege import Ordinary, besieged, fresh_address, ordinary
from tests.support.tmpfs import fill, small_disk
from tests.wire import DONE_BYTES, HOST, post

OVERFLOW = 5200
"""More requests than the log's queue holds: each has a start and an end, and 10,000 of these may wait."""
_DISK_MIB = 64
_PIPELINED = 50
_PATIENCE_S = 60.0


@dataclass(slots=True)
class Full:
    """What was seen."""

    streams: int = 0
    wrong: int = 0
    """Streams whose answers were not whole."""
    refused: int = 0
    """Requests that were refused for their body; they fill the queue at little cost."""
    was_full: bool = False
    """Whether the log could not be written until the last moment."""
    queued: int = 0
    """Entries that waited then."""
    lost: int = 0
    """Requests that the daemon says it lost."""
    told: int = 0
    """The same, by the log itself."""
    records: int = 0
    writes_after_s: float = 0.0
    """From the space's return until the log was written again."""
    caught_up_after_s: float = 0.0
    """The same, until nothing waited."""

    @property
    def exact(self) -> bool:
        """Whether every request has a record, or was counted as lost."""
        return self.records + self.lost == self.streams + self.refused and self.told == self.lost


async def filled(home: Path, base_url: str, for_s: float, clients: int) -> Full:
    """Serve so many clients for so long with a full disk, then without.

    Raises:
        CannotMount: see `small_disk`.
    """
    disk, seen = home / "disk", Full()
    with small_disk(disk, _DISK_MIB), besieged(home, base_url, {"state_dir": str(disk)}) as daemon:
        daemon.state_dir = disk
        _count(seen, await ordinary(daemon.port, clients, 1))
        ballast = disk / "ballast"
        fill(ballast)
        flood = asyncio.create_task(_refused(daemon.port, OVERFLOW), name="refused")
        ends = time.monotonic() + for_s
        while time.monotonic() < ends or not flood.done():
            _count(seen, await ordinary(daemon.port, clients, 1))
        seen.refused = await flood
        health = (await daemon.admin.status()).log
        seen.was_full, seen.queued = health.error is not None, health.queued
        ballast.unlink()
        await _recovered(daemon, seen)
        seen.lost = (await daemon.admin.status()).log.lost
        seen.records, seen.told = _on_disk(daemon)
    return seen


def _count(seen: Full, some: Ordinary) -> None:
    seen.streams += len(some.first_ms)
    seen.wrong += some.wrong


async def _refused(port: int, number: int) -> int:
    """So many requests whose body is no request, many at a time; returns how many had their 400."""
    request = post(KEY, b"{}", {"X-Forwarded-For": fresh_address()})
    reader, writer = await asyncio.open_connection(HOST, port)
    refused = 0
    try:
        for _ in range(number // _PIPELINED):
            writer.write(request * _PIPELINED)
            due = refused + _PIPELINED
            while refused < due:
                refused += (await reader.readuntil(DONE_BYTES)).startswith(b"HTTP/1.1 400 ")
    finally:
        writer.close()
    return refused


async def _recovered(daemon: Daemon, seen: Full) -> None:
    began = time.monotonic()
    async with asyncio.timeout(_PATIENCE_S):
        while True:
            health = (await daemon.admin.status()).log
            if health.error is None and not seen.writes_after_s:
                seen.writes_after_s = time.monotonic() - began
            if health.error is None and not health.queued:
                seen.caught_up_after_s = time.monotonic() - began
                return
            await asyncio.sleep(0.02)


def _on_disk(daemon: Daemon) -> tuple[int, int]:
    """Requests with a record, and requests that the log says were lost."""
    with closing(sqlite3.connect(f"file:{daemon.database}?mode=ro", uri=True)) as connection:
        (records,) = connection.execute("SELECT count(*) FROM requests").fetchone()
        (lost,) = connection.execute("SELECT coalesce(sum(count), 0) FROM lost").fetchone()
    return records, lost
