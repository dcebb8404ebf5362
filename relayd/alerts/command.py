"""Runs the operator's command (`alerts.command`) when an alert begins or ends."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import BinaryIO

import msgspec

from relayd.alerts.alert import Alert

RUN_S = 10.0
MAX_WAITING = 32
_PASSED_ON = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR")
"""Of the daemon's environment; everything else may be a secret, such as the provider's key."""
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

_log = logging.getLogger(__name__)


class Relay(msgspec.Struct, frozen=True):
    """Which relay tells of an alert."""

    instance: str
    address: str
    version: str


class AlertNews(msgspec.Struct, frozen=True):
    """The document that the command reads from its standard input."""

    text: str
    """One sentence for people."""
    event: str
    """`begin` or `end`."""
    alert: Alert
    relay: Relay

    @property
    def subject(self) -> str:
        """Event and alert, for the log."""
        return f"{self.event} of {self.alert.id}"


class AlertCommand:
    """Runs the command once for each piece of news, one after the other, in a thread.

    Its standard error goes where the daemon's goes. What takes longer than 10 s is killed.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="alerts-command")
        self._lock = threading.Lock()
        self._waiting = 0
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False

    def tell(self, command: Sequence[str], news: AlertNews) -> None:
        """Run the command with this soon; if too much waits already, only log it."""
        with self._lock:
            is_full = self._waiting >= MAX_WAITING
            self._waiting += not is_full
        if is_full:
            _log.warning("alerts.command: not run for the %s: %d others wait", news.subject, MAX_WAITING)
            return
        self._thread.submit(self._run, command, news)

    async def close(self) -> None:
        """Kill the command that runs, and drop what waits."""
        with self._lock:
            self._is_closed = True
            if self._process is not None:
                _kill(self._process)
        await asyncio.to_thread(self._thread.shutdown)

    # On the thread.

    def _run(self, command: Sequence[str], news: AlertNews) -> None:
        with self._lock:
            self._waiting -= 1
            if self._is_closed:
                _log.warning("alerts.command: not run for the %s: relayd stops", news.subject)
                return
            self._process = _start(command, news)
        if self._process is None:
            return
        try:
            status = self._process.wait(RUN_S)
        except subprocess.TimeoutExpired:
            _kill(self._process)
            self._process.wait()
            _log.error("alerts.command: killed after %g s, for the %s", RUN_S, news.subject)
        else:
            level = logging.WARNING if status else logging.INFO
            _log.log(level, "alerts.command: exit status %d for the %s", status, news.subject)
        finally:
            self._process = None


def _start(command: Sequence[str], news: AlertNews) -> subprocess.Popen[bytes] | None:
    """Start the command in a session of its own; None if it can't be run."""
    with _document(news) as document:
        try:
            return subprocess.Popen(  # noqa: S603 - the operator's own command
                command, stdin=document, stdout=subprocess.DEVNULL, env=_environment(), start_new_session=True
            )
        except OSError as error:
            _log.error(
                "alerts.command: %s can't be run for the %s: %s", command[0], news.subject, error.strerror
            )
            return None


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End it with all that it has started."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _document(news: AlertNews) -> BinaryIO:
    """Return the document as a file in memory: a program that does not read it breaks no pipe."""
    file = os.fdopen(os.memfd_create("alert"), "w+b")
    file.write(msgspec.json.format(msgspec.json.encode(news)) + b"\n")
    file.seek(0)
    return file


def _environment() -> dict[str, str]:
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    return {"PATH": _DEFAULT_PATH, **passed_on}
