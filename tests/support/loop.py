"""The event loop of one async test: bounded, and strict about what the test leaves behind."""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import io
import logging
import re
import selectors
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import pytest
import uvloop

STRICT_LOGGERS = ("asyncio", "tornado")
"""Libraries whose ERROR records mean that a handler or a callback failed."""

ENDING_S = 10.0
"""How long tasks that are already ending may take after the test's last line."""

HARD_LIMIT_MARGIN_S = 30.0
"""How long after its timeout a test is ended by force."""

STUCK_CLOSE_S = 60.0
"""How long a loop may take to close until this process is ended, and its test reported as crashed."""


class Blocked(Exception):
    """The test could not be ended in an orderly way."""


class _JumpingSelector(selectors.DefaultSelector):
    """Never waits: if nothing is ready, its clock jumps to the next timer."""

    now_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "the test waits for what never comes"
            self.now_s += timeout
        return ready


class VirtualClockLoop(asyncio.SelectorEventLoop):
    """A loop whose time passes only while all wait: hours take no time, and no timer is ever late.

    For code that waits for nothing but timers and other tasks: neither sockets nor threads are waited for.
    """

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        """Return the virtual time, which begins at 0."""
        return self._jumping.now_s


class TestLoop:
    """Runs one async test, as pytest-tornasync's `io_loop`.

    A test fails when its loop meets an unhandled exception, when a library logs an error, when it leaves a
    task behind, and when it takes longer than its timeout.

    Args:
        loop_factory: makes the event loop.
    """

    __test__ = False

    def __init__(self, loop_factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop) -> None:
        self._problems: list[str] = []
        self._expected: list[re.Pattern[str]] = []
        self._runner = asyncio.Runner(loop_factory=loop_factory)
        self._runner.get_loop().set_exception_handler(self._on_exception)
        self._log = _ErrorLog(self._problems)

    def expect_error(self, pattern: str) -> None:
        """Let an error of the loop or of a library's log pass, once or more; it must come.

        Args:
            pattern: a regular expression that is searched in the error's text.
        """
        self._expected.append(re.compile(pattern))

    def run_sync(self, func: Callable[[], Awaitable[object]], timeout: float | None = None) -> None:
        """Run the test; this is what pytest-tornasync calls.

        Args:
            func: makes the test's coroutine.
            timeout: seconds; None means 60.
        """
        limit = timeout or 60.0
        self._log.attach()
        try:
            with self._hard_limit(limit + HARD_LIMIT_MARGIN_S):
                self._runner.run(self._bounded(func, limit))
        except BaseException as error:
            for problem in self._problems:
                error.add_note(f"also: {problem}")
            raise
        self._judge()

    def close(self) -> None:
        """Close the loop and judge what came to light since the test ended."""
        self._problems.clear()
        self._expected.clear()
        # uvloop's own close can wait for ever, in C, for the child process of a test that timed out.
        faulthandler.dump_traceback_later(STUCK_CLOSE_S, exit=True)
        try:
            with self._hard_limit(HARD_LIMIT_MARGIN_S):
                self._runner.close()
            gc.collect()
        finally:
            faulthandler.cancel_dump_traceback_later()
            self._log.detach()
        self._judge()

    @contextmanager
    def _hard_limit(self, limit: float) -> Iterator[None]:
        """End a loop that can't time itself out: it is blocked, or a task refuses to be cancelled."""
        loop = self._runner.get_loop()

        blocked = Blocked(f"the loop was blocked, or a task refused to end, for {limit:g} s")
        interrupted = False

        def interrupt(_signum: int, _frame: object) -> None:
            nonlocal interrupted
            interrupted = True
            loop.stop()
            raise blocked

        before = signal.signal(signal.SIGALRM, interrupt)
        signal.setitimer(signal.ITIMER_REAL, limit, HARD_LIMIT_MARGIN_S)
        try:
            yield
        except RuntimeError as stopped:
            if interrupted:
                raise blocked from stopped
            raise
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)

    async def _bounded(self, func: Callable[[], Awaitable[object]], limit: float) -> None:
        try:
            async with asyncio.timeout(limit) as bound:
                await func()
        except TimeoutError:
            if not bound.expired():
                raise
            pytest.fail(f"the test ran over its {limit:g} s\n{_stacks()}", pytrace=False)
        gc.collect()
        await self._note_leaked_tasks()

    async def _note_leaked_tasks(self) -> None:
        rest = asyncio.all_tasks() - {asyncio.current_task()}
        if rest:
            rest = (await asyncio.wait(rest, timeout=ENDING_S))[1]
        self._problems += [f"task left behind: {task!r}" for task in rest]

    def _on_exception(self, _loop: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
        error = context.get("exception")
        self._problems.append(f"the loop met an exception: {context.get('message')} {error!r}")

    def _judge(self) -> None:
        unexpected = [text for text in self._problems if not any(p.search(text) for p in self._expected)]
        missing = [p.pattern for p in self._expected if not any(p.search(text) for text in self._problems)]
        unexpected += [f"expected error did not come: {pattern}" for pattern in missing]
        if unexpected:
            pytest.fail("\n".join(unexpected), pytrace=False)


class _ErrorLog(logging.Handler):
    """Collects ERROR records of the strict loggers while attached."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(logging.ERROR)
        self._problems = problems

    def emit(self, record: logging.LogRecord) -> None:
        self._problems.append(f"logged by {record.name}: {self.format(record)}")

    def attach(self) -> None:
        for name in STRICT_LOGGERS:
            logging.getLogger(name).addHandler(self)

    def detach(self) -> None:
        for name in STRICT_LOGGERS:
            logging.getLogger(name).removeHandler(self)


def _stacks() -> str:
    """Where each task stands."""
    text = io.StringIO()
    for task in asyncio.all_tasks():
        task.print_stack(limit=6, file=text)
    return text.getvalue()
