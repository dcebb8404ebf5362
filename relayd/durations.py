"""Spans of time as operators write and read them: `30s`, `10m`, `2h`, `7d`."""

from __future__ import annotations

import re

MAX_S = 366 * 86_400
MAX_EXPIRY_S = 3660 * 86_400
"""How far ahead the end of a client may be: ten years and a few days."""
_UNITS_S = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
_FORM = re.compile(r"([0-9]{1,9})([smhd])")
_SECOND_MS = 1000
_LONG_MS = 100_000


class TooLong(ValueError):
    """A span is written as it should be, but is longer than allowed."""


def parse_duration(text: str, max_s: int = MAX_S) -> int:
    """Return a span in seconds, 0 to 366 days unless `max_s` says otherwise.

    Raises:
        TooLong: a sentence that says how long it may be.
        ValueError: a sentence that says how spans are written.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise ValueError(f"{text[:40]!r} is not a duration; write a number and a unit: 30s, 10m, 2h or 7d")
    seconds = int(found[1]) * _UNITS_S[found[2]]
    if seconds > max_s:
        raise TooLong(f"{text[:40]!r} is more than {max_s // _UNITS_S['d']}d")
    return seconds


def short(seconds: float) -> str:
    """Return at most two units, rounded down: `3s`, `42m`, `1h 5m`, `2d 3h`; less than a second is `0s`."""
    left = max(0, int(seconds))
    parts: list[str] = []
    for name, size in _UNITS_S.items():
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{name}")
            if len(parts) > 1:
                break
        elif parts:
            break
    return " ".join(parts) or "0s"


def millis(ms: int | None) -> str:
    """Return `412 ms`, `1.9 s`, `2m 5s`; a dash if it is not known."""
    if ms is None:
        return "-"
    if ms < _SECOND_MS:
        return f"{ms} ms"
    return f"{ms / 1000:.1f} s" if ms < _LONG_MS else short(ms / 1000)
