"""What happens when descriptors or the disk run out, with the daemon at work."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from relayd.state.records import Outcome
from tests.e2e.daemon import KEY
from tests.support.descriptors import exhausted
from tests.support.fulldisk import OVERFLOW, filled
from tests.support.siege import besieged, ordinary, provider
from tests.support.tmpfs import CannotMount, fill, small_disk
from tests.wire import Wire, body, post, until


async def test_running_out_of_descriptors_is_survived(tmp_path: Path) -> None:
    """No spin and no end: open streams go on, silent connections make room, new clients are served."""
    with provider() as base_url:
        seen = await exhausted(tmp_path, base_url)
    assert seen.spin < 0.5  # a loop that spins takes all of a core
    assert seen.whole
    assert seen.served == 200


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


async def test_a_daemon_that_dies_while_the_disk_is_full_comes_back(tmp_path: Path) -> None:
    """The ring that is there is enough to serve by; what was left open is closed once there is space."""
    with ExitStack() as stack:
        try:
            disk = stack.enter_context(small_disk(tmp_path / "disk", 16))
        except CannotMount as error:
            pytest.skip(f"cannot mount a tmpfs here: {error}")
        base_url = stack.enter_context(provider())
        daemon = stack.enter_context(besieged(tmp_path, base_url, {"state_dir": str(disk)}))
        daemon.state_dir = disk
        async with await Wire.open(daemon.port) as wire:
            wire.send(post(KEY, body("demo:deltas=1000,interval_ms=100")))
            lost = await wire.head()
            await until(lambda: len(daemon.records()) == 1)
            fill(disk / "ballast")
            daemon.kill()
        daemon.start()
        assert (await ordinary(daemon.port, 5, 1)).wrong == 0
        assert (await daemon.admin.status()).log.error is not None
        (disk / "ballast").unlink()
        assert (await daemon.record(lost)).outcome is Outcome.CRASHED
        await until(lambda: len(daemon.records()) == 6)
