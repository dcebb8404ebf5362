"""Durations as operators write them: `30s`, `10m`, `2h`, `7d`."""

from __future__ import annotations

import re

_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
_MAX_S = 366 * 86_400


def parse_duration(text: str) -> float:
    """Seconds.

    Raises:
        ValueError: the sentence says how durations are written.
    """
    found = re.fullmatch(r"\s*(\d{1,9})\s*([smhd])\s*", text)
    if found is None:
        raise ValueError("Write a number and a unit: 30s, 10m, 2h or 7d.")
    seconds = int(found[1]) * _UNITS_S[found[2]]
    if not 0 < seconds <= _MAX_S:
        raise ValueError("It must be between 1s and 366d.")
    return float(seconds)


def in_words(seconds: float) -> str:
    """`90 minutes`, `1 hour`: the largest unit that divides it."""
    whole = round(seconds)
    for name, size in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if whole and whole % size == 0:
            number = whole // size
            return f"{number} {name}{'' if number == 1 else 's'}"
    return f"{whole} second{'' if whole == 1 else 's'}"
