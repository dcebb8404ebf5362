"""Numbers as an operator reads them: short, aligned by the caller, the unit always named."""

from __future__ import annotations

import time
from functools import lru_cache

from relayd.admin.schema import epoch_s, utc_text
from relayd.printable import plural

_TENTH_MS = 100
_SECOND_MS = 1000
_TEN_S_MS = 10_000
_MINUTE_MS = 60_000
_HOUR_MS = 3_600_000
_DAY_MS = 86_400_000
_THOUSAND = 1000
_TEN = 10
_LEAST_USD = 0.0001


def duration(ms: float | None) -> str:
    """Return `87ms`, `0.4s`, `12s`, `3m07`, `2h05`, `4d`; an em dash for None. At most five characters."""
    if ms is None:
        return "—"
    if ms < _MINUTE_MS - 500:
        return _seconds(ms)
    if ms < _HOUR_MS - 500:
        minutes, seconds = divmod(round(ms / _SECOND_MS), 60)
        return f"{minutes}m{seconds:02d}"
    if ms < _DAY_MS:
        hours, minutes = divmod(round(ms / _MINUTE_MS), 60)
        return f"{hours}h{minutes:02d}"
    return f"{ms / _DAY_MS:.0f}d"


def _seconds(ms: float) -> str:
    if ms < _TENTH_MS:
        return f"{ms:.0f}ms"
    return f"{ms / _SECOND_MS:.{1 if ms < _TEN_S_MS - 50 else 0}f}s"


def countdown(seconds: float) -> str:
    """Return `14:32`, `1:02:03`, `3d 4h`; `now` at the end."""
    left = int(seconds)
    if left <= 0:
        return "now"
    if left >= 2 * 86_400:
        return f"{left // 86_400}d {left % 86_400 // 3600}h"
    minutes, second = divmod(left, 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def in_words(seconds: float) -> str:
    """Return `90 minutes`, `1 hour`: the largest unit that divides it."""
    whole = round(seconds)
    for name, size in (("day", 86_400), ("hour", 3600), ("minute", 60)):
        if whole and whole % size == 0:
            return plural(whole // size, name)
    return plural(whole, "second")


def age(seconds: float) -> str:
    """Return how long ago, in one unit: `4s`, `12m`, `3h`, `8d`."""
    if seconds < 60:  # noqa: PLR2004 - a minute
        return f"{max(0, seconds):.0f}s"
    if seconds < 3600:  # noqa: PLR2004 - an hour
        return f"{seconds // 60:.0f}m"
    if seconds < 2 * 86_400:
        return f"{seconds // 3600:.0f}h"
    return f"{seconds // 86_400:.0f}d"


def count(number: float) -> str:
    """Return `7`, `999`, `1.2k`, `38k`, `1.2M`: at most four characters."""
    if number < _THOUSAND:
        return f"{number:.0f}"
    for unit in ("k", "M", "G"):
        number /= _THOUSAND
        if number < _TEN - 0.05:
            return f"{number:.1f}{unit}"
        if number < _THOUSAND - 0.5:
            return f"{number:.0f}{unit}"
    return f"{number:.0f}T"


def rate(number: float) -> str:
    """Return a number a second: one decimal under ten."""
    return f"{number:.1f}" if 0 < number < _TEN else count(number)


def money(usd: float | None) -> str:
    """Return US dollars without their sign: `0`, `0.0004`, `0.042`, `1.23`, `12.3`, `1.2k`.

    At most six characters; an em dash for None. Anything above nothing is never shown as nothing.
    """
    if usd is None:
        return "—"
    if usd >= _THOUSAND - 0.5:
        return count(usd)
    if usd < _LEAST_USD:
        return "0" if usd <= 0 else "<.0001"
    for least, decimals in ((99.95, 0), (9.995, 1), (0.995, 2), (0.00995, 3)):
        if usd >= least:
            return f"{usd:.{decimals}f}"
    return f"{usd:.4f}"


def bytes_text(number: float) -> str:
    """Return `512 B`, `1.4 KiB`, `38 MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:  # noqa: PLR2004 - the next unit
            return f"{number:.0f} {unit}" if number >= _TEN or unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def clock(at_s: float) -> str:
    """Return the local time of day, to the second."""
    return time.strftime("%H:%M:%S", time.localtime(at_s))


def clock_short(at_s: float) -> str:
    """Return the local time of day, to the minute."""
    return time.strftime("%H:%M", time.localtime(at_s))


def day_clock(at_s: float) -> str:
    """Return the local date and time of day."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at_s))


def moment(at_s: float, now_s: float) -> str:
    """Return the local time of day; on another day than today with the date."""
    day, today = time.localtime(at_s)[:3], time.localtime(now_s)[:3]
    return clock(at_s) if day == today else time.strftime("%Y-%m-%d %H:%M", time.localtime(at_s))


@lru_cache(maxsize=512)
def unix_s(utc: str) -> float:
    """Return the Unix time of a record's text; each one is asked for several times in a row."""
    return epoch_s(utc)


def utc_from_ms(at_ms: int) -> str:
    """Return a Unix time in milliseconds as `utc_text` writes it, ten times faster for neighbours in time."""
    return f"{_second(at_ms // 1000)}{at_ms % 1000:03d}Z"


@lru_cache(maxsize=512)
def _second(epoch_s: int) -> str:
    return utc_text(epoch_s)[:-4]
