"""What the kernel says of processes (proc(5), tty(4)), and the descriptors that it grants this one."""

from __future__ import annotations

import fcntl
import logging
import os
import resource
import signal
from collections.abc import Collection, Iterator
from contextlib import suppress
from pathlib import Path

_LISTENING = "0A"
_log = logging.getLogger(__name__)

_PER_STREAM = 3
"""A connection to the client, one to the provider, and a connection between two requests."""
_BESIDE_STREAMS = 512


def listening_process(port: int, proc: Path = Path("/proc")) -> str | None:
    """Return the process that listens on a TCP port, as `another relayd (pid 12)` or `nginx (pid 12)`.

    None if it cannot be seen: only root sees the descriptors of other users' processes.
    """
    sockets = {f"socket:[{inode}]" for inode in _listening_sockets(port, proc)}
    found = None
    for process in proc.glob("[0-9]*"):
        with suppress(OSError):  # it has gone meanwhile, or is another user's
            if _holds(process, sockets):
                # A socket of systemd's is open in systemd and in the service.
                if _is_relayd(process):
                    return f"another relayd (pid {process.name})"
                found = f"{(process / 'comm').read_text().strip()} (pid {process.name})"
    return found


def _holds(process: Path, sockets: Collection[str]) -> bool:
    """Return whether one of a process's descriptors is one of these sockets. Raises OSError."""
    for descriptor in (process / "fd").iterdir():
        with suppress(FileNotFoundError):
            if str(descriptor.readlink()) in sockets:
                return True
    return False


def _listening_sockets(port: int, proc: Path) -> Iterator[str]:
    """Yield the inodes of the sockets that listen on a TCP port."""
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in (proc / "net" / table).read_text().splitlines()[1:]:
                _, local, _, state, _, _, _, _, _, inode, *_ = line.split()
                if state == _LISTENING and int(local.rpartition(":")[2], 16) == port:
                    yield inode


def _is_relayd(process: Path) -> bool:
    """Return whether a process was started as `relayd` or `python -m relayd`."""
    words = (process / "cmdline").read_text(errors="replace").split("\0")
    return any(Path(word).name == "relayd" for word in words[:4])


def has_terminal() -> bool:
    """Return whether this process has a controlling terminal that has not been closed (tty(4))."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


class Terminal:
    """The terminal that this process was started at, if it is to end with it.

    With SIGHUP ignored (nohup), the process is to outlive its terminal.
    """

    def __init__(self) -> None:
        self._is_attached = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN and has_terminal()

    def is_gone(self) -> bool:
        """Return whether it was closed, which is one of the two meanings of SIGHUP."""
        return self._is_attached and not has_terminal()


def ask_for_descriptors(max_streams: int) -> None:
    """Make room for `max_streams`, and warn if the hard limit does not allow it."""
    wanted = _PER_STREAM * max_streams + _BESIDE_STREAMS
    possible = reserve_descriptors(wanted)
    if possible < wanted:
        _log.warning(
            "server.max_streams %d can take %d descriptors, but this process may open only %d; raise"
            " LimitNOFILE of its unit (ulimit -Hn elsewhere), or lower max_streams",
            max_streams,
            wanted,
            possible,
        )


def reserve_descriptors(wanted: int) -> int:
    """Raise the soft limit towards `wanted`, and grow the kernel's table of descriptors now.

    Call this before the first thread: the table starts with 64 entries and doubles when it is full, and in a
    process with threads the call that fills it (an accept in the loop) waits for an RCU grace period, 10 to
    40 ms each time (Linux, fs/file.c, expand_fdtable). An entry takes 8 bytes.

    Returns:
        the number of descriptors that this process may open, at most `wanted`.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    possible = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < possible:
        resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
    some = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.close(fcntl.fcntl(some, fcntl.F_DUPFD_CLOEXEC, possible - 1))
    finally:
        os.close(some)
    return possible
