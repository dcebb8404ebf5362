"""The shape of the file, and how it moves forward."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from relayd.state import migrations
from relayd.state.errors import StateDamaged, StateOtherFormat
from relayd.state.migrations import migrate, schema_version
from tests.state.room import Disk


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A new, empty database file."""
    with closing(sqlite3.connect(tmp_path / "some.db", isolation_level=None)) as opened:
        yield opened


def tables(connection: sqlite3.Connection) -> set[str]:
    """The names of all tables."""
    return {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}


def test_an_empty_file_comes_to_the_newest_shape(connection: sqlite3.Connection) -> None:
    """All tables are made, and a second call changes nothing."""
    migrate(connection)
    migrate(connection)
    assert schema_version(connection) == len(migrations.MIGRATIONS)
    assert {"meta", "boots", "requests", "audit", "lost", "keys", "ring", "idempotency"} <= tables(connection)


def test_an_older_file_moves_forward_step_by_step(
    connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later release adds its step to what a file has already seen, and keeps its rows."""
    migrate(connection)
    connection.execute("UPDATE meta SET value = 7 WHERE name = 'seq'")
    later = (*migrations.MIGRATIONS, ("CREATE TABLE extra (a)", "INSERT INTO extra VALUES (1)"))
    monkeypatch.setattr(migrations, "MIGRATIONS", later)
    migrate(connection)
    assert schema_version(connection) == len(later)
    assert connection.execute("SELECT value FROM meta WHERE name = 'seq'").fetchone() == (7,)
    assert connection.execute("SELECT a FROM extra").fetchone() == (1,)


def test_a_step_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """Each step is one transaction: a full disk in its middle leaves the old version, whole."""
    disk = Disk()
    with closing(disk.connect(tmp_path / "some.db", isolation_level=None)) as connection:
        disk.full(beginning=("CREATE TABLE keys",))
        with pytest.raises(sqlite3.OperationalError):
            migrate(connection)
        assert schema_version(connection) == 0
        assert tables(connection) == set()
        disk.mended()
        migrate(connection)
        assert schema_version(connection) == len(migrations.MIGRATIONS)


def test_a_newer_file_is_refused(connection: sqlite3.Connection) -> None:
    """What a newer relayd wrote is not touched; the error says both versions and what to do."""
    connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StateOtherFormat, match=r"format 99.*Start that version"):
        migrate(connection)
    assert tables(connection) == set()


def test_the_database_of_another_program_is_refused(connection: sqlite3.Connection) -> None:
    """A file with someone else's tables is not filled with ours."""
    connection.execute("CREATE TABLE bookmarks (url)")
    with pytest.raises(StateDamaged, match="not one of relayd"):
        migrate(connection)
    assert tables(connection) == {"bookmarks"}
