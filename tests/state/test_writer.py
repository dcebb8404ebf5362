"""The writer thread: durable changes at once, records in groups, chores between, a clean end."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import pytest

from relayd.state.batch import BatchWriter
from relayd.state.database import make_private, open_for_writing
from relayd.state.errors import StateBusy
from relayd.state.requestlog import RequestLog
from relayd.state.transactor import Transactor, Tx
from relayd.state.writer import Chore, Writer
from tests.state.room import Disk, Published, a_record, wait_until

IN_TIME_S = 30.0


class Room:
    """A running writer with a log."""

    def __init__(self, state_dir: Path) -> None:
        self.disk = Disk()
        self.published = Published()
        self.path = make_private(state_dir)
        connection = open_for_writing(self.path, self.disk.connect)
        self.writer = Writer(Transactor(connection, "boot-1", self.published))
        self.log = RequestLog("boot-1", self.writer.wake)

    def start(self, *chores: Chore) -> None:
        """Start the thread."""
        self.writer.start(BatchWriter(self.log, self.path, time.time), list(chores))


@contextmanager
def running(tmp_path: Path, *chores: Chore) -> Iterator[Room]:
    """A writer that is closed at the end."""
    room = Room(tmp_path / "state")
    room.start(*chores)
    try:
        yield room
    finally:
        room.writer.close(IN_TIME_S, nothing)


def nothing(_: Transactor) -> bool:
    """A last chore that has nothing to do."""
    return False


def advance(tx: Tx) -> int:
    """A small change."""
    return tx.connection.execute("UPDATE ring SET generation = generation + 1").rowcount


def test_a_record_does_not_wait_for_company_for_ever(tmp_path: Path) -> None:
    """Each is on disk although no other follows it, and nothing else wakes the writer."""
    with running(tmp_path) as room:
        for number in range(3):
            room.log.started(a_record(number))
            assert len(room.published.wait_for(number + 1)) == number + 1
        assert room.disk.statements.count("COMMIT") >= 3


def test_records_that_come_together_are_one_group(tmp_path: Path) -> None:
    """A burst is one transaction, not one for each record."""
    with running(tmp_path) as room:
        held = threading.Event()
        job = room.writer.submit(lambda _: held.wait(IN_TIME_S))
        wait_until(job.running)
        for number in range(200):
            room.log.started(a_record(number))
        known = room.disk.statements.count("COMMIT")
        held.set()
        room.published.wait_for(200)
        assert job.result(IN_TIME_S)
        # The job's own, and the group's.
        assert room.disk.statements.count("COMMIT") - known <= 2


def test_a_change_does_not_wait_for_records(tmp_path: Path) -> None:
    """A durable job is done at once, although a group of records is still open."""
    with running(tmp_path) as room:
        room.log.started(a_record())
        assert room.writer.submit(advance).result(IN_TIME_S) == 1
        assert len(room.published.wait_for(1)) == 1


def test_a_failing_log_does_not_stop_changes_and_back(tmp_path: Path) -> None:
    """Records that the disk refuses and changes that fail do not touch each other."""
    with running(tmp_path) as room:
        room.disk.full(beginning=("INSERT INTO requests",))
        room.log.started(a_record())
        wait_until(lambda: room.log.error is not None)
        assert room.writer.submit(advance).result(IN_TIME_S) == 1
        room.disk.full(beginning=("UPDATE ring",))
        with pytest.raises(sqlite3.OperationalError, match="full"):
            room.writer.submit(advance).result(IN_TIME_S)
        room.published.wait_for(1)
        wait_until(lambda: room.log.error is None)


def test_what_follows_a_commit_happens_before_the_future_is_done(tmp_path: Path) -> None:
    """`after` runs on the writer's thread, before whoever waits learns of the commit."""
    order: list[str] = []
    with running(tmp_path) as room:
        future = room.writer.submit(advance, lambda _: order.append(threading.current_thread().name))
        future.add_done_callback(lambda _: order.append("done"))
        future.result(IN_TIME_S)
        wait_until(lambda: len(order) == 2)
    assert order == ["relayd-state-writer", "done"]


