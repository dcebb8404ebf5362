"""The file itself: permissions, damage, other disks, and reading without a daemon."""

from __future__ import annotations

import os
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from relayd.state.database import (
    explain,
    make_private,
    open_for_reading,
    open_for_writing,
    side_files,
)
from relayd.state.errors import StateBusy, StateDamaged, StateError, StateOtherFormat, StateUnreachable


def mode_of(path: Path) -> int:
    """The permission bits of a file."""
    return stat.S_IMODE(path.stat().st_mode)


def test_nobody_else_can_read_the_state(tmp_path: Path) -> None:
    """The directory is 0700 and every file in it 0600, whatever the umask says."""
    old = os.umask(0o000)
    try:
        path = make_private(tmp_path / "deep" / "state")
        with closing(open_for_writing(path)) as connection:
            connection.execute("UPDATE meta SET value = 1 WHERE name = 'seq'")
            assert mode_of(path.parent) == 0o700
            assert {mode_of(file) for file in (path, *side_files(path))} == {0o600}
    finally:
        os.umask(old)


def test_open_files_are_closed_to_others(tmp_path: Path) -> None:
    """A database that was readable for others before is not any more."""
    path = make_private(tmp_path / "state")
    path.chmod(0o644)
    for side in side_files(path):
        side.touch(mode=0o666)
    make_private(tmp_path / "state")
    assert {mode_of(file) for file in (path, *side_files(path))} == {0o600}


def test_a_directory_that_others_may_write_is_refused(tmp_path: Path) -> None:
    """Whoever can write into the directory can swap the key ring; the error names the command that helps."""
    state_dir = tmp_path / "state"
    state_dir.mkdir()
    state_dir.chmod(0o777)
    with pytest.raises(StateUnreachable, match=f"chmod 700 {state_dir}"):
        make_private(state_dir)


def test_a_path_that_can_t_be_a_directory_is_refused(tmp_path: Path) -> None:
    """A file in the way is named, not overwritten."""
    (tmp_path / "state").write_text("mine")
    with pytest.raises(StateUnreachable, match=str(tmp_path / "state")):
        make_private(tmp_path / "state")
    assert (tmp_path / "state").read_text() == "mine"


@pytest.mark.parametrize("open_it", [open_for_writing, open_for_reading])
def test_a_file_that_is_no_database_is_reported_in_words(tmp_path: Path, open_it: object) -> None:
    """Garbage in place of the database stops with its path and what to do, and is left as it is."""
    path = make_private(tmp_path / "state")
    path.write_bytes(b"this is not a database, certainly " * 100)
    assert callable(open_it)
    with pytest.raises(StateDamaged, match=r"relayd\.db is damaged .*Stop relayd.*backup"):
        open_it(path)
    assert path.read_bytes().startswith(b"this is not")


def test_a_newer_file_can_t_be_read_either(tmp_path: Path) -> None:
    """A reader refuses a format it does not know, in words."""
    path = make_private(tmp_path / "state")
    with closing(open_for_writing(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StateOtherFormat, match="format 99"):
        open_for_reading(path)


def test_an_empty_file_can_t_be_read(tmp_path: Path) -> None:
    """A reader does not make tables; it says that a daemon must run once."""
    path = make_private(tmp_path / "state")
    with pytest.raises(StateOtherFormat, match="old format 0"):
        open_for_reading(path)


def test_a_missing_file_is_not_made_by_reading(tmp_path: Path) -> None:
    """Where no daemon ran there is nothing to read, and nothing is created."""
    with pytest.raises(StateUnreachable, match="no database"):
        open_for_reading(tmp_path / "relayd.db")
    assert list(tmp_path.iterdir()) == []


def test_a_reader_needs_only_the_file(tmp_path: Path) -> None:
    """After a clean stop the file alone can be read, but not written."""
    path = make_private(tmp_path / "state")
    with closing(open_for_writing(path)) as connection:
        connection.execute("UPDATE meta SET value = 5 WHERE name = 'seq'")
    with closing(open_for_reading(path)) as connection:
        assert connection.execute("SELECT value FROM meta WHERE name = 'seq'").fetchone() == (5,)
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            connection.execute("UPDATE meta SET value = 6")


def test_a_reader_without_the_right_to_write_still_reads(tmp_path: Path) -> None:
    """Where SQLite may not make the WAL's index and no WAL is left, the file is read as it stands."""
    path = make_private(tmp_path / "state")
    with closing(open_for_writing(path)) as connection:
        connection.execute("UPDATE meta SET value = 5 WHERE name = 'seq'")

    def connect(database: str, **options: Any) -> sqlite3.Connection:
        if "immutable" not in database:
            raise sqlite3.OperationalError("unable to open database file")
        connection: sqlite3.Connection = sqlite3.connect(database, **options)
        return connection

    with closing(open_for_reading(path, connect)) as connection:
        assert connection.execute("SELECT value FROM meta WHERE name = 'seq'").fetchone() == (5,)
    side_files(path)[0].touch()
    with pytest.raises(StateBusy, match="unable to open"):
        open_for_reading(path, connect)


def test_a_reader_sees_what_a_killed_writer_left_in_the_wal(tmp_path: Path) -> None:
    """What was committed before a kill is read from the WAL, without a daemon."""
    path = make_private(tmp_path / "state")
    with closing(open_for_writing(path)) as connection:
        connection.execute("UPDATE meta SET value = 5 WHERE name = 'seq'")
        killed = make_private(tmp_path / "copy")
        for source, target in zip((path, *side_files(path)), (killed, *side_files(killed)), strict=True):
            if source.name != "relayd.db-shm":
                target.write_bytes(source.read_bytes())
    with closing(open_for_reading(killed)) as connection:
        assert connection.execute("SELECT value FROM meta WHERE name = 'seq'").fetchone() == (5,)


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        (sqlite3.SQLITE_CORRUPT, StateDamaged, "damaged"),
        (sqlite3.SQLITE_NOTADB, StateDamaged, "damaged"),
        (sqlite3.SQLITE_CANTOPEN, StateUnreachable, "owner and mode"),
        (sqlite3.SQLITE_READONLY, StateUnreachable, "owner and mode"),
        (sqlite3.SQLITE_BUSY, StateBusy, "Another process"),
        (sqlite3.SQLITE_FULL, StateBusy, "free space"),
        (sqlite3.SQLITE_IOERR, StateBusy, "disk refuses"),
    ],
)
def test_every_failure_of_sqlite_is_told_in_words(code: int, kind: type[StateError], says: str) -> None:
    """Each kind of error says what is wrong, with which file, and what to do."""
    error = sqlite3.OperationalError("some reason")
    error.sqlite_errorcode = code
    told = explain(error, Path("state/relayd.db"))
    assert type(told) is kind
    assert "state/relayd.db" in str(told)
    assert says in str(told)
