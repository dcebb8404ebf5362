"""The request log as the relay sees it: tell it of each start and each end, and go on."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from enum import IntEnum

from relayd.state.records import RequestRecord

CAPACITY = 10_000


class Mark(IntEnum):
    """What an entry says."""

    START = 0
    END = 1
    WHOLE = 2
    """An end whose start found no room: the entry stands for both."""


Entry = tuple[Mark, RequestRecord]


class RequestLog:
    """Takes records on the event loop and never waits; the writer thread puts them on disk.

    Up to 10,000 entries wait for the disk, and beyond that only the ends of requests whose start was
    taken. When it is full, a start is not taken; its end then stands for the whole request if there
    is room by then, else the request is lost, and counted.
    """

    def __init__(self, boot_id: str, wake: Callable[[], None], capacity: int = CAPACITY) -> None:
        self.boot_id = boot_id
        self._wake = wake
        self._capacity = capacity
        # Appended on the event loop, taken from the other end by the writer: deque makes both atomic.
        self._waiting: deque[Entry] = deque()
        self._open: set[str] = set()
        self._in_hand = 0
        # Each counter has one writing thread.
        self._refused = 0
        self._unwritable = 0
        self._reported = 0
        self._error: str | None = None

    def started(self, record: RequestRecord) -> None:
        """A request was admitted or refused; the record is copied."""
        if len(self._waiting) < self._capacity:
            self._open.add(record.id)
            self._waiting.append((Mark.START, copy.copy(record)))
            self._wake()

    def ended(self, record: RequestRecord) -> None:
        """The request with this id ended; the record is copied. Call it once for each start."""
        if record.id in self._open:
            self._open.remove(record.id)
            self._waiting.append((Mark.END, copy.copy(record)))
        elif len(self._waiting) < self._capacity:
            self._waiting.append((Mark.WHOLE, copy.copy(record)))
        else:
            self._refused += 1
        self._wake()

    @property
    def queued(self) -> int:
        """How many starts and ends wait for the disk."""
        return len(self._waiting) + self._in_hand

    @property
    def lost(self) -> int:
        """How many requests were lost since this start of the daemon."""
        return self._refused + self._unwritable

    @property
    def error(self) -> str | None:
        """Why writing fails now, as a sentence; None while it works."""
        return self._error

    # The writer's side: one thread.

    def take(self, limit: int) -> list[Entry]:
        """The oldest entries, at most so many; `written` or `put_back` must follow."""
        entries = [self._waiting.popleft() for _ in range(min(limit, len(self._waiting)))]
        self._in_hand = len(entries)
        return entries

    def put_back(self, entries: list[Entry], error: str) -> None:
        """The disk refused these: they wait at the head of the queue."""
        self._waiting.extendleft(reversed(entries))
        self._in_hand = 0
        self._error = error

    def written(self) -> None:
        """What was taken is on disk."""
        self._in_hand = 0
        self._error = None

    def unwritable(self) -> None:
        """A request was dropped because no disk could take it (a fault of ours)."""
        self._unwritable += 1

    def unreported(self) -> int:
        """How many lost requests no `Lost` event has told of."""
        return self.lost - self._reported

    def reported(self, count: int) -> None:
        """A `Lost` event told of so many."""
        self._reported += count
