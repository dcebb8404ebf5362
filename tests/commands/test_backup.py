"""`relayd backup`: with a daemon and without one."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.admin.harness import admin_api
from tests.commands.harness import relayd, run
from tests.e2e.daemon import Daemon
from tests.state.harness import opened


async def test_it_copies_the_database_of_the_daemon_at_the_socket(tmp_path: Path) -> None:
    """The daemon says where its state is; a sentence says what was copied where."""
    async with admin_api(tmp_path) as api:
        backup = await relayd(api.socket, "backup", str(tmp_path / "b.db"))
        assert (backup.status, backup.err) == (0, "")
        assert backup.out.startswith("Copied clients, keys, usage, audit and log from ")
        assert f" to {tmp_path}/b.db (" in backup.out
        with closing(sqlite3.connect(tmp_path / "b.db")) as copy:
            assert copy.execute("SELECT count(*) FROM keys").fetchone()[0] > 0
        again = await relayd(api.socket, "backup", str(tmp_path / "b.db"))
        assert (again.status, again.out) == (1, "")
        assert again.err == f"relayd: {tmp_path}/b.db is there already. Name another file, or move it away.\n"


async def test_it_works_while_no_daemon_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The database is found by the rules for the socket; with --json the answer is one document."""
    async with admin_api(tmp_path) as api:
        state_dir = api.state.path.parent
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RELAYD_ADMIN__SOCKET", raising=False)
    monkeypatch.setenv("RELAYD_STATE_DIR", str(state_dir))
    backup = await asyncio.to_thread(run, "backup", "b.db", "--json")
    assert (backup.status, backup.err) == (0, "")
    answer = json.loads(backup.out)
    assert answer["file"] == f"{tmp_path}/b.db"
    assert answer["database"] == f"{state_dir}/relayd.db"
    assert answer["bytes"] == (tmp_path / "b.db").stat().st_size
    assert answer["generation"] > 0


def test_a_state_in_postgresql_is_backed_up_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, postgres_url: str
) -> None:
    """An old SQLite file beside it is no backup; said without a daemon, and with one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "relayd.toml").write_text(f'state_dir = "kept"\nstate.url = "{postgres_url}"\n')
    with opened(tmp_path / "kept"):
        pass
    refused = [run("backup", "b.db", "--socket", "kept/admin.sock")]
    with Daemon(tmp_path, settings={"state_dir": "kept", "state.url": postgres_url}):
        refused.append(run("backup", "b.db", "--socket", "kept/admin.sock"))
    for backup in refused:
        assert (backup.status, backup.out) == (1, "")
        assert "pg_dump" in backup.err
    assert not (tmp_path / "b.db").exists()


def test_without_a_database_it_says_where_it_looked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And how to name another place."""
    monkeypatch.setenv("RELAYD_STATE_DIR", str(tmp_path / "none"))
    backup = run("backup", str(tmp_path / "b.db"), "--socket", str(tmp_path / "none.sock"))
    assert (backup.status, backup.out) == (1, "")
    assert "There is no database at" in backup.err
    assert "RELAYD_STATE_DIR" in backup.err


@pytest.mark.parametrize("target", ["/", "."])
def test_a_directory_is_no_target(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    """Refused in words, before the database is read."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RELAYD_STATE_DIR", str(tmp_path / "none"))
    backup = run("backup", target, "--socket", str(tmp_path / "none.sock"))
    assert (backup.status, backup.out) == (1, "")
    assert (
        backup.err
        == f"relayd: {Path(target).absolute()} is there already. Name another file, or move it away.\n"
    )
