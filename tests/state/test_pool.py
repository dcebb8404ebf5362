"""Read-only connections, lent and given back."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

from relayd.state.database import make_private, open_for_writing
from relayd.state.errors import StateDamaged, StateUnreachable
from relayd.state.pool import SIZE, ReadPool
from tests.state.room import Disk


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """An empty database."""
    made = make_private(tmp_path / "state")
    open_for_writing(made).close()
    return made


def test_connections_are_used_again(path: Path) -> None:
    """One reader at a time needs one connection, however often it asks."""
    disk = Disk()
    with closing(ReadPool(path, disk.connect)) as pool:
        for _ in range(5):
            with pool.connection() as connection:
                connection.execute("SELECT 1")
        assert len(disk.connections) == 1


def test_no_more_than_four_are_lent(path: Path) -> None:
    """A fifth reader waits until one comes back."""
    disk = Disk()
    got = threading.Event()
    with closing(ReadPool(path, disk.connect)) as pool:

        def fifth() -> None:
            with pool.connection():
                got.set()

        thread = threading.Thread(target=fifth)
        with ExitStack() as lent:
            for _ in range(SIZE):
                lent.enter_context(pool.connection())
            thread.start()
            assert not got.wait(0.1)
        assert got.wait(10)
        thread.join(10)
        assert len(disk.connections) == SIZE


def test_a_connection_that_failed_is_not_lent_again(path: Path) -> None:
    """An error of SQLite is told in words, and the next reader gets a fresh connection."""
    disk = Disk()
    with closing(ReadPool(path, disk.connect)) as pool:
        with pytest.raises(StateDamaged, match="no such table"), pool.connection() as connection:
            connection.execute("SELECT * FROM gone")
        with pytest.raises(KeyError), pool.connection():
            raise KeyError
        with pool.connection() as connection:
            connection.execute("SELECT 1")
        assert len(disk.connections) == 3
        with pytest.raises(sqlite3.ProgrammingError):
            disk.connections[0].execute("SELECT 1")


def test_closing_waits_for_no_one(path: Path) -> None:
    """A connection that is out when the pool closes is closed when it comes back."""
    disk = Disk()
    pool = ReadPool(path, disk.connect)
    with pool.connection() as connection:
        pool.close()
        connection.execute("SELECT 1")
    with pytest.raises(sqlite3.ProgrammingError):
        connection.execute("SELECT 1")
    with pytest.raises(StateUnreachable, match="closed"), pool.connection():
        pass
