"""Colours in fewer bytes: what a slow SSH line carries is mostly the codes between texts.

Rich writes every piece with all its attributes and resets them behind it: 84 % of a screen of rows is
such codes. Here only what changes from one piece to the next is written, and nothing at all before
blanks that would look the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

_RESET = ""
_OFF = {"1": "22", "2": "22", "3": "23", "4": "24", "7": "27", "9": "29"}
_SEEN_ON_BLANKS = frozenset({"4", "7", "9"})
_BASIC_FG = {*map(str, range(30, 38)), *map(str, range(90, 98))}
_BASIC_BG = {*map(str, range(40, 48)), *map(str, range(100, 108))}
_EXTENDED = {"5": 3, "2": 5}
"""How many parameters a colour has after 38 or 48, by the kind that stands first: 5;n or 2;r;g;b."""


@dataclass(frozen=True, slots=True)
class _Look:
    """What a list of SGR parameters comes to."""

    fg: str
    bg: str
    flags: frozenset[str]
    known: bool
    """False: it has parameters that are not understood here, and is written as it came."""


@lru_cache(maxsize=1024)
def on_blanks(codes: str) -> str:
    """Return the parameters that make a difference where nothing is printed."""
    look = _look(codes)
    return codes if not look.known or look.flags & _SEEN_ON_BLANKS else look.bg


@lru_cache(maxsize=1024)
def alike_on_blanks(now: str, wanted: str) -> bool:
    """Return whether blanks look the same in both."""
    one, other = _look(now), _look(wanted)
    return (
        one.known and other.known and one.bg == other.bg and not (one.flags | other.flags) & _SEEN_ON_BLANKS
    )


@lru_cache(maxsize=4096)
def change(now: str, wanted: str) -> str:
    """Return the code that changes the look of what is written next."""
    if now == wanted:
        return ""
    if wanted == _RESET:
        return "\x1b[0m"
    one, other = _look(now), _look(wanted)
    whole = f"\x1b[0;{wanted}m" if now else f"\x1b[{wanted}m"
    if not (one.known and other.known):
        return whole
    off = {_OFF[flag] for flag in one.flags - other.flags}
    kept = {flag for flag in one.flags if _OFF[flag] not in off}
    codes = [*sorted(off), *sorted(other.flags - kept)]
    if one.fg != other.fg:
        codes.append(other.fg or "39")
    if one.bg != other.bg:
        codes.append(other.bg or "49")
    if not codes:
        return ""
    changed = f"\x1b[{';'.join(codes)}m"
    return changed if len(changed) < len(whole) else whole


@lru_cache(maxsize=2048)
def _look(codes: str) -> _Look:
    fg = bg = ""
    flags: set[str] = set()
    left = codes.split(";") if codes else []
    while left:
        code = left[0]
        size = 1
        if code in {"38", "48"} and len(left) > 1 and len(left) >= _EXTENDED.get(left[1], 99):
            size = _EXTENDED[left[1]]
            colour = ";".join(left[:size])
            fg, bg = (colour, bg) if code == "38" else (fg, colour)
        elif code in _BASIC_FG:
            fg = code
        elif code in _BASIC_BG:
            bg = code
        elif code == "39":
            fg = ""
        elif code == "49":
            bg = ""
        elif code in _OFF:
            flags.add(code)
        else:
            return _Look("", "", frozenset(), known=False)
        del left[:size]
    return _Look(fg, bg, frozenset(flags), known=True)
