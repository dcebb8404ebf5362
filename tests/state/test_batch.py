"""Groups of entries into the database, on good disks and bad ones."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest

from relayd.state.batch import BATCH_ENTRIES, BatchWriter, Progress
from relayd.state.database import make_private, open_for_writing
from relayd.state.events import Ended, LogEvent, Lost, Started
from relayd.state.reader import LogReader
from relayd.state.records import RequestRecord
from relayd.state.requestlog import RequestLog
from relayd.state.transactor import Transactor
from tests.state.room import Clock, Disk, Published, a_record, as_ended


class Desk:
    """A log, its batch writer and the disk below, without the thread."""

    def __init__(self, state_dir: Path, capacity: int = 10_000) -> None:
        self.disk = Disk()
        self.published = Published()
        self.path = make_private(state_dir)
        self.connection = open_for_writing(self.path, self.disk.connect)
        self.transactor = Transactor(self.connection, "boot-1", self.published)
        self.log = RequestLog("boot-1", lambda: None, capacity)
        self.batch = BatchWriter(self.log, self.path, Clock())

    def write(self) -> Progress:
        """One round."""
        return self.batch.write(self.transactor)

    def request(self, number: int, status: int = 200) -> RequestRecord:
        """A request that starts and ends at once."""
        record = a_record(number)
        self.log.started(record)
        self.log.ended(as_ended(record, status))
        return record


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A desk on a good disk."""
    made = Desk(tmp_path / "state")
    with closing(made.connection):
        yield made


def replayed(desk: Desk) -> list[LogEvent]:
    """What the log on disk says happened."""
    with LogReader(desk.path) as reader:
        return [event for event in reader.events(0) if isinstance(event, Started | Ended | Lost)]


def test_a_group_is_published_as_it_can_be_replayed(desk: Desk) -> None:
    """Each start and end has its own place, without a gap, and the disk tells the same story."""
    desk.request(1)
    desk.log.started(a_record(2))
    desk.request(3, 502)
    assert desk.write() is Progress.DONE
    desk.log.ended(as_ended(a_record(2)))
    assert desk.write() is Progress.DONE
    assert [(event.seq, type(event)) for event in desk.published.events] == [
        (1, Started),
        (2, Ended),
        (3, Started),
        (4, Started),
        (5, Ended),
        (6, Ended),
    ]
    assert replayed(desk) == desk.published.events
    last = desk.published.events[-1]
    assert isinstance(last, Ended)
    assert (last.record.id, last.record.seq, last.record.status) == ("req-000002", 3, 200)


def test_a_large_backlog_is_written_in_bounded_groups(desk: Desk) -> None:
    """No transaction holds more than a batch, so that a change of the ring never waits long."""
    for number in range(BATCH_ENTRIES):
        desk.request(number)
    assert desk.write() is Progress.MORE
    assert desk.log.queued == BATCH_ENTRIES
    assert desk.write() is Progress.MORE
    assert desk.write() is Progress.DONE
    assert [event.seq for event in replayed(desk)] == list(range(1, 2 * BATCH_ENTRIES + 1))[:1000]


def test_what_a_full_disk_refuses_is_kept_and_tried_again(desk: Desk) -> None:
    """Nothing is lost or doubled while the queue has room, and the log says why it waits."""
    desk.request(1)
    desk.disk.full()
    assert desk.write() is Progress.FAILED
    assert "free space" in (desk.log.error or "")
    assert (desk.log.queued, desk.log.lost) == (2, 0)
    desk.request(2)
    assert desk.write() is Progress.FAILED
    desk.disk.mended()
    assert desk.write() is Progress.DONE
    assert (desk.log.error, desk.log.queued) == (None, 0)
    assert [event.seq for event in replayed(desk)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "failing", ["BEGIN", "SELECT value", "INSERT INTO requests", "UPDATE meta", "COMMIT"]
)
def test_every_step_of_a_group_may_fail(desk: Desk, failing: str) -> None:
    """Whichever statement the disk refuses, the group is whole after the next round, once."""
    desk.request(1)
    desk.disk.full(beginning=(failing,))
    assert desk.write() is Progress.FAILED
    desk.disk.mended()
    assert desk.write() is Progress.DONE
    assert replayed(desk) == desk.published.events
    assert [event.seq for event in desk.published.events] == [1, 2]


def test_a_real_full_database(desk: Desk) -> None:
    """SQLite's own limit on pages acts like a full disk: refused, kept, and written once it is lifted."""
    pages = desk.connection.execute("PRAGMA page_count").fetchone()[0]
    desk.connection.execute(f"PRAGMA max_page_count = {pages}")
    for number in range(200):
        desk.request(number)
    assert desk.write() is Progress.FAILED
    assert desk.log.queued == 400
    desk.connection.execute("PRAGMA max_page_count = 1000000")
    assert desk.write() is Progress.DONE
    assert len(replayed(desk)) == 400


def test_losses_are_told_once_the_disk_is_back(tmp_path: Path) -> None:
    """Beyond the bound requests are lost; afterwards one event says how many and why."""
    desk = Desk(tmp_path / "state", capacity=2)
    with closing(desk.connection):
        desk.disk.full()
        for number in range(6):
            desk.request(number)
            assert desk.write() is Progress.FAILED
        assert desk.log.lost == 5
        desk.disk.mended()
        assert desk.write() is Progress.DONE
        lost = [event for event in replayed(desk) if isinstance(event, Lost)]
        assert [(event.count, event.reason) for event in lost] == [(5, "database or disk is full")]
        assert desk.write() is Progress.DONE
        assert len([event for event in replayed(desk) if isinstance(event, Lost)]) == 1


def test_a_record_that_no_disk_could_take_does_not_hold_up_the_others(desk: Desk) -> None:
    """An id that is there already, or a value of a wrong type, costs that one record and is counted."""
    desk.request(1)
    desk.write()
    desk.request(2)
    desk.log.started(a_record(1))
    broken = a_record(3)
    msgspec.structs.force_setattr(broken, "model", object())
    desk.log.started(broken)
    desk.request(4)
    assert desk.write() is Progress.DONE
    assert desk.log.lost == 2
    desk.write()
    events = replayed(desk)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    assert {event.record.id for event in events if isinstance(event, Ended)} == {
        "req-000001",
        "req-000002",
        "req-000004",
    }
    assert sum(event.count for event in events if isinstance(event, Lost)) == 2


def test_hostile_text_is_stored_harmlessly(desk: Desk) -> None:
    """NULs, lone surrogates and numbers beyond 64 bits from outside neither break nor stop the log."""
    record = a_record(1)
    record.user_agent, record.model = "a\0b", "\ud800"
    record.prompt_tokens = 10**30
    desk.log.started(record)
    assert desk.write() is Progress.DONE
    with LogReader(desk.path) as reader:
        stored = reader.get(record.id)
    assert stored is not None
    assert (stored.user_agent, stored.model, stored.prompt_tokens) == ("a\ufffdb", "\ufffd", 2**63 - 1)


def test_two_writers_share_one_sequence(desk: Desk) -> None:
    """The old and the new daemon may write side by side: places in the log never collide."""
    second = sqlite3.connect(desk.path, isolation_level=None)
    with closing(second):
        other_log = RequestLog("boot-2", lambda: None)
        other = BatchWriter(other_log, desk.path, Clock())
        other_transactor = Transactor(second, "boot-2", Published())
        for number in range(10):
            desk.request(number)
            desk.write()
            other_log.started(a_record(100 + number, "boot-2"))
            other.write(other_transactor)
    assert [event.seq for event in replayed(desk)] == list(range(1, 31))
