"""The limit of descriptors that a process gives itself, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

_STANDARD = 3
_CODE = """
import logging, os, resource, sys
logging.basicConfig(stream=sys.stdout, format="%(message)s")
soft, hard, streams = map(int, sys.argv[1:])
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
from relayd.processes import ask_for_descriptors
ask_for_descriptors(streams)
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("FDSize:")))
print(len(os.listdir("/proc/self/fd")))
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(
    ("soft", "hard", "streams", "given", "warned"),
    [
        (256, 8192, 1000, 3512, False),
        (4096, 4096, 2000, 4096, True),
        (256, 1024, 1000, 1024, True),
    ],
)
def test_the_soft_limit_is_raised_to_what_the_streams_need_or_the_hard_limit(
    *, soft: int, hard: int, streams: int, given: int, warned: bool
) -> None:
    """Three a stream and room beside them; if streams lack theirs, a sentence says what to do.

    The kernel has made its table that large before there is a thread, and nothing is left open.
    """
    said = subprocess.run(
        [sys.executable, "-c", _CODE, str(soft), str(hard), str(streams)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout.splitlines()
    table, still_open, limit = map(int, said[-3:])
    assert limit == given
    assert table >= given
    assert still_open == _STANDARD + 1, "the listing itself is one"
    assert ("raise LimitNOFILE" in said[0]) == warned
