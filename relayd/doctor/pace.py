"""Whether a stream came as it was sent, judged so that a slow machine or line is not taken for a proxy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def is_held_back(asked_at: float, times: Sequence[float], interval_s: float) -> bool:
    """Whether lines that were sent one by one came as a lump.

    Who keeps the whole answer lets nothing come before the last line was sent. That is so at any speed of
    machine and line, while the time from the first line to the last depends on both. Who keeps only a part
    shows it by the lump: more than half of the lines, less than half an interval apart.

    Args:
        asked_at: when the request was sent.
        times: when each line came.
        interval_s: at least how far apart they were sent.
    """
    if times[0] - asked_at >= interval_s * (len(times) - 1):
        return True
    lump = largest = 1
    for earlier, later in pairwise(times):
        lump = lump + 1 if later - earlier < interval_s / 2 else 1
        largest = max(largest, lump)
    return largest > len(times) / 2
