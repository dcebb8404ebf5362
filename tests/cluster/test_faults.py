"""What breaks under a relay while it is used, and what its clients and its operator notice of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cluster.harness import machines, trial

pytestmark = pytest.mark.timeout(seconds=600)


async def test_a_machine_is_killed(tmp_path: Path, *, large: bool) -> None:
    """Its streams break, those of others are whole; what was acknowledged is there after it."""
    with machines(tmp_path, 1) as relay:
        async with trial(relay, 200 if large else 20) as under_trial:
            killed, *others = relay
            under_trial.kill(killed)
            await under_trial.load.more(killed, end="refused")
            await under_trial.load.more(*others)
            await under_trial.start(killed)
