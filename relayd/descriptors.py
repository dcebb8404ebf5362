"""How many descriptors this process may open."""

from __future__ import annotations

import fcntl
import logging
import os
import resource

_log = logging.getLogger(__name__)

_PER_STREAM = 3
"""A connection to the client, one to the provider, and a connection between two requests."""
_BESIDE_STREAMS = 512


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
