"""Backups: whole, private, checked, and never in the place of another file."""

from __future__ import annotations

import errno
import os
import resource
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import pytest

from relayd.files import DATABASE
from relayd.state.backup import back_up
from relayd.state.errors import StateDamaged, StateError, StateOtherFormat, StateUnreachable
from tests.state.harness import ALICE, Published, a_record, as_ended, make_database, opened


@pytest.mark.parametrize("is_running", [True, False])
async def test_a_backup_has_keys_audit_and_log(tmp_path: Path, *, is_running: bool) -> None:
    """While the daemon writes, or after it has stopped: one file, which opens as the state of that moment."""
    published, target = Published(), tmp_path / "copy" / DATABASE
    target.parent.mkdir(mode=0o700)
    old_umask = os.umask(0)
    try:
        with opened(tmp_path / "state", published=published) as state:
            first = await state.ring.add("web", caller=ALICE)
            state.log.ended(as_ended(a_record()))
            published.wait_for(3)
            if not is_running:
                state.close()
            backup = back_up(state.path, target)
    finally:
        os.umask(old_umask)
    assert (backup.file, backup.database, backup.generation) == (str(target), str(state.path), 1)
    assert [file.name for file in target.parent.iterdir()] == [DATABASE]
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert backup.bytes == target.stat().st_size > 0
    with opened(target.parent, boot_id="boot-2") as copy:
        assert first.secret is not None
        assert copy.ring.verify(first.secret.encode()) is not None
        assert [entry.action for entry in copy.reader.audit().entries] == ["add"]
        assert copy.reader.get("req-000001") is not None


async def test_a_backup_beside_a_writer_is_of_one_moment(tmp_path: Path) -> None:
    """Between any two changes, never in the middle of one: each generation has its audit row."""
    with opened(tmp_path / "state") as state:
        for number in range(5):
            await state.ring.add(f"client-{number}", caller=ALICE)
            backup = back_up(state.path, tmp_path / f"{number}.db")
            with closing(sqlite3.connect(backup.file)) as copy:
                assert copy.execute("SELECT count(*) FROM audit").fetchone() == (backup.generation,)


def no_links(source: Path, target: Path) -> None:
    """Refuse, as FAT does."""
    raise PermissionError(errno.EPERM, f"no link from {source} to {target}")


def test_a_file_system_without_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A backup can go to a USB stick."""
    monkeypatch.setattr(os, "link", no_links)
    back_up(make_current(tmp_path / "state"), tmp_path / "b.db")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["b.db", "state"]


@pytest.mark.parametrize("in_place", ["a file", "a directory", "a dangling link"])
@pytest.mark.parametrize("has_links", [True, False])
def test_nothing_is_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_place: str, *, has_links: bool
) -> None:
    """What has the name already stays as it is, and no part of a backup stays beside it."""
    if not has_links:
        monkeypatch.setattr(os, "link", no_links)
    path, target = make_current(tmp_path / "state"), tmp_path / "target"
    if in_place == "a file":
        target.write_text("mine")
    elif in_place == "a directory":
        target.mkdir()
    else:
        target.symlink_to(tmp_path / "nowhere")
    with pytest.raises(StateUnreachable, match=f"{target} is there already"):
        back_up(path, target)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["state", "target"]
    assert target.is_dir() or target.is_symlink() or target.read_text() == "mine"


def make_current(state_dir: Path) -> Path:
    """Make a database on the newest schema, with a key; return its path."""
    with opened(state_dir) as state:
        state.ring.ensure_initial_key(None)
    return state.path


def test_a_target_that_can_t_be_written_is_named(tmp_path: Path) -> None:
    """The sentence has the path, the reason and what to do."""
    with pytest.raises(StateUnreachable, match=r"missing/b\.db can't be written: No such file or directory"):
        back_up(make_current(tmp_path / "state"), tmp_path / "missing" / "b.db")


def test_a_full_disk_of_the_target_is_not_blamed_on_the_database(tmp_path: Path) -> None:
    """The sentence has the path of the backup, and no part of it stays."""
    path = make_current(tmp_path / "state")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        with pytest.raises(StateUnreachable, match=rf"{tmp_path}/b\.db can't be written: .*enough space"):
            back_up(path, tmp_path / "b.db")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [file.name for file in tmp_path.iterdir()] == ["state"]


def test_a_database_that_is_not_there_is_named(tmp_path: Path) -> None:
    """Nothing is made, neither a database nor a backup."""
    with pytest.raises(StateUnreachable, match=r"no database at .*RELAYD_STATE_DIR"):
        back_up(tmp_path / "relayd.db", tmp_path / "b.db")
    assert list(tmp_path.iterdir()) == []


def test_what_is_damaged_is_not_taken_for_a_backup(tmp_path: Path) -> None:
    """Garbage, a page that was overwritten, and a newer format: a sentence, and no file."""
    garbage = make_database(tmp_path / "garbage")
    garbage.write_bytes(b"not a database " * 1000)
    newer = make_current(tmp_path / "newer")
    with closing(sqlite3.connect(newer)) as connection:
        connection.execute("PRAGMA user_version = 99")
    torn = make_current(tmp_path / "torn")
    with torn.open("r+b") as file:
        file.seek(3 * 4096)
        file.write(b"\xff" * 4096)
    expected: list[tuple[Path, type[StateError]]] = [
        (garbage, StateDamaged),
        (newer, StateOtherFormat),
        (torn, StateDamaged),
    ]
    for path, kind in expected:
        with pytest.raises(kind):
            back_up(path, tmp_path / "b.db")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["garbage", "newer", "torn"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can act as another user")
def test_root_s_backup_leaves_nothing_that_the_daemon_can_t_open(tmp_path: Path) -> None:
    """What SQLite makes beside the database belongs to the database's owner."""
    path = make_current(tmp_path / "state")
    for file in (path.parent, *path.parent.iterdir()):
        os.chown(file, 65534, 65534)
    back_up(path, tmp_path / "b.db")
    assert {file.stat().st_uid for file in path.parent.iterdir()} == {65534}


def test_a_backup_is_read_without_relayd(tmp_path: Path) -> None:
    """From a directory that can't be written, too: it needs no write-ahead log."""
    backup = back_up(make_current(tmp_path / "state"), tmp_path / "b.db")
    with closing(sqlite3.connect(f"file:{backup.file}?immutable=1", uri=True)) as copy:
        assert copy.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert copy.execute("SELECT state FROM keys").fetchall() == [("active",)]
