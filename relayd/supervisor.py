"""Several workers on the same sockets: starts them, watches them, replaces those that die, and ends them.

The supervisor itself serves nothing. It has no thread, no event loop and no database, so that no fork copies
one. A worker is to its supervisor what a daemon is to systemd: it sends the messages of sd_notify(3).
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import NoReturn

from relayd.processes import Terminal
from relayd.public.listener import Balance, Share
from relayd.systemd import ServiceManager

_log = logging.getLogger(__name__)

_WATCHDOG_S = 30.0
"""As in the shipped unit, where no service manager says otherwise."""
_BEATS_A_PERIOD = 6
_MAX_SILENT_TICKS = _BEATS_A_PERIOD // 2
"""A stuck worker is killed when half of the period is over: before systemd would kill all of them."""
_SHORT_LIFE_S = 10.0
_MAX_RESTART_DELAY_S = 30.0
_MAX_START_S = 60.0
"""How long a replacement may take to serve. The first worker of all brings the tables up to date first."""
_MAX_FAILED_STARTS = 5
_MAX_MESSAGE_BYTES = 4096
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)


class Order(StrEnum):
    """What a supervisor tells a worker."""

    DRAIN = "drain"
    FORCE = "force"
    RELOAD = "reload"


class SupervisorLink(ServiceManager):
    """A worker's end of the connection to its supervisor, which takes the place of systemd and of signals.

    Args:
        sock: connected to the supervisor; closed here.
        beat_every_s: how often the supervisor wants a sign of life.
        number: of this worker, from 1.
        share: of this worker, of all connections.
        is_first: whether no worker was there before, in this run of the supervisor.
        has_reloaded: whether the configuration was read again since the supervisor's start.
    """

    def __init__(
        self,
        sock: socket.socket,
        *,
        beat_every_s: float,
        number: int,
        share: Share,
        is_first: bool,
        has_reloaded: bool,
    ) -> None:
        super().__init__(sock, ping_every_s=beat_every_s)
        self._link = sock
        self.number = number
        self.share = share
        self.is_first = is_first
        self.has_reloaded = has_reloaded

    def listen(self, on_order: Callable[[Order], object]) -> None:
        """Take orders on the running loop; a supervisor that died wants the worker to drain."""
        asyncio.get_running_loop().add_reader(self._link, self._read, on_order)

    def _read(self, on_order: Callable[[Order], object]) -> None:
        order = _received(self._link)
        if order:
            on_order(Order(order))
        elif order is not None:
            _log.error("the supervisor has died: stopping")
            self.close()
            on_order(Order.DRAIN)

    def close(self) -> None:
        """Take no orders and give no signs of life any more."""
        if self._link.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._link)
        super().close()


def _received(link: socket.socket) -> str | None:
    """Return the next message; empty at the end of the other process, None if there is none yet."""
    try:
        return link.recv(_MAX_MESSAGE_BYTES).decode()
    except BlockingIOError:
        return None
    except ConnectionError:
        return ""


@dataclass(slots=True, eq=False)
class _Worker:
    """The place of one worker, and the process that has it now."""

    number: int
    pid: int = 0
    """0 while there is none."""
    link: socket.socket | None = None
    started_at_s: float = 0.0
    is_ready: bool = False
    is_reloading: bool = False
    silent_ticks: int = 0
    short_lives: int = 0
    """How many processes in a row have lived shortly."""
    start_at_s: float = 0.0
    """When the next process is due, while there is none."""


class Supervisor:
    """Runs workers until a signal or the operator ends them.

    Args:
        count: of workers.
        work: serves, in a process of its own, until it is told to stop; returns the exit status.
        sockets: what clients connect to; closed here when they are to be refused.
        manager: told when all serve and when they stop; closed here.
        watchdog_s: how long systemd waits for a sign of life before it kills all; None: it does not wait.
    """

    def __init__(
        self,
        count: int,
        work: Callable[[SupervisorLink], int],
        sockets: Sequence[socket.socket],
        manager: ServiceManager,
        *,
        watchdog_s: float | None,
    ) -> None:
        self._work = work
        self._sockets = sockets
        self._manager = manager
        self._is_watched = watchdog_s is not None
        self._tick_s = (watchdog_s or _WATCHDOG_S) / _BEATS_A_PERIOD
        self._workers = [_Worker(number) for number in range(1, count + 1)]
        self._balance = Balance(count)
        self._selector = selectors.DefaultSelector()
        self._terminal = Terminal()
        self._has_begun = False
        """Whether a worker has served: until then, the others wait."""
        self._is_announced = False
        self._has_reloaded = False
        self._is_stopping = False
        self._status = 0

    def run(self) -> int:
        """Return the exit status, when all workers have ended.

        Raises:
            OSError: no process can be made.
        """
        self._catch_signals()
        self._start(self._workers[0])
        next_tick_s = time.monotonic() + self._tick_s
        while self._is_needed():
            due_s = min([next_tick_s, *(worker.start_at_s for worker in self._missing())])
            for key, _ in self._selector.select(max(0.0, due_s - time.monotonic())):
                key.data()
            self._start_missing()
            if time.monotonic() >= next_tick_s:
                # Ticks are counted, not seconds: if the supervisor stood still, so may have the workers.
                next_tick_s = time.monotonic() + self._tick_s
                self._tick()
        os.close(signal.set_wakeup_fd(-1))
        self._close_selector()
        self._manager.close()
        return self._status

    def _close_selector(self) -> None:
        """Close what it waits for as well: the signals' socket, and the links of all workers."""
        self._selector.close()
        self._signals.close()
        for worker in self._workers:
            if worker.link is not None:
                worker.link.close()

    def _is_needed(self) -> bool:
        return not self._is_stopping or any(worker.pid for worker in self._workers)

    # Signals.

    def _catch_signals(self) -> None:
        """Let each signal wake `select`."""
        self._signals, written = socket.socketpair()
        written.setblocking(False)  # noqa: FBT003 - the standard library's signature
        self._selector.register(self._signals, selectors.EVENT_READ, self._on_signals)
        signal.set_wakeup_fd(written.detach())
        for number in _SIGNALS:
            signal.signal(number, lambda *_: None)

    def _on_signals(self) -> None:
        for number in self._signals.recv(_MAX_MESSAGE_BYTES):
            if number == signal.SIGCHLD:
                self._reap()
            elif number != signal.SIGHUP:
                self._stop()
            elif not self._terminal.is_gone():
                self._reload()
            elif not self._is_stopping:
                _log.warning("the terminal was closed: stopping")
                self._stop()

    def _reload(self) -> None:
        """Let all read the configuration again, also those that have not begun to serve."""
        self._has_reloaded = True
        if self._is_stopping:
            return
        if self._is_announced:
            self._manager.reloading()
        for worker in self._workers:
            worker.is_reloading = worker.link is not None
        self._tell_all(Order.RELOAD)

    def _stop(self) -> None:
        """Let all drain; if they do already, end their open streams."""
        if self._is_stopping:
            self._tell_all(Order.FORCE)
            return
        self._is_stopping = True
        for sock in self._sockets:
            sock.close()
        self._tell_all(Order.DRAIN)
        for worker in self._workers:
            self._on_messages(worker)
            if worker.pid and not worker.is_ready:
                # It serves no request yet, and what it writes to disk is whole at every moment.
                os.kill(worker.pid, signal.SIGKILL)

    def _tell_all(self, order: Order) -> None:
        for worker in self._workers:
            self._tell(worker, order)

    @staticmethod
    def _tell(worker: _Worker, order: Order) -> None:
        if worker.link is not None:
            # A worker that does not read is stuck or dead; `_tick` and `_reap` see to that.
            with suppress(OSError):
                worker.link.send(order.encode())

    # Starts and ends.

    def _missing(self) -> list[_Worker]:
        """Return the workers that are to be started."""
        if self._is_stopping or not self._has_begun:
            return []
        return [worker for worker in self._workers if not worker.pid]

    def _start_missing(self) -> None:
        for worker in self._missing():
            if worker.start_at_s <= time.monotonic():
                try:
                    self._start(worker)
                except OSError as error:
                    _log.error("worker %d can't be started: %s", worker.number, error.strerror or error)
                    self._postpone(worker)

    def _start(self, worker: _Worker) -> None:
        # Also of a start that fails: the next one is due later and later.
        worker.started_at_s = time.monotonic()
        # Not a pipe: each message is read as it was sent, and the end of either process is seen.
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for sock in (ours, theirs):
            sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
        # A signal for the worker may not reach the supervisor's handlers, which it has until it has its own.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            pid = os.fork()
            if pid == 0:
                ours.close()
                self._become(worker, theirs)
        except OSError:
            ours.close()
            theirs.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        theirs.close()
        worker.pid, worker.link = pid, ours
        self._selector.register(ours, selectors.EVENT_READ, lambda: self._on_messages(worker))

    def _become(self, worker: _Worker, link: socket.socket) -> NoReturn:
        """Do the work of a worker, in its process."""
        status = 1
        try:
            os.close(signal.set_wakeup_fd(-1))
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            # A terminal sends Ctrl-C, and systemd SIGTERM, to all processes: the supervisor counts them.
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                signal.signal(number, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            self._close_selector()
            status = self._work(
                SupervisorLink(
                    link,
                    beat_every_s=self._tick_s,
                    number=worker.number,
                    share=self._balance.share(worker.number),
                    is_first=not self._has_begun,
                    has_reloaded=self._has_reloaded,
                )
            )
        except BaseException:  # noqa: BLE001 - nothing of it may reach the supervisor's code
            _log.exception("worker %d failed", worker.number)
        finally:
            os._exit(status)

    def _reap(self) -> None:
        """Take note of each process that has ended; as process 1 of a container, of other ones, too."""
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                for worker in self._workers:
                    if worker.pid == ended[0]:
                        self._on_messages(worker)
                        self._on_end(worker, os.waitstatus_to_exitcode(ended[1]))

    def _on_end(self, worker: _Worker, status: int) -> None:
        pid, worker.pid = worker.pid, 0
        self._unlink(worker)
        self._balance.share(worker.number).withdraw()
        if worker.is_reloading:
            self._end_reload(worker)
        if self._is_stopping:
            if worker.is_ready and status:
                self._status = 1
        elif not self._has_begun:
            # It has said why. The others would say the same.
            self._is_stopping, self._status = True, 1
        else:
            self._postpone(worker)
            _log.error(
                "worker %d (pid %d) ended with %s; another takes its place",
                worker.number,
                pid,
                f"status {status}" if status >= 0 else signal.Signals(-status).name,
            )
            if worker.short_lives >= _MAX_FAILED_STARTS and not any(
                other.is_ready for other in self._workers
            ):
                _log.error("no worker can be started: giving up")
                self._status = 1
                self._stop()
        worker.is_ready = False
        worker.silent_ticks = 0

    def _postpone(self, worker: _Worker) -> None:
        """Set when the next process of a worker is due: at once, but later and later if they all die soon."""
        now_s = time.monotonic()
        worker.short_lives = worker.short_lives + 1 if now_s - worker.started_at_s < _SHORT_LIFE_S else 1
        delay_s = 0.0 if worker.short_lives == 1 else 2.0 ** (worker.short_lives - 2)
        worker.start_at_s = now_s + min(delay_s, _MAX_RESTART_DELAY_S)

    def _unlink(self, worker: _Worker) -> None:
        if worker.link is not None:
            self._selector.unregister(worker.link)
            worker.link.close()
            worker.link = None

    # What the workers say.

    def _on_messages(self, worker: _Worker) -> None:
        while worker.link is not None:
            message = _received(worker.link)
            if message is None:
                return
            if message:
                self._on_message(worker, message)
            else:
                self._unlink(worker)

    def _on_message(self, worker: _Worker, message: str) -> None:
        match message.partition("\n")[0]:
            case "WATCHDOG=1":
                worker.silent_ticks = 0
            case "READY=1" if "STATUS=" in message:
                self._on_ready(worker, message)
            case "READY=1":
                self._end_reload(worker)
            case "RELOADING=1":
                self._on_reloading(worker, message)
            case "STOPPING=1":
                if not self._is_stopping:
                    # The operator told one of them.
                    self._stop()
                self._manager.notify(message)

    def _on_ready(self, worker: _Worker, message: str) -> None:
        worker.is_ready = self._has_begun = True
        worker.silent_ticks = 0
        _log.info("worker %d (pid %d) serves", worker.number, worker.pid)
        if not self._is_announced and all(other.is_ready for other in self._workers):
            self._is_announced = True
            _log.info("all %d workers serve", len(self._workers))
            self._manager.notify(message)

    def _on_reloading(self, worker: _Worker, message: str) -> None:
        """Pass on what the operator told those that serve: the others cannot be asked yet."""
        is_first = not any(other.is_reloading for other in self._workers)
        worker.is_reloading = self._has_reloaded = True
        if is_first and self._is_announced:
            self._manager.notify(message)
        if is_first and worker.is_ready:
            for other in self._workers:
                if not other.is_ready and other.link is not None:
                    other.is_reloading = True
                    self._tell(other, Order.RELOAD)

    def _end_reload(self, worker: _Worker) -> None:
        worker.is_reloading = False
        if self._is_announced and not any(other.is_reloading for other in self._workers):
            self._manager.reloaded()

    def _tick(self) -> None:
        """Kill each worker that was silent for half of the period; while there is none, ping systemd.

        One that has closed its link while all stop writes its last records, and is not stuck.
        """
        for worker in self._workers:
            if worker.pid and self._has_begun and not (self._is_stopping and worker.link is None):
                worker.silent_ticks += 1
                if worker.silent_ticks == self._allowed_ticks(worker) + 1:
                    fault = "is stuck" if worker.is_ready else "does not begin to serve"
                    _log.error("worker %d (pid %d) %s: killing it", worker.number, worker.pid, fault)
                    os.kill(worker.pid, signal.SIGKILL)
        has_all = all(worker.silent_ticks <= self._allowed_ticks(worker) for worker in self._workers)
        if self._is_watched and self._is_announced and has_all:
            self._manager.ping()

    def _allowed_ticks(self, worker: _Worker) -> int:
        return _MAX_SILENT_TICKS if worker.is_ready else math.ceil(_MAX_START_S / self._tick_s)
