"""How many descriptors this process may open: each stream takes two."""

from __future__ import annotations

import fcntl
import logging
import os
import resource

from relayd.public.lobby import MAX_KNOWN, MAX_STRANGERS

_log = logging.getLogger(__name__)

_A_STREAM = 2
_BESIDE_STREAMS = 512
_IN_THE_LOBBY = MAX_KNOWN + MAX_STRANGERS
"""What may wait there in a flood. It makes room where descriptors run out."""
MANY_DESCRIPTORS = 16_384
"""What a tool asks for that holds thousands of connections."""


def ask_for_descriptors(max_streams: int) -> None:
    """Make room for what so many streams can take, and say so where the hard limit does not let us."""
    wanted = _A_STREAM * max_streams + _BESIDE_STREAMS
    possible = reserve_descriptors(wanted + _IN_THE_LOBBY)
    if possible < wanted:
        _log.warning(
            "server.max_streams %d can take %d descriptors, but this process may open only %d; raise"
            " LimitNOFILE of its unit (ulimit -Hn elsewhere), or lower max_streams",
            max_streams,
            wanted,
            possible,
        )


def reserve_descriptors(wanted: int) -> int:
    """Raise the soft limit as far as it is wanted and the hard one lets us, and have the kernel make room.

    Shells start programs with a soft limit of 1,024, for programs that use select(2); relayd is none. The
    kernel's table of open descriptors starts with 64 places and doubles when it is full: in a process with
    threads, whoever opens the one too many (an accept in the loop) waits for an RCU grace period, 10 to 40 ms
    each time (Linux, fs/file.c, expand_fdtable). So it is grown once, to be called before the first thread.
    It never shrinks; a place takes 8 bytes.

    Returns:
        how many this process may open, at most `wanted`.
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
