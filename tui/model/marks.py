"""Rows of the list that are not requests: where the log breaks, and why."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class MarkKind(StrEnum):
    """Why a mark stands between two records."""

    RESTART = "restart"
    GAP = "gap"
    LOST = "lost"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Mark:
    """One such row.

    RESTART: the daemon began anew. GAP: records from `first` to `last` are on disk, not here yet.
    LOST: the daemon could not write `count` records. EXPIRED: retention removed them.
    """

    kind: MarkKind
    at_ms: int
    """Unix time in milliseconds of the record that follows; 0 when not known."""
    first: int = 0
    last: int = 0
    count: int = 0
    reason: str = ""
    before_at_ms: int = 0
    """The time of the record before a gap; 0 when not known."""
