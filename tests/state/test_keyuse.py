"""First and last use of each key."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from relayd.state.database import make_private, open_for_writing
from relayd.state.keyuse import KeyUse
from relayd.state.records import KeyInfo, utc_text
from relayd.state.ringrules import make_key
from relayd.state.ringstore import StoredKey, load_ring, store_key
from relayd.state.transactor import Transactor
from tests.state.room import NOON_S, Clock, Disk, Published


class Desk:
    """One key, its uses, and the disk."""

    def __init__(self, state_dir: Path) -> None:
        self.clock, self.disk = Clock(), Disk()
        self.connection = open_for_writing(make_private(state_dir), self.disk.connect)
        self.transactor = Transactor(self.connection, "boot-1", Published())
        self.key, _ = make_key("web", utc_text(NOON_S))
        store_key(self.connection, self.key)
        self.use = KeyUse(self.clock)

    def stored(self) -> StoredKey:
        """The key on disk."""
        return load_ring(self.connection).keys[0]

    def shown(self) -> KeyInfo:
        """The key with its latest use."""
        return self.use.shown(self.stored().info(utc_text(NOON_S)))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A desk on a good disk."""
    made = Desk(tmp_path / "state")
    with closing(made.connection):
        yield made


def uses(key: KeyInfo | StoredKey) -> tuple[str | None, str | None, str | None, str | None]:
    """First and last use, each with its address."""
    return key.first_used_at, key.first_used_ip, key.last_used_at, key.last_used_ip


def test_uses_show_at_once_and_reach_the_disk_with_the_next_write(desk: Desk) -> None:
    """The first use stays, the last one moves; the disk follows when it is told to."""
    assert uses(desk.shown()) == (None, None, None, None)
    assert desk.use.note(desk.key.id, "192.0.2.1") is True
    desk.clock.now_s += 5
    assert desk.use.note(desk.key.id, "192.0.2.2") is False
    expected = (utc_text(NOON_S), "192.0.2.1", utc_text(NOON_S + 5), "192.0.2.2")
    assert uses(desk.shown()) == expected
    assert uses(desk.stored()) == (None, None, None, None)
    desk.use.write(desk.transactor)
    assert uses(desk.stored()) == expected


def test_a_later_daemon_does_not_change_the_first_use(desk: Desk) -> None:
    """The first use is the first ever, also when another start of the daemon saw it."""
    desk.use.note(desk.key.id, "192.0.2.1")
    desk.use.write(desk.transactor)
    desk.clock.now_s += 3600
    later = KeyUse(desk.clock)
    later.note(desk.key.id, "192.0.2.9")
    later.write(desk.transactor)
    expected = (utc_text(NOON_S), "192.0.2.1", utc_text(NOON_S + 3600), "192.0.2.9")
    assert uses(desk.stored()) == expected
    assert uses(later.shown(desk.stored().info(utc_text(NOON_S)))) == expected


def test_nothing_new_writes_nothing(desk: Desk) -> None:
    """An idle key costs no transaction."""
    desk.use.note(desk.key.id, "192.0.2.1")
    desk.use.write(desk.transactor)
    desk.disk.statements.clear()
    desk.use.write(desk.transactor)
    assert desk.disk.statements == []


def test_uses_that_the_disk_refused_are_written_later(desk: Desk) -> None:
    """A full disk delays the note of a use, it does not lose it."""
    desk.use.note(desk.key.id, "192.0.2.1")
    desk.disk.full()
    with pytest.raises(sqlite3.OperationalError):
        desk.use.write(desk.transactor)
    desk.disk.mended()
    desk.use.write(desk.transactor)
    assert desk.stored().last_used_ip == "192.0.2.1"
