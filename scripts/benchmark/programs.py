"""Programs on one core, and what they cost according to the kernel."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import resource
import signal
import socket
import subprocess
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_HOST = "127.0.0.1"
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_STOP_TIMEOUT_S = 10
_MAX_DESCRIPTORS = 16_384


class CannotRunError(Exception):
    """A program cannot be installed or started; the message is one sentence with the reason."""


@dataclass(frozen=True, slots=True)
class Cores:
    """The core of the measured program, and the core of everything else."""

    measured: int
    load: int

    @classmethod
    def of_this_machine(cls) -> Cores:
        """Return the last two cores that this process may use.

        Raises:
            CannotRunError: there is only one.
        """
        usable = sorted(os.sched_getaffinity(0))
        if len(usable) < 2:  # noqa: PLR2004 - one for the relay, one for the load
            raise CannotRunError("The benchmark needs two cores, and this process may use only one.")
        return cls(measured=usable[-1], load=usable[-2])


@contextlib.contextmanager
def on_core(core: int) -> Iterator[None]:
    """Let programs that are started in this block run on one core only."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Program:
    """A running program and its children, with its output in `folder/output.log`.

    Args:
        command: what to run.
        core: where to run it.
        env: its whole environment.
        folder: its working directory.
    """

    def __init__(self, command: Sequence[str], *, core: int, env: Mapping[str, str], folder: Path) -> None:
        self._log = folder / "output.log"
        with on_core(core), self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command, env=dict(env), cwd=folder, stdout=log, stderr=log, process_group=0
            )

    def wait_listening(self, port: int, timeout_s: float) -> None:
        """Wait until the program accepts connections.

        Raises:
            CannotRunError: it ended, or did not listen in time.
        """
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            if self._process.poll() is not None:
                raise CannotRunError(f"It ended with status {self._process.returncode}: {self._log_end()}")
            with contextlib.suppress(OSError):
                socket.create_connection((_HOST, port), timeout=1).close()
                return
            time.sleep(0.05)
        raise CannotRunError(f"It did not listen within {timeout_s:g} s: {self._log_end()}")

    def _log_end(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return " / ".join(lines[-3:])[-300:] or "it printed nothing"

    def cpu_s(self) -> float:
        """Return the CPU seconds of the program and its running children."""
        return sum(cpu_s(pid) for pid in self._pids())

    def workers_cpu_s(self) -> dict[int, float]:
        """Return the CPU seconds of each worker by its process id; of the program itself if it has none."""
        program, *workers = self._pids()
        return {pid: cpu_s(pid) for pid in workers or [program]}

    def run_on(self, cores: Collection[int]) -> None:
        """Let all processes and threads of the program run on these cores, from now on."""
        for pid in self._pids():
            for task in Path(f"/proc/{pid}/task").iterdir():
                os.sched_setaffinity(int(task.name), cores)

    def resident_mib(self) -> float:
        """Return the resident memory of the program and its children."""
        return sum(map(resident_mib, self._pids()))

    def _pids(self) -> list[int]:
        found, unread = [], [self._process.pid]
        while unread:
            pid = unread.pop()
            found.append(pid)
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                    unread += [int(child) for child in children.read_text().split()]
        return found

    def stop(self) -> None:
        """End the program and its children."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_TIMEOUT_S)
                return


def cpu_s(pid: int) -> float:
    """Return user and system time of a process, in nanosecond steps; those of /proc are 10 ms long."""
    # The clock that clock_getcpuclockid(3) names; Linux, include/linux/posix-timers_types.h.
    return time.clock_gettime(~pid << 3 | 2)


def resident_mib(pid: int) -> float:
    """Return the resident memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE_BYTES / 2**20


def free_port() -> int:
    """Return a free port that no outgoing connection of the load can take meanwhile.

    Those use the ephemeral ports (ip(7), ip_local_port_range).
    """
    ephemeral_from = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = random.randrange(ephemeral_from // 2, ephemeral_from)  # noqa: S311 - nothing secret
        with contextlib.suppress(OSError), socket.socket() as sock:
            sock.bind((_HOST, port))
            return port


def reserve_descriptors() -> None:
    """Raise the descriptor limit and have the kernel grow the table now, not in the middle of a measurement.

    Growing it makes a process with threads wait 10 to 40 ms (Linux, fs/file.c, expand_fdtable).
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(_MAX_DESCRIPTORS, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    os.close(fcntl.fcntl(0, fcntl.F_DUPFD_CLOEXEC, wanted - 1))