def test_a_job_that_was_cancelled_in_time_does_not_run(tmp_path: Path) -> None:
    """Cancelled before its turn, a job changes nothing; cancelled later, it happens all the same."""
    gate = threading.Event()
    with running(tmp_path) as room:

        def wait(tx: Tx) -> int:
            gate.wait(IN_TIME_S)
            return advance(tx)

        first: Future[int] = room.writer.submit(wait)
        wait_until(first.running)
        second = room.writer.submit(advance)
        assert second.cancel()
        assert not first.cancel()
        gate.set()
        assert first.result(IN_TIME_S) == 1
        assert room.writer.submit(generation).result(IN_TIME_S) == 1


def generation(tx: Tx) -> int:
    """The ring's generation."""
    found: int = tx.connection.execute("SELECT generation FROM ring").fetchone()[0]
    return found


def counting(count: list[int], *, failing: Callable[[int], Exception | None]) -> Callable[[Transactor], bool]:
    """A chore that counts its calls, and may fail."""

    def run(_: Transactor) -> bool:
        count.append(len(count))
        error = failing(len(count))
        if error is not None:
            raise error
        return len(count) < 3

    return run


def test_a_chore_goes_on_while_more_is_to_do(tmp_path: Path) -> None:
    """It runs again at once while it says so, then rests; `hurry` wakes it."""
    count: list[int] = []
    chore = Chore("count", 3600.0, counting(count, failing=lambda _: None))
    with running(tmp_path, chore) as room:
        wait_until(lambda: len(count) == 3)
        room.writer.submit(advance).result(IN_TIME_S)
        assert len(count) == 3
        room.writer.hurry(chore)
        wait_until(lambda: len(count) == 4)


@pytest.mark.parametrize("error", [sqlite3.OperationalError("disk I/O error"), RuntimeError("a bug")])
def test_a_failing_chore_is_logged_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    """Neither a bad disk nor a bug in a chore ends the writer."""
    count: list[int] = []
    chore = Chore("fragile", 0.01, counting(count, failing=lambda n: error if n == 1 else None))
    with running(tmp_path, chore) as room:
        wait_until(lambda: len(count) >= 3)
        assert room.writer.submit(advance).result(IN_TIME_S) == 1
    assert "The chore 'fragile' failed" in caplog.text


def test_a_chore_that_goes_on_failing_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A full disk does not fill the journal too."""
    count: list[int] = []
    full = sqlite3.OperationalError("database or disk is full")
    with running(
        tmp_path, Chore("fragile", 0.01, counting(count, failing=lambda n: full if n < 8 else None))
    ):
        wait_until(lambda: len(count) >= 9)
    assert caplog.text.count("The chore 'fragile' failed") == 1


def test_closing_writes_everything_that_waits(tmp_path: Path) -> None:
    """Records and jobs that were handed in before the close are on disk after it, and the last chore ran."""
    room = Room(tmp_path / "state")
    room.start()
    last: list[int] = []
    for number in range(1500):
        room.log.started(a_record(number))
    future = room.writer.submit(advance)
    assert room.writer.close(IN_TIME_S, counting(last, failing=lambda _: None))
    assert future.result(0) == 1
    assert len(room.published.events) == 1500
    assert last == [0]
    assert sorted(file.name for file in room.path.parent.iterdir()) == ["relayd.db"]


def test_closing_does_not_wait_for_a_full_disk_forever(tmp_path: Path) -> None:
    """What can't be written within the time is given up, and the answer says so."""
    room = Room(tmp_path / "state")
    room.start()
    room.disk.full()
    room.log.started(a_record())
    assert room.writer.close(0.6, nothing) is False
    assert room.log.queued == 1


def test_after_the_close_nothing_is_taken(tmp_path: Path) -> None:
    """A change that comes too late is refused in words, not left waiting."""
    with running(tmp_path) as room:
        assert room.writer.close(IN_TIME_S, nothing)
        with pytest.raises(StateBusy, match="being closed"):
            room.writer.submit(advance)
        assert room.writer.close(IN_TIME_S, nothing)


def test_a_fault_in_the_log_does_not_end_the_thread(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even a bug while writing records leaves changes of the ring possible."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError

    with running(tmp_path) as room:
        monkeypatch.setattr(BatchWriter, "write", broken)
        room.log.started(a_record())
        wait_until(lambda: "Writing the request log failed" in caplog.text)
        assert room.writer.submit(advance).result(IN_TIME_S) == 1
        monkeypatch.undo()
        room.published.wait_for(1)
