"""The writer's thread: durable changes at once, tasks between them, a clean end."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path

import pytest

from relayd.files import DATABASE
from relayd.state.database import Database, Transaction
from relayd.state.directory import LOCK_NAME
from relayd.state.engine import EngineError, Fault
from relayd.state.errors import StateBusy
from relayd.state.sqlite import Sqlite
from relayd.state.writer import Task, Writer
from tests.state.harness import Disk, Published, make_database
from tests.wire import wait_until

IN_TIME_S = 30.0


def refusal(reason: str) -> EngineError:
    """Return the error of a disk that takes nothing."""
    return EngineError(reason, Fault.FULL, StateBusy(reason))


@contextmanager
def running(tmp_path: Path, *tasks: Task, disk: Disk | None = None) -> Iterator[Writer]:
    """Run a writer with these tasks; close it at the end."""
    engine = Sqlite(make_database(tmp_path / "state"), (disk or Disk()).connect)
    writer = Writer(Database(engine, engine.open(), "boot-1", Published()))
    writer.start([*tasks, Task("idle", 3600.0, lambda: None)])
    try:
        yield writer
    finally:
        writer.close(IN_TIME_S, lambda _: None)


def advance(transaction: Transaction) -> int:
    """Make a small change; return the generation after it."""
    transaction.connection.execute("UPDATE ring SET generation = generation + 1")
    found: int = transaction.connection.execute("SELECT generation FROM ring").fetchone()[0]
    return found


def counting(
    count: list[int], error: Exception | None = None, *, failures: int = 0, delay_s: float | None = None
) -> Callable[[], float | None]:
    """Return the work of a task that counts its calls, and fails the first few times."""

    def run() -> float | None:
        count.append(len(count))
        if error is not None and len(count) <= failures:
            raise error
        return delay_s

    return run


def test_a_change_that_was_cancelled_in_time_does_not_run(tmp_path: Path) -> None:
    """Cancelled before its turn, a change does nothing; cancelled later, it happens all the same."""
    gate = threading.Event()

    def wait(transaction: Transaction) -> int:
        gate.wait(IN_TIME_S)
        return advance(transaction)

    with running(tmp_path) as writer:
        first: Future[int] = writer.submit(wait)
        wait_until(first.running)
        second = writer.submit(advance)
        assert second.cancel()
        assert not first.cancel()
        gate.set()
        assert first.result(IN_TIME_S) == 1
        assert writer.submit(advance).result(IN_TIME_S) == 2


def test_a_task_runs_again_when_it_says(tmp_path: Path) -> None:
    """At once while it has more to do, then after its interval, and within moments when it is woken."""
    count: list[int] = []

    def run() -> float | None:
        count.append(len(count))
        return 0.0 if len(count) < 3 else None

    task = Task("count", math.inf, run)
    with running(tmp_path, task) as writer:
        wait_until(lambda: len(count) == 3)
        writer.submit(advance).result(IN_TIME_S)
        assert len(count) == 3
        writer.wake(task)
        wait_until(lambda: len(count) == 4)


@pytest.mark.parametrize(("error", "times"), [(refusal("disk I/O error"), 1), (RuntimeError("a bug"), 7)])
def test_a_failing_task_is_logged_and_tried_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception, times: int
) -> None:
    """Neither ends the thread or the changes; a disk that stays full does not fill the journal too."""
    count: list[int] = []
    with running(tmp_path, Task("fragile", 0.01, counting(count, error, failures=7))) as writer:
        wait_until(lambda: len(count) >= 9)
        assert writer.submit(advance).result(IN_TIME_S) == 1
    assert caplog.text.count("The task 'fragile' failed") == times


def test_closing_does_everything_that_waits(tmp_path: Path) -> None:
    """Changes that were handed in are done, each task runs once more, and the last work ends it."""
    count: list[int] = []
    last: list[float] = []
    with running(tmp_path, Task("count", 3600.0, counting(count))) as writer:
        wait_until(lambda: len(count) == 1)
        futures = [writer.submit(advance) for _ in range(50)]
        assert writer.close(IN_TIME_S, last.append)
        assert [future.result(0) for future in futures] == list(range(1, 51))
        assert (len(count), len(last)) == (2, 1)
        assert {file.name for file in (tmp_path / "state").iterdir()} == {DATABASE, LOCK_NAME}
        with pytest.raises(StateBusy, match="being closed"):
            writer.submit(advance)
        assert writer.close(IN_TIME_S, last.append)
        assert len(last) == 1


def test_closing_does_not_wait_for_a_hanging_disk(tmp_path: Path) -> None:
    """The close gives up after its time, and says so."""
    gate = threading.Event()
    with running(tmp_path) as writer:
        future = writer.submit(lambda _: gate.wait(IN_TIME_S))
        wait_until(future.running)
        late = writer.submit(advance)
        assert writer.close(-0.9, lambda _: None) is False
        with pytest.raises(StateBusy, match="closed before"):
            late.result(IN_TIME_S)
        gate.set()
