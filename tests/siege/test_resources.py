"""What happens when descriptors or the disk run out, with the daemon at work."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.descriptors import exhausted
from tests.support.fulldisk import OVERFLOW, filled
from tests.support.siege import provider
from tests.support.tmpfs import CannotMount


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
