"""The request log: never waiting, bounded, honest about losses, on good disks and bad ones."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from relayd.state.database import Database
from relayd.state.reader import EndedRequests, LogReader, RefusedKey
from relayd.state.records import (
    Ended,
    LogEvent,
    Lost,
    Outcome,
    Phase,
    RecordedError,
    RequestRecord,
    Started,
)
from relayd.state.request_log import BATCH_ENTRIES, RETRY_S, RequestLog
from tests.state.harness import Clock, Disk, Published, a_record, as_ended, opened_database

pytestmark = pytest.mark.usefixtures("engine_kind")


class Harness:
    """A request log on a disk, written when the test says so."""

    def __init__(self, database: Database, log: RequestLog, disk: Disk, published: Published) -> None:
        self.engine = database.engine
        self.connection = database.connection
        self.log = log
        self.disk = disk
        self.published = published
        self.woken: list[None] = []

    def request(self, number: int, status: int = 200, boot_id: str = "boot-1") -> RequestRecord:
        """Queue a request that starts and ends at once."""
        record = a_record(number, boot_id)
        self.log.started(record)
        self.log.ended(as_ended(record, status))
        return record

    def replayed(self) -> list[LogEvent]:
        """Return what the log on disk says happened."""
        events = LogReader(self.engine).events(0, 5000)
        return [event for event in events if isinstance(event, Started | Ended | Lost)]


@contextmanager
def harness(state_dir: Path, capacity: int = 10_000, boot_id: str = "boot-1") -> Iterator[Harness]:
    """Open a log without a thread."""
    disk, published = Disk(), Published()
    with opened_database(state_dir, boot_id=boot_id, published=published, disk=disk) as database:
        log = RequestLog(
            database, lambda: made.woken.append(None), Clock(), lambda *_: None, lambda _: None, capacity
        )
        made = Harness(database, log, disk, published)
        yield made


@pytest.fixture
def good(tmp_path: Path) -> Iterator[Harness]:
    """A log on a good disk."""
    with harness(tmp_path / "state") as made:
        yield made


def test_what_has_ended_is_counted_by_error_and_by_refused_key(good: Harness) -> None:
    """Keys that were valid once apart, with their last address; what an operator ended is no error."""
    endings = (
        (Outcome.COMPLETED, None, "k", "192.0.2.1"),
        (Outcome.UPSTREAM_ERROR, "upstream_failed", "k", "192.0.2.1"),
        (Outcome.CRASHED, None, "k", "192.0.2.1"),
        (Outcome.CANCELLED, "cancelled", "k", "192.0.2.1"),
        (Outcome.DENIED, "unauthorized", "dead", "192.0.2.9"),
        (Outcome.DENIED, "unauthorized", "dead", "192.0.2.2"),
        (Outcome.DENIED, "unauthorized", None, "192.0.2.3"),
    )
    for number, (outcome, code, key_id, ip) in enumerate(endings):
        record = a_record(number)
        record.key_id, record.ip = key_id, ip
        good.log.started(record)
        record.phase, record.outcome = Phase.DONE, outcome
        record.error = None if code is None else RecordedError(code, "It failed.")
        good.log.ended(record)
    assert good.log.write() is None
    reader = LogReader(good.engine)
    found = reader.ended_since(0)
    assert found.by_code == {"": 2, "upstream_failed": 1, "crashed": 1}
    assert found.refused == [RefusedKey("dead", "web", 2, "192.0.2.2")]
    assert found.newest_seq == reader.newest_seq()
    assert reader.ended_since(found.newest_seq) == EndedRequests(found.newest_seq)


def test_a_group_is_published_as_it_can_be_replayed(good: Harness) -> None:
    """Each start and end has its own place, without a gap, and the disk tells the same story."""
    good.request(1)
    open_record = a_record(2)
    good.log.started(open_record)
    good.request(3, 502)
    assert good.log.write() is None
    good.log.ended(as_ended(open_record))
    open_record.deltas = 999  # the log has a copy
    assert good.log.write() is None
    kinds = [Started, Ended, Started, Started, Ended, Ended]
    assert [(event.seq, type(event)) for event in good.published.events] == [*enumerate(kinds, 1)]
    assert good.replayed() == good.published.events
    last = good.published.events[-1]
    assert isinstance(last, Ended)
    assert (last.record.id, last.record.seq, last.record.deltas) == ("req-000002", 3, 20)
    assert good.log.queued == 0


def test_the_writer_is_woken_once_for_each_group(good: Harness) -> None:
    """A burst costs the event loop one wake; after the write, the next record wakes again."""
    for number in range(20):
        good.request(number)
    assert len(good.woken) == 1
    good.log.write()
    good.request(20)
    assert len(good.woken) == 2


def test_a_large_backlog_is_written_in_bounded_groups(good: Harness) -> None:
    """No transaction holds more than a batch, so that a change of keys never waits long."""
    for number in range(BATCH_ENTRIES):
        good.request(number)
    assert good.log.write() == 0.0
    assert good.log.queued == BATCH_ENTRIES
    assert good.log.write() == 0.0
    assert good.log.write() is None
    assert [event.seq for event in good.replayed()] == list(range(1, 2 * BATCH_ENTRIES + 1))


@pytest.mark.parametrize(
    "failing", ["BEGIN", "SELECT value", "INSERT INTO requests", "UPDATE meta", "COMMIT"]
)
def test_what_a_full_disk_refuses_is_kept_and_tried_again(good: Harness, failing: str) -> None:
    """Whichever statement fails, nothing is lost or doubled, and the log says why it waits."""
    good.request(1)
    good.disk.full(beginning=(failing,))
    assert good.log.write() == RETRY_S
    assert "free space" in (good.log.error or "")
    assert (good.log.queued, good.log.lost) == (2, 0)
    good.request(2)
    assert good.log.write() == RETRY_S
    good.disk.mended()
    assert good.log.write() is None
    assert (good.log.error, good.log.queued) == (None, 0)
    assert good.replayed() == good.published.events
    assert [event.seq for event in good.published.events] == [1, 2, 3, 4]


@pytest.mark.sqlite
def test_a_real_full_database(good: Harness) -> None:
    """SQLite's own limit on pages acts like a full disk: refused, kept, and written once it is lifted."""
    pages = good.connection.execute("PRAGMA page_count").fetchone()[0]
    good.connection.execute(f"PRAGMA max_page_count = {pages}")
    for number in range(200):
        good.request(number)
    assert good.log.write() == RETRY_S
    assert good.log.queued == 400
    good.connection.execute("PRAGMA max_page_count = 1000000")
    good.log.drain(until=math.inf)
    assert len(good.replayed()) == 400


