"""A backup of a daemon that serves, and the steps of docs/operations.md that bring it back."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.e2e.daemon import KEY, Daemon, command, environment
from tests.wire import ask, body

_DOCS = Path(__file__).parents[2] / "docs" / "operations.md"
_QUICK = body("demo:deltas=1")


def _relayd(daemon: Daemon, *words: str) -> str:
    """Return what a command says of this daemon, running or not."""
    done = subprocess.run(
        command(*words),
        env=environment(daemon.home, {"RELAYD_STATE_DIR": str(daemon.state_dir)}),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout


def _steps(state: Path, backup: Path) -> str:
    """Return the documented steps between stop and start, for these two paths."""
    block = re.search(
        r"```sh\n.*stop.*\nstate=\S+\nbackup=\S+\n(.*?)systemctl start.*\n```", _DOCS.read_text(), re.DOTALL
    )
    assert block is not None
    return f"set -e\nstate={state}\nbackup={backup}\n{block[1]}"


@pytest.mark.parametrize("loss", ["all files", "half of a file"])
async def test_a_backup_comes_back_by_the_documented_steps(tmp_path: Path, loss: str) -> None:
    """With the keys of that moment, and without the retired AUTHORIZATION_KEY that is still configured."""
    with Daemon(tmp_path) as daemon:
        rotated = await asyncio.to_thread(_relayd, daemon, "keys", "rotate", "default", "--grace", "0s")
        key = next(line for line in rotated.splitlines() if line.startswith("rly_"))
        backup = tmp_path / "backup.db"
        assert str(backup) in await asyncio.to_thread(_relayd, daemon, "backup", str(backup))
        later = await asyncio.to_thread(_relayd, daemon, "keys", "add", "later")
        assert later
        daemon.kill()
        if loss == "all files":
            shutil.rmtree(daemon.state_dir)
            daemon.start()
            assert daemon.stop() == 0
        else:
            os.truncate(daemon.database, daemon.database.stat().st_size // 2)
        owner = daemon.state_dir.stat().st_uid
        steps = ["sh", "-c", _steps(daemon.state_dir, backup)]
        await asyncio.to_thread(subprocess.run, steps, check=True, timeout=60)
        assert daemon.database.stat().st_uid == owner
        daemon.start()
        assert (await ask(daemon.port, key, _QUICK)).status == 200
        assert (await ask(daemon.port, KEY, _QUICK)).status == 401
        clients = [info.client for info in (await daemon.admin.keys()).keys]
        assert clients == ["default", "default"]
        assert daemon.stop() == 0


@pytest.mark.parametrize("is_killed", [False, True])
async def test_a_backup_moved_over_the_database_in_use_is_not_mixed_with_it(
    tmp_path: Path, *, is_killed: bool
) -> None:
    """After a stop the next start has the backup's keys; after a crash it is refused, with advice."""
    with Daemon(tmp_path) as daemon:
        backup = tmp_path / "backup.db"
        await asyncio.to_thread(_relayd, daemon, "backup", str(backup))
        await asyncio.to_thread(_relayd, daemon, "keys", "add", "later")
        backup.rename(daemon.database)
        before = daemon.database.read_bytes()
        if is_killed:
            daemon.kill()
            daemon.launch()
            assert daemon.wait() == 1
            assert "move all files" in daemon.stderr
            assert daemon.database.read_bytes() == before
        else:
            assert daemon.stop() == 0
            daemon.start()
            assert [info.client for info in (await daemon.admin.keys()).keys] == ["default"]
            assert daemon.stop() == 0
