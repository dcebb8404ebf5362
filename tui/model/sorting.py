"""Sorting rows by one of their columns."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TypeVar

T = TypeVar("T")
SortValue = int | float | str
Value = Callable[[T], SortValue | None]
"""Returns what a row is sorted by; None if it has no such value."""


@dataclass(frozen=True, slots=True)
class Sorting:
    """The title of a column, and the direction."""

    column: str
    descending: bool

    @property
    def reversed(self) -> Sorting:
        """The same column the other way."""
        return replace(self, descending=not self.descending)

    @property
    def mark(self) -> str:
        """The arrow behind the title."""
        return "▼" if self.descending else "▲"


def natural(column: str, rows: Iterable[T], value: Value[T]) -> Sorting:
    """Return how a column is sorted at first: texts from A to Z, numbers from the largest."""
    first = next((found for row in rows if (found := value(row)) is not None), 0)
    return Sorting(column, descending=not isinstance(first, str))


def in_order(rows: Iterable[T], value: Value[T], *, descending: bool) -> list[T]:
    """Return the rows by value, those without one last; equal ones stay in their order."""
    rated = [(value(row), row) for row in rows]
    known = [(_comparable(found), row) for found, row in rated if found is not None]
    known.sort(key=lambda pair: pair[0], reverse=descending)
    return [row for _, row in known] + [row for found, row in rated if found is None]


def _comparable(value: SortValue) -> tuple[float, str]:
    return (0.0, value.casefold()) if isinstance(value, str) else (value, "")
