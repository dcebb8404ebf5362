"""Spreads what falls due for many at once, so that nobody else waits for all of it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

PER_TURN = 4
"""How many ends of connections one turn of the loop may hold: well under a millisecond together."""


class Turns:
    """Runs callbacks in order, a few in each turn of the loop.

    A thousand connections that were opened together are also late together. It is bounded by who uses it:
    each connection has two at the most.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._due: deque[Callable[[], None]] = deque()

    def __len__(self) -> int:
        """How many are still to come."""
        return len(self._due)

    def call(self, callback: Callable[[], None]) -> None:
        """Call this in one of the next turns. What it raises, the loop reports."""
        if not self._due:
            self._loop.call_soon(self._run)
        self._due.append(callback)

    async def wait(self) -> None:
        """Wait for a turn."""
        come = asyncio.Event()
        self.call(come.set)
        await come.wait()

    def _run(self) -> None:
        try:
            for _ in range(min(PER_TURN, len(self._due))):
                self._due.popleft()()
        finally:
            # Whatever one of them met, the others have their turns.
            if self._due:
                self._loop.call_soon(self._run)
