"""The one thread that writes: durable changes at once, request records in groups, chores when idle."""

from __future__ import annotations

import logging
import queue
import sqlite3
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from relayd.state.batch import Progress
from relayd.state.errors import StateBusy
from relayd.state.transactor import Transactor, Tx

GROUP_S = 0.05
"""How long the first record of a group waits for company; with the commit this stays below 100 ms."""
RETRY_S = 0.25
IDLE_S = 3600.0

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Records(Protocol):
    """Where waiting records come from: `BatchWriter`."""

    def write(self, transactor: Transactor) -> Progress:
        """Commit one batch, if anything waits."""
        ...


@dataclass(slots=True)
class Chore:
    """Upkeep in small pieces: `run` does one and says whether more is to do now."""

    name: str
    every_s: float
    run: Callable[[Transactor], bool]
    due: float = 0.0
    is_failing: bool = False


@dataclass(frozen=True, slots=True)
class _Job:
    work: Callable[[Tx], Any]
    after: Callable[[Any], None] | None
    future: Future[Any]


class Writer:
    """Owns the writing connection and its thread, from `start` to `close`."""

    def __init__(self, transactor: Transactor) -> None:
        self._transactor = transactor
        self._inbox: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._awake = False
        self._records: Records | None = None
        self._records_due: float | None = None
        self._chores: list[Chore] = []
        self._closing = False
        self._close_by = 0.0
        # A daemon thread: a disk that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="relayd-state-writer", daemon=True)

    def start(self, records: Records, chores: list[Chore]) -> None:
        """Start the thread."""
        self._records = records
        self._chores = chores
        self._thread.start()

    def wake(self) -> None:
        """Records wait. Cheap, for the event loop; a group is written within 100 ms."""
        if not self._awake:
            self._awake = True
            self._inbox.put(None)

    def hurry(self, chore: Chore) -> None:
        """Do this chore as soon as nothing else waits."""
        chore.due = 0.0
        self._inbox.put(None)

    def submit(self, work: Callable[[Tx], T], after: Callable[[T], None] | None = None) -> Future[T]:
        """Run `work` in a durable transaction of its own; `after(result)` follows the commit.

        `after` runs on the writer thread before the future is done, so it happens also when nobody
        waits any more. The future raises what `work` raised, or `sqlite3.Error`; then nothing changed.

        Raises:
            StateBusy: the writer is closed.
        """
        if self._closing:
            raise StateBusy("The state is being closed.")
        future: Future[T] = Future()
        self._inbox.put(_Job(work, after, future))
        return future

    def close(self, timeout_s: float, last: Callable[[Transactor], bool]) -> bool:
        """Write what waits, do every chore and `last`, and end the thread. Blocks.

        False when that took longer or failed.
        """
        if self._closing:
            return not self._thread.is_alive()
        self._chores.append(Chore("sign off", IDLE_S, last, due=time.monotonic() + IDLE_S))
        self._close_by = time.monotonic() + timeout_s
        self._closing = True
        self._inbox.put(None)
        self._thread.join(timeout_s + 1.0)
        while not self._inbox.empty():
            job = self._inbox.get()
            if job is not None and job.future.set_running_or_notify_cancel():
                job.future.set_exception(StateBusy("The state was closed before this change began."))
        return not self._thread.is_alive() and self._records_due is None

    def _run(self) -> None:
        while not self._closing or not self._inbox.empty():
            job = self._next_job()
            if job is not None:
                self._do_job(job)
            elif self._awake and self._records_due is None:
                self._records_due = time.monotonic() + GROUP_S
            if self._records_due is not None and time.monotonic() >= self._records_due:
                self._records_due = self._write_records()
            elif self._inbox.empty():
                self._do_chore()
        self._finish()

    def _next_job(self) -> _Job | None:
        now = time.monotonic()
        due = min((chore.due for chore in self._chores), default=now + IDLE_S)
        if self._records_due is not None:
            due = min(due, self._records_due)
        try:
            return self._inbox.get(timeout=max(0.0, due - now))
        except queue.Empty:
            return None

    def _do_job(self, job: _Job) -> None:
        if not job.future.set_running_or_notify_cancel():
            return
        try:
            result = self._transactor.run(job.work, durable=True, after=job.after)
        except Exception as error:  # noqa: BLE001 - it belongs to the caller, through the future
            job.future.set_exception(error)
        else:
            job.future.set_result(result)

    def _write_records(self) -> float | None:
        """Write one batch; when to write the next, or None when nothing waits."""
        if self._records is None:
            return None
        # Before anything is taken: who comes later wakes us again.
        self._awake = False
        try:
            progress = self._records.write(self._transactor)
        except Exception:  # noqa: BLE001 - whatever it is
            # A fault of ours must not end the thread: changes of the ring depend on it.
            _log.exception("Writing the request log failed")
            progress = Progress.FAILED
        if progress is Progress.DONE:
            return None
        return time.monotonic() + (RETRY_S if progress is Progress.FAILED else 0.0)

    def _do_chore(self) -> None:
        for chore in self._chores:
            if chore.due <= time.monotonic():
                self._run_chore(chore)
                return

    def _run_chore(self, chore: Chore) -> None:
        more = False
        try:
            more = chore.run(self._transactor)
            chore.is_failing = False
        except sqlite3.Error as error:
            # Told once: a disk that is full stays so for a while.
            if not chore.is_failing:
                _log.warning("The chore '%s' failed and will be tried again: %s", chore.name, error)
            chore.is_failing = True
        except Exception:  # noqa: BLE001 - whatever it is
            # As in _write_records.
            _log.exception("The chore '%s' failed", chore.name)
        chore.due = time.monotonic() + (0.0 if more else chore.every_s)

    def _finish(self) -> None:
        """Write what is left until the time is over, do each chore once more, let go of the file."""
        due = self._write_records()
        while due is not None and time.monotonic() < self._close_by:
            time.sleep(max(0.0, due - time.monotonic()))
            due = self._write_records()
        self._records_due = due
        for chore in self._chores:
            self._run_chore(chore)
        try:
            self._transactor.connection.close()
        except sqlite3.Error as error:
            _log.warning("Closing the database failed: %s", error)