def test_a_full_queue_loses_the_newest_and_counts_each_once(tmp_path: Path) -> None:
    """Starts beyond the bound are not taken; their requests are lost if their end finds no room either."""
    with harness(tmp_path / "state", capacity=3) as full:
        full.disk.full()
        records = [a_record(number) for number in range(5)]
        for record in records:
            full.log.started(record)
        assert (full.log.queued, full.log.lost) == (3, 0)
        for record in records:
            full.log.ended(as_ended(record))
        # The ends of the three that were taken are always taken.
        assert (full.log.queued, full.log.lost) == (6, 2)
        assert full.log.write() == RETRY_S
        full.disk.mended()
        assert full.log.write() is None
        *events, lost = full.replayed()
        assert full.published.events == [*events, lost]
        assert len(events) == 6
        assert isinstance(lost, Lost)
        assert (lost.seq, lost.count, lost.reason) == (7, 2, "database or disk is full")
        # Told once.
        full.request(9)
        assert full.log.write() is None
        assert sum(isinstance(event, Lost) for event in full.replayed()) == 1


def test_an_end_stands_for_the_whole_request_once_there_is_room(tmp_path: Path) -> None:
    """A request whose start found no room is not lost when the disk is back before it ends."""
    with harness(tmp_path / "state", capacity=1) as full:
        full.log.started(a_record(1))
        full.log.started(a_record(2))
        full.log.write()
        full.log.ended(as_ended(a_record(2), 502))
        full.log.write()
        first, start, end = full.replayed()
        assert isinstance(start, Started)
        assert isinstance(end, Ended)
        assert (first.seq, start.record, end.record.status) == (
            1,
            msgspec.structs.replace(a_record(2), seq=2),
            502,
        )
        assert full.log.lost == 0


def test_a_record_that_no_disk_could_take_does_not_hold_up_the_others(good: Harness) -> None:
    """An id that is there already, or a value of a wrong type, costs that one record and is counted."""
    good.request(1)
    good.log.write()
    good.request(2)
    good.log.started(a_record(1))
    broken = a_record(3)
    msgspec.structs.force_setattr(broken, "model", object())
    good.log.started(broken)
    good.request(4)
    good.log.drain(until=math.inf)
    assert good.log.lost == 2
    events = good.replayed()
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    ended = [event.record.id for event in events if isinstance(event, Ended)]
    assert ended == ["req-000001", "req-000002", "req-000004"]
    assert sum(event.count for event in events if isinstance(event, Lost)) == 2


def test_a_backlog_behind_a_bad_record_is_written_without_another_wake(good: Harness) -> None:
    """The writer comes back until nothing waits, also after it has looked at records one by one."""
    good.request(1)
    good.log.write()
    good.log.started(a_record(1))
    for number in range(2, 2 + BATCH_ENTRIES):
        good.request(number)
    delays = [good.log.write()]
    while delays[-1] is not None:
        delays.append(good.log.write())
        assert len(delays) < 2 * BATCH_ENTRIES
    assert set(delays) == {0.0, None}
    assert (good.log.queued, good.log.lost) == (0, 1)


def test_hostile_text_is_stored_harmlessly(good: Harness) -> None:
    """NULs, lone surrogates and numbers beyond 64 bits from outside neither break nor stop the log."""
    record = a_record(1)
    record.user_agent, record.model = "a\0b", "\ud800"
    record.prompt_tokens = 10**30
    good.log.started(record)
    assert good.log.write() is None
    stored = LogReader(good.engine).get(record.id)
    assert stored is not None
    assert (stored.user_agent, stored.model, stored.prompt_tokens) == ("a\ufffdb", "\ufffd", 2**63 - 1)


def test_two_daemons_share_one_sequence(tmp_path: Path, good: Harness) -> None:
    """The old and the new daemon may write side by side: places in the log never collide."""
    with harness(tmp_path / "state", boot_id="boot-2") as other:
        for number in range(10):
            good.request(number)
            good.log.write()
            other.log.started(a_record(100 + number, "boot-2"))
            other.log.write()
    assert [event.seq for event in good.replayed()] == list(range(1, 31))
    assert {event.boot_id for event in good.replayed()} == {"boot-1", "boot-2"}
