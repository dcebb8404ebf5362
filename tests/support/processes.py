"""What the kernel says of other processes (proc(5))."""

from __future__ import annotations

import os
from pathlib import Path

_STATE, _PARENT, _USER_TICKS, _SYSTEM_TICKS, _START_TIME = 0, 1, 11, 12, 19
"""Places in /proc/PID/stat, after the name."""


def state(pid: int) -> str:
    """Return a process's state: `T` is stopped, `Z` a zombie, and `X` one that is gone."""
    return (_stat(pid) or ["X"])[_STATE]


def cpu_s(pid: int) -> float:
    """Return the CPU time that a process has used."""
    stat = _stat(pid)
    return (int(stat[_USER_TICKS]) + int(stat[_SYSTEM_TICKS])) / os.sysconf("SC_CLK_TCK")


def children(pid: int) -> list[int]:
    """Return the process ids of a process's children, oldest first.

    The kernel's own list of them may lack some while processes end (proc(5), children).
    """
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        stat = _stat(int(process.name))
        if stat and int(stat[_PARENT]) == pid:
            found.append((int(stat[_START_TIME]), int(process.name)))
    return [child for _, child in sorted(found)]


def _stat(pid: int) -> list[str]:
    """Return the fields from the state on; none if the process is gone."""
    try:
        # The name before them may hold anything, a parenthesis too.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []
