"""How many descriptors this process may open: each stream takes two."""

from __future__ import annotations

import logging
import resource

_log = logging.getLogger(__name__)

_A_STREAM = 2
_BESIDE_STREAMS = 512


def ask_for_descriptors(max_streams: int) -> None:
    """Raise the soft limit to what so many streams can take, as far as the hard limit lets us.

    Shells start programs with 1,024, for programs that use select(2); relayd is none.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _A_STREAM * max_streams + _BESIDE_STREAMS
    possible = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < possible:
        resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
    if possible < wanted:
        _log.warning(
            "server.max_streams %d can take %d descriptors, but this process may open only %d; raise"
            " LimitNOFILE of its unit (ulimit -Hn elsewhere), or lower max_streams",
            max_streams,
            wanted,
            possible,
        )
