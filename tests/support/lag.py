"""How late the test's own loop runs, so that a bound on time does not fail for a busy machine."""

from __future__ import annotations

import asyncio
import time
from types import TracebackType
from typing import Self

_TICK_S = 0.005


class LoopLag:
    """Measures the loop while it is entered.

    `worst_s` is the most seconds by which a timer came late: code under test that is late by no more than
    that was not slow, the machine was.
    """

    def __init__(self) -> None:
        self.worst_s = 0.0
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._tick(), name="loop-lag")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _tick(self) -> None:
        while True:
            due = time.monotonic() + _TICK_S
            try:
                await asyncio.sleep(_TICK_S)
            finally:
                self.worst_s = max(self.worst_s, time.monotonic() - due)
