"""What the database can hold of a value, so that memory and disk tell the same story."""

from __future__ import annotations

import re

_UNSTORABLE = re.compile("[\0\ud800-\udfff]")
INT_MAX = 2**63 - 1
"""SQLite keeps signed 64-bit integers."""


def storable_text(text: str) -> str:
    """The text with each NUL and each lone surrogate replaced by U+FFFD, one for one.

    SQLite's text functions stop at NUL, and UTF-8 has no lone surrogates.
    """
    if text.isascii() and "\0" not in text:
        return text
    return _UNSTORABLE.sub("\ufffd", text)


def storable_int(number: int) -> int:
    """The number, or the nearest that fits in 64 bits: an upstream may claim any token count."""
    return max(-INT_MAX, min(number, INT_MAX))


_FOLD = {upper: upper + 32 for upper in range(ord("A"), ord("Z") + 1)}


def fold_ascii(text: str) -> str:
    """The text with ASCII capitals made small and nothing else changed, as SQLite's LIKE does it."""
    return text.lower() if text.isascii() else text.translate(_FOLD)
