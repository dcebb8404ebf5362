"""Restarts under load, with the listening socket kept by the service manager."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.restarts import restarted


@pytest.mark.timeout(180)
async def test_a_restart_refuses_no_connection_and_breaks_no_stream(tmp_path: Path) -> None:
    """Whoever comes between two daemons waits; whoever streams is finished, or told."""
    ends = await restarted(tmp_path, 2)
    assert set(ends) <= {"whole", "draining"}, ends
    assert ends["whole"] > 20
