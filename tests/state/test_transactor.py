"""Transactions: all or nothing, and events only of what is on disk."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from relayd.state.audit import new_entry
from relayd.state.database import make_private, open_for_writing
from relayd.state.events import LogEvent
from relayd.state.transactor import Transactor, Tx
from tests.state.room import ALICE, Disk, Published


@pytest.fixture
def disk() -> Disk:
    """A disk that can be made to fail."""
    return Disk()


@pytest.fixture
def connection(tmp_path: Path, disk: Disk) -> Iterator[sqlite3.Connection]:
    """A writing connection on that disk."""
    with closing(open_for_writing(make_private(tmp_path / "state"), disk.connect)) as opened:
        yield opened


def audited(tx: Tx) -> int:
    """Put one audit row in; its place."""
    return tx.audit(new_entry("pause", "done", ALICE, "2027-01-15T08:00:00.000Z", 1)).seq


def seq_of(connection: sqlite3.Connection) -> int:
    """The counter in the file."""
    found: int = connection.execute("SELECT value FROM meta WHERE name = 'seq'").fetchone()[0]
    return found


def test_places_are_given_without_a_gap(connection: sqlite3.Connection) -> None:
    """Work that fails gives its places back; the next one gets them."""
    published = Published()
    transactor = Transactor(connection, "boot-1", published)

    def fails(tx: Tx) -> None:
        audited(tx)
        raise KeyError("changed its mind")

    assert transactor.run(audited, durable=True) == 1
    with pytest.raises(KeyError):
        transactor.run(fails, durable=False)
    assert transactor.run(audited, durable=False) == 2
    assert seq_of(connection) == 2
    assert [event.seq for event in published.events] == [1, 2]


def test_events_go_out_after_the_commit(connection: sqlite3.Connection) -> None:
    """Whoever sees an event finds it on disk: `after` runs first, then the listener, both after commit."""
    order: list[str] = []

    def on_commit(_: object) -> None:
        order.append(f"events, in transaction: {connection.in_transaction}")

    Transactor(connection, "boot-1", on_commit).run(
        audited,
        durable=True,
        after=lambda _: order.append(f"after, in transaction: {connection.in_transaction}"),
    )
    assert order == ["after, in transaction: False", "events, in transaction: False"]


def test_a_commit_that_fails_publishes_nothing(connection: sqlite3.Connection, disk: Disk) -> None:
    """A full disk at the commit: nothing is published, nothing is stored, the next one works."""
    published = Published()
    transactor = Transactor(connection, "boot-1", published)
    disk.full(beginning=("COMMIT",))
    with pytest.raises(sqlite3.OperationalError, match="full"):
        transactor.run(audited, durable=True)
    disk.mended()
    assert published.events == []
    assert transactor.run(audited, durable=True) == 1


def test_a_rollback_that_fails_is_made_up_for(
    connection: sqlite3.Connection, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    """The first error is the one that is raised; the next transaction starts clean."""
    transactor = Transactor(connection, "boot-1", Published())
    disk.full(beginning=("COMMIT", "ROLLBACK"))
    with pytest.raises(sqlite3.OperationalError):
        transactor.run(audited, durable=True)
    disk.mended()
    assert transactor.run(audited, durable=True) == 1
    assert "could not be rolled back" in caplog.text


def test_a_broken_listener_does_not_stop_the_log(
    connection: sqlite3.Connection, caplog: pytest.LogCaptureFixture
) -> None:
    """What a listener raises is logged; the commit stands."""

    def on_commit(_: object) -> None:
        raise RuntimeError("a bug elsewhere")

    assert Transactor(connection, "boot-1", on_commit).run(audited, durable=True) == 1
    assert "a bug elsewhere" in caplog.text
    assert seq_of(connection) == 1


def test_durable_commits_are_synchronised(connection: sqlite3.Connection) -> None:
    """A durable transaction runs with synchronous=FULL, any other with NORMAL."""
    transactor = Transactor(connection, "boot-1", Published())
    levels: list[int] = []

    def level(_: LogEvent | object) -> None:
        levels.append(connection.execute("PRAGMA synchronous").fetchone()[0])

    for durable in (True, False, True):
        transactor.run(audited, durable=durable, after=level)
    assert levels == [2, 1, 2]
