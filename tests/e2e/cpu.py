"""How long processes waited for a CPU: what a busy machine adds to any time that a test measures."""

from __future__ import annotations

import os
import time
from pathlib import Path


class Stopwatch:
    """Measures time less the time that this process and others were ready to run and did not.

    The figures are the kernel's, of each process's first thread (proc(5), schedstat). Waits at the same
    time are subtracted twice, so that a busy machine can only make a figure smaller.

    Args:
        pids: of the other processes that take part.
    """

    def __init__(self, *pids: int) -> None:
        self._pids = (os.getpid(), *pids)
        self.began_at = time.monotonic()
        self._waited_s = self._wait_s()

    def taken_s(self, ended_at: float) -> float:
        """Seconds from the making of this to a `time.monotonic()`, at least 0; call it soon after."""
        return max(0.0, ended_at - self.began_at - (self._wait_s() - self._waited_s))

    def _wait_s(self) -> float:
        return sum(_wait_ns(pid) for pid in self._pids) / 1e9


def _wait_ns(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1])
    except FileNotFoundError:
        # A kernel without CONFIG_SCHED_INFO: the plain time must do.
        return 0
