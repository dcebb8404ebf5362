"""Keys and prompts leave no trace: not in the database, not in its WAL, not in the log, at any level."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.canaries import CODES, OUTCOMES, Aviary
from tests.support.siege import provider


@pytest.mark.timeout(180)
async def test_no_key_and_no_prompt_is_ever_written_down(tmp_path: Path) -> None:
    """Through every outcome and code, at the level that shows most: nowhere on disk or in /proc."""
    with provider() as base_url:
        aviary = Aviary(tmp_path, base_url, each=3)
        with aviary.daemon:
            flight = await aviary.fly()
    assert flight.hits == []
    assert set(flight.outcomes) == OUTCOMES
    assert flight.codes == CODES
    # The log was at its most talkative, and everything that was there has been looked into.
    assert "request id=" in aviary.daemon.stderr
    for name in (
        "relayd.db before the crash",
        "relayd.db-wal after the crash",
        "environ of the process at the end",
    ):
        assert name in flight.looked_at
