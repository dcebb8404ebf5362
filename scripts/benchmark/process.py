"""Starts a program on one core, and reads what it costs from /proc."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_STOP_S = 10


class DidNotStart(Exception):
    """The program ended, or did not listen in time; the message has the end of its log."""


@dataclass(frozen=True, slots=True)
class Cores:
    """Who runs where: the relay alone on one core, everything else on the other."""

    relay: int
    load: int

    @classmethod
    def of_this_machine(cls) -> Cores:
        """The last two cores that this process may use.

        Raises:
            DidNotStart: there is only one, so that the load would be measured with the relay.
        """
        usable = sorted(os.sched_getaffinity(0))
        if len(usable) < 2:  # noqa: PLR2004 - one for the relay, one for the load
            raise DidNotStart("This machine lets us use one core; the benchmark needs two.")
        return cls(relay=usable[-1], load=usable[-2])


class Program:
    """A running program and its children.

    Args:
        command: what to run.
        core: where, for itself and its children.
        env: the whole environment.
        folder: its working directory, where its output goes too.
    """

    def __init__(self, command: Sequence[str], *, core: int, env: Mapping[str, str], folder: Path) -> None:
        self._log = folder / "output.log"
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {core})
        try:
            with self._log.open("wb") as log:
                self._process = subprocess.Popen(
                    command, env=dict(env), cwd=folder, stdout=log, stderr=log, start_new_session=True
                )
        finally:
            os.sched_setaffinity(0, before)
        go_ahead(self._process.pid)

    def wait_listening(self, port: int, timeout_s: float) -> None:
        """Wait until it accepts connections.

        Raises:
            DidNotStart: it does not.
        """
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            if self._process.poll() is not None:
                raise DidNotStart(f"it ended with status {self._process.returncode}: {self._log_end()}")
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        raise DidNotStart(f"it did not listen within {timeout_s:g} s: {self._log_end()}")

    def _log_end(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return " / ".join(lines[-3:])[-300:] or "it said nothing"

    def cpu_s(self) -> float:
        """CPU seconds of the program and its children, those that ended included."""
        return sum(_cpu_ticks(pid) for pid in self._pids()) / _TICKS_PER_S

    def waited_s(self) -> float:
        """Seconds that its threads were ready and their core was busy: what others on the machine cost us."""
        return sum(_waited_ns(pid) for pid in self._pids()) / 1e9

    def resident_mib(self) -> float:
        """Resident memory of the program and its children."""
        return sum(_resident_pages(pid) for pid in self._pids()) * _PAGE_BYTES / 2**20

    def _pids(self) -> list[int]:
        found, waiting = [], [self._process.pid]
        while waiting:
            pid = waiting.pop()
            found.append(pid)
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                # A thread may end while its file is opened.
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    waiting += [int(child) for child in children.read_text().split()]
        return found

    def stop(self) -> None:
        """End it and its children."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            try:
                os.killpg(self._process.pid, number)
            except ProcessLookupError:
                break
            try:
                self._process.wait(_STOP_S)
                break
            except subprocess.TimeoutExpired:
                continue
        self._process.wait()


def _cpu_ticks(pid: int) -> int:
    """User and system time, with that of children that were waited for (proc(5), stat 14 to 17)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15])


def _resident_pages(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1])


def _waited_ns(pid: int) -> int:
    waited = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            waited += int(path.read_text().split()[1])
    return waited


def machine_ticks() -> tuple[int, int]:
    """All ticks of all cores since the boot, and those that the hypervisor gave to others (proc(5))."""
    fields = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return sum(fields), fields[7]


def go_ahead(pid: int) -> None:
    """Let a session run before others on a shared machine, where `BENCH_AHEAD=1` asks for it (needs root)."""
    if os.environ.get("BENCH_AHEAD") == "1":
        Path(f"/proc/{pid}/autogroup").write_text("-19")


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])
