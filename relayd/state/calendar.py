"""The minute, the day and the month that a moment belongs to, in the server's time zone."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from enum import IntEnum
from typing import NamedTuple

_LONGEST = timedelta(days=3660)


class Window(IntEnum):
    """How long a bound counts before it begins again."""

    MINUTE = 0
    DAY = 1
    MONTH = 2


class WindowNames(NamedTuple):
    """The windows of one moment, by `Window`: `2026-11-27T12:03Z`, `2026-11-27`, `2026-11`.

    Minutes are UTC: of local time, an hour comes twice when daylight saving ends.
    """

    minute: str
    day: str
    month: str


def window_names(at_s: float) -> WindowNames:
    """Return the windows that a Unix time belongs to."""
    local = datetime.fromtimestamp(at_s).astimezone()
    return WindowNames(
        f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%dT%H:%MZ}", f"{local:%Y-%m-%d}", f"{local:%Y-%m}"
    )


def resets_at_s(window: Window, at_s: float) -> float:
    """Return the Unix time at which the window of a moment ends: a day may have 23 or 25 hours."""
    if window is Window.MINUTE:
        return (at_s // 60 + 1) * 60
    today = local_date(at_s)
    following = today + timedelta(days=1)
    if window is Window.MONTH:
        following = _next_month(today)
    return start_of(following)


def days_between(since: date, until: date, today: date) -> list[str]:
    """Return the days from `since` to `until`, at most those of ten years before today."""
    first = max(since, today - _LONGEST)
    return [(first + timedelta(days=n)).isoformat() for n in range((min(until, today) - first).days + 1)]


def whole_periods(since: date, until: date, today: date) -> list[str]:
    """Return months and days that together are those of `days_between`, few rather than many.

    A month that is not over is whole if `until` is no earlier than today.
    """
    periods: list[str] = []
    day = max(since, today - _LONGEST)
    while day <= min(until, today):
        following = _next_month(day)
        if day.day == 1 and (until >= today or following <= until + timedelta(days=1)):
            periods.append(f"{day:%Y-%m}")
            day = following
        else:
            periods.append(day.isoformat())
            day += timedelta(days=1)
    return periods


def _next_month(day: date) -> date:
    return (day.replace(day=28) + timedelta(days=4)).replace(day=1)


def local_date(at_s: float) -> date:
    """Return the day that a Unix time belongs to."""
    return datetime.fromtimestamp(at_s).astimezone().date()


def start_of(day: date) -> float:
    """Return the Unix time at which a day begins."""
    # Without a zone it is local time (PEP 495): of a midnight that comes twice, the first; of one that is
    # skipped, the moment of the jump.
    return datetime.combine(day, time()).timestamp()
