"""Runs the operator's command (`alerts.command`) when an alert begins or ends."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import signal
import subprocess
import threading
from collections.abc import Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import BinaryIO

import msgspec

from relayd.alerts.alert import Alert

RUN_S = 10.0
END_WITHIN_S = 2.0
"""How long the stop of the daemon waits for a killed command."""
MAX_WAITING = 32
_PASSED_ON = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR")
"""Of the daemon's environment; everything else may be a secret, such as the provider's key."""
_DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_AFTER_PROGRAM = re.compile(r"[^\w./+@-]")

_log = logging.getLogger(__name__)


def program_of(command: Sequence[str]) -> str:
    """Return what may be shown of a command: its program, without what else was written into the same text.

    That may hold a secret, such as the token of a webhook's address.
    """
    return _AFTER_PROGRAM.split(command[0], maxsplit=1)[0]


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
        self._waiting: SimpleQueue[tuple[Sequence[str], AlertNews] | None] = SimpleQueue()
        # A daemon thread: a program on a disk that does not answer must not keep the process alive.
        self._thread = threading.Thread(target=self._run_all, name="alerts-command", daemon=True)
        self._lock = threading.Lock()
        """Held for moments only, never while a program starts: the event loop takes it."""
        self._process: subprocess.Popen[bytes] | None = None
        self._is_closed = False

    def tell(self, command: Sequence[str], news: AlertNews) -> None:
        """Run the command with this soon; if too much waits already, only log it."""
        if self._waiting.qsize() >= MAX_WAITING:
            _log.warning("alerts.command: not run for the %s: %d others wait", news.subject, MAX_WAITING)
            return
        if self._thread.ident is None:
            self._thread.start()
        self._waiting.put((command, news))

    async def close(self) -> None:
        """Kill the command that runs, and drop what waits; what can't be killed is left behind."""
        with self._lock:
            self._is_closed = True
            if self._process is not None:
                _kill(self._process)
        if self._thread.ident is None:
            return
        self._waiting.put(None)
        await asyncio.to_thread(self._thread.join, END_WITHIN_S)
        if self._thread.is_alive():
            _log.warning("alerts.command: it neither starts nor ends; relayd stops without it")

    # On the thread.

    def _run_all(self) -> None:
        while (item := self._waiting.get()) is not None:
            command, news = item
            if self._is_closed:
                _log.warning("alerts.command: not run for the %s: relayd stops", news.subject)
                continue
            try:
                self._run(command, news)
            except OSError as error:
                program = program_of(command)
                _log.error(
                    "alerts.command: %s can't be run for the %s: %s", program, news.subject, error.strerror
                )
            except Exception as error:  # noqa: BLE001 - the next one is to be run
                _log.error("alerts.command: failed for the %s: %s", news.subject, type(error).__name__)

    def _run(self, command: Sequence[str], news: AlertNews) -> None:
        process = _start(command, news)
        with self._lock:
            self._process = process
            if self._is_closed:
                _kill(process)
        try:
            status = process.wait(RUN_S)
        except subprocess.TimeoutExpired:
            _kill(process)
            process.wait()
            _log.error("alerts.command: killed after %g s, for the %s", RUN_S, news.subject)
        else:
            level = logging.WARNING if status else logging.INFO
            _log.log(level, "alerts.command: exit status %d for the %s", status, news.subject)
        finally:
            with self._lock:
                self._process = None


def _start(command: Sequence[str], news: AlertNews) -> subprocess.Popen[bytes]:
    """Start the command in a session of its own; raises OSError if it can't be run."""
    with _document(news) as document:
        return subprocess.Popen(  # noqa: S603 - the operator's own command
            command, stdin=document, stdout=subprocess.DEVNULL, env=_environment(), start_new_session=True
        )


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
