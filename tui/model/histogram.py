"""Percentiles without keeping samples: counts in steps that grow by a tenth."""

from __future__ import annotations

import math

_GROWTH = math.log(1.1)


def step_of(value_ms: float) -> int:
    """Which step a duration is in."""
    return int(math.log(value_ms) / _GROWTH) if value_ms > 1 else 0


class Histogram:
    """Durations in milliseconds; a percentile read from it is right within five per cent."""

    __slots__ = ("_counts", "total")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.total = 0

    def add(self, value_ms: float) -> None:
        """Count one duration."""
        self.add_step(step_of(value_ms))

    def add_step(self, step: int) -> None:
        """Count one duration by its step."""
        self._counts[step] = self._counts.get(step, 0) + 1
        self.total += 1

    def merge(self, other: Histogram) -> None:
        """Count all that the other counted."""
        for step, count in other._counts.items():
            self._counts[step] = self._counts.get(step, 0) + count
        self.total += other.total

    def percentile(self, part: float) -> float | None:
        """The duration that `part` (0 to 1) of all are under; None without samples."""
        if not self.total:
            return None
        wanted = part * self.total
        seen = 0
        step = 0
        for step in sorted(self._counts):
            seen += self._counts[step]
            if seen >= wanted:
                break
        return math.exp((step + 0.5) * _GROWTH)
