"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How it stands."""

    GOOD = "good"
    DOUBT = "doubt"
    FAULT = "fault"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Finding:
    """One check's outcome.

    Attributes:
        check: its name, such as `streaming`.
        level: how it stands.
        said: what was seen, in one sentence.
        todo: what to change and where; empty where nothing is wrong.
        ends: whether nothing more can be seen until this is mended.
    """

    check: str
    level: Level
    said: str
    todo: str = ""
    ends: bool = False


def good(check: str, said: str) -> Finding:
    """As it should be."""
    return Finding(check, Level.GOOD, said)


def doubt(check: str, said: str, todo: str) -> Finding:
    """Perhaps meant, perhaps not."""
    return Finding(check, Level.DOUBT, said, todo)


def fault(check: str, said: str, todo: str, *, ends: bool = False) -> Finding:
    """Wrong for whoever uses this relay."""
    return Finding(check, Level.FAULT, said, todo, ends)


def skipped(check: str, said: str) -> Finding:
    """Not looked at, and why."""
    return Finding(check, Level.SKIPPED, said)
