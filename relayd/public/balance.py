"""The balance between the workers that accept from the same sockets."""

from __future__ import annotations

import mmap

_COUNT_BYTES = 8
_NOT_ACCEPTING = (1 << 63) - 1


class Balance:
    """How many connections each worker has, in memory that all of them share: made before they are forked."""

    def __init__(self, workers: int) -> None:
        self._counts = memoryview(mmap.mmap(-1, workers * _COUNT_BYTES)).cast("q")
        for worker in range(workers):
            self._counts[worker] = _NOT_ACCEPTING

    def share(self, worker: int) -> Share:
        """Return the share of one worker, by its number from 1."""
        return Share(self._counts, worker - 1)


class Share:
    """What one worker has of all connections. A worker that does not accept is no reason to wait for it."""

    def __init__(self, counts: memoryview[int], place: int) -> None:
        self._counts = counts
        self._place = place

    def set(self, connections: int) -> None:
        """Tell the others how many connections this worker has."""
        self._counts[self._place] = connections

    def withdraw(self) -> None:
        """Tell the others that this worker does not accept."""
        self._counts[self._place] = _NOT_ACCEPTING

    def is_another_next(self) -> bool:
        """Return whether another worker has fewer connections, and so should accept the next one."""
        return self._counts[self._place] > min(self._counts)
