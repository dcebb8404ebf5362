"""What happens when descriptors or the disk run out, with the daemon at work."""

from __future__ import annotations

import asyncio
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path

import pytest

from tests.e2e.daemon import KEY, Daemon
from tests.support.siege import Usage, ask_one, besieged, fresh_address, ordinary, provider
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
            async with asyncio.timeout(5):
                assert (await ask_one(daemon.port, _QUICK, fresh_address())).status == 200
            async for _ in streaming.pieces(head):
                pass
            assert head.error is None
            assert len([line for line in head.lines if line["content"]]) == 31
        async with asyncio.timeout(1):
            assert (await ask_one(daemon.port, _QUICK, fresh_address())).status == 200


@contextmanager
def _small_disk(place: Path) -> Iterator[Path]:
    """A file system of 4 MiB."""
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m,mode=0700", "relayd-test", str(place)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.decode().strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


async def test_a_full_disk_stops_no_stream_and_loses_no_record(tmp_path: Path) -> None:
    """While it is full, answers are whole and the log waits; a second after, all of it is on disk."""
    disk = tmp_path / "disk"
    settings = {"state_dir": str(disk)}
    with _small_disk(disk), provider() as base_url, besieged(tmp_path, base_url, settings) as daemon:
        daemon.state_dir = disk
        await ordinary(daemon.port, 2, 1)
        ballast = disk / "ballast"
        _fill(ballast)
        seen = await ordinary(daemon.port, 20, 10)
        assert (len(seen.first_ms), seen.wrong) == (200, 0)
        assert await _log_error(daemon) is not None
        ballast.unlink()
        async with asyncio.timeout(3):
            while await _log_error(daemon) is not None:  # noqa: ASYNC110 - the daemon announces it nowhere
                await asyncio.sleep(0.05)
        await until(lambda: len(daemon.records()) == 202)
        assert (await daemon.admin.status()).log.lost == 0


async def _log_error(daemon: Daemon) -> str | None:
    return (await daemon.admin.status()).log.error


def _fill(ballast: Path) -> None:
    """Take every free block."""
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            while True:
                try:
                    file.write(b"x" * size)
                except OSError:
                    break
    assert os.statvfs(ballast).f_bavail == 0
