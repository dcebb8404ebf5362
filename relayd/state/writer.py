"""The one thread that writes: durable changes at once, the request log and maintenance between them."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

from relayd.state.database import Database, Transaction
from relayd.state.engine import EngineError
from relayd.state.errors import StateBusy

GROUP_S = 0.05
"""How long the first record of a group waits for more; with the commit this stays below 100 ms."""
_RETRY_S = 1.0
_MAX_WAIT_S = 3600.0

T = TypeVar("T")
_log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Task:
    """Work that comes back, done in small pieces between the changes.

    `run` returns the seconds until it wants to run again, or None for the usual interval (an infinite
    interval: only when it is woken).
    """

    name: str
    every_s: float
    run: Callable[[], float | None]
    due: float = 0.0
    is_failing: bool = False


@dataclass(frozen=True, slots=True)
class _Call:
    function: Callable[[], Any]
    future: Future[Any]


class Writer:
    """Owns the writing connection and its thread, from `start` to `close`."""

    def __init__(self, database: Database) -> None:
        self.engine = database.engine
        self._database = database
        self._inbox: queue.SimpleQueue[_Call | Task | None] = queue.SimpleQueue()
        self._checkpoint = Task("checkpoint", 1.0, database.connection.checkpoint)
        self._tasks: list[Task] = []
        self._last: Callable[[float], None] | None = None
        self._closing = False
        self._close_by = 0.0
        # A daemon thread: a disk that hangs must not keep the process from ending.
        self._thread = threading.Thread(target=self._run, name="relayd-state-writer", daemon=True)

    def start(self, tasks: list[Task]) -> None:
        """Start the thread, which runs each task when it is due."""
        self._tasks = [*tasks, self._checkpoint]
        self._thread.start()

    def wake(self, task: Task) -> None:
        """Run the task within 50 ms. Cheap, for the event loop."""
        self._inbox.put(task)

    def submit(self, work: Callable[[Transaction], T], *, durable: bool = True) -> Future[T]:
        """Run `work` in a transaction of its own, by default a durable one, on the thread.

        The future raises what `work` raised, or `EngineError`; then nothing has changed.

        Raises:
            StateBusy: the writer is closed.
        """

        def change() -> T:
            with self._database.transaction(durable=durable) as transaction:
                return work(transaction)

        future = self.call(change)
        if durable:
            self.wake(self._checkpoint)
        return future

    def call(self, function: Callable[[], T]) -> Future[T]:
        """Run a function on the thread, before any task.

        Raises:
            StateBusy: the writer is closed.
        """
        if self._closing:
            raise StateBusy("The state is being closed.")
        future: Future[T] = Future()
        self._inbox.put(_Call(function, future))
        return future

    def close(self, timeout_s: float, last: Callable[[float], None]) -> bool:
        """Do what waits, run each task and `last` once more, end the thread, close the connection. Blocks.

        Args:
            timeout_s: how long the thread may take.
            last: runs on the thread, and is given the monotonic time at which it should end.

        Returns:
            False if that took longer.
        """
        if not self._closing:
            self._last = last
            self._close_by = time.monotonic() + timeout_s
            self._closing = True
            self._inbox.put(None)
            self._thread.join(timeout_s + 1.0)
            # A call that came while the thread ended.
            while not self._inbox.empty():
                item = self._inbox.get()
                if isinstance(item, _Call) and item.future.set_running_or_notify_cancel():
                    item.future.set_exception(StateBusy("The state was closed before this change began."))
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._closing or not self._inbox.empty():
            item = self._next_item()
            if isinstance(item, _Call):
                _do(item)
            elif item is not None:
                item.due = min(item.due, time.monotonic() + GROUP_S)
            task = min(self._tasks, key=lambda task: task.due)
            if task.due <= time.monotonic():
                self._run_task(task)
        for task in self._tasks:
            self._run_task(task)
        if self._last is not None:
            self._last(self._close_by)
        try:
            self._database.close()
        except EngineError as error:
            _log.warning("Closing the database failed: %s", error)

    def _next_item(self) -> _Call | Task | None:
        due = min(task.due for task in self._tasks)
        try:
            return self._inbox.get(timeout=max(0.0, min(due - time.monotonic(), _MAX_WAIT_S)))
        except queue.Empty:
            return None

    def _run_task(self, task: Task) -> None:
        delay_s: float | None = min(task.every_s, _RETRY_S)
        try:
            delay_s = task.run()
            task.is_failing = False
        except EngineError as error:
            # Logged once: a disk that is full stays so for a while.
            if not task.is_failing:
                _log.warning("The task '%s' failed and will be tried again: %s", task.name, error)
            task.is_failing = True
        except Exception:  # noqa: BLE001 - a bug in a task must not end the thread: changes of keys need it
            _log.exception("The task '%s' failed", task.name)
        task.due = time.monotonic() + (task.every_s if delay_s is None else delay_s)


def _do(call: _Call) -> None:
    if not call.future.set_running_or_notify_cancel():
        return
    try:
        result = call.function()
    except Exception as error:  # noqa: BLE001 - it belongs to the caller, through the future
        call.future.set_exception(error)
    else:
        call.future.set_result(result)
