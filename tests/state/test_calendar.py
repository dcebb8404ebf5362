"""Minutes, days and months in the server's time zone."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from relayd.state.calendar import Window, days_between, resets_at_s, whole_periods, window_names

# As POSIX rules, because a small machine may have no table of zones.
BERLIN = "CET-1CEST,M3.5.0,M10.5.0/3"
SANTIAGO = "<-04>4<-03>,M9.1.6/24,M4.1.6/24"

SetZone = Callable[[str], None]


@pytest.fixture
def set_zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[SetZone]:
    """A function that moves the process into another time zone, until the test is over."""

    def move(zone: str) -> None:
        monkeypatch.setenv("TZ", zone)
        time.tzset()

    yield move
    monkeypatch.undo()
    time.tzset()


def utc_s(text: str) -> float:
    """Return the Unix time of a text in UTC."""
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def utc(at_s: float) -> str:
    """Return a Unix time as text in UTC."""
    return f"{datetime.fromtimestamp(at_s, UTC):%Y-%m-%dT%H:%M:%S}"


@pytest.mark.parametrize(
    ("at", "day", "day_ends", "hours"),
    [
        # An ordinary day, and both changes of daylight saving of 2026 in Berlin.
        ("2026-11-27T23:30:00", "2026-11-28", "2026-11-28T23:00:00", 24),
        ("2026-03-28T23:30:00", "2026-03-29", "2026-03-29T22:00:00", 23),
        ("2026-10-24T22:30:00", "2026-10-25", "2026-10-25T23:00:00", 25),
    ],
)
def test_a_day_is_local_whatever_its_length(
    set_zone: SetZone, at: str, day: str, day_ends: str, hours: int
) -> None:
    """The day has 24 hours, 23 when daylight saving begins, 25 when it ends."""
    set_zone(BERLIN)
    at_s = utc_s(at)
    ends_s = resets_at_s(Window.DAY, at_s)
    assert (window_names(at_s).day, utc(ends_s)) == (day, day_ends)
    assert window_names(ends_s - 1).day == day
    assert window_names(ends_s).day > day
    begins_s = ends_s - hours * 3600
    assert window_names(begins_s).day == day
    assert window_names(begins_s - 1).day < day


def test_a_month_is_local(set_zone: SetZone) -> None:
    """It ends at midnight there, also if daylight saving begins or ends within it."""
    set_zone(BERLIN)
    for at, month, ends in (
        ("2026-10-10T12:00:00", "2026-10", "2026-10-31T23:00:00"),
        ("2026-03-01T00:00:00", "2026-03", "2026-03-31T22:00:00"),
        ("2026-12-31T22:59:59", "2026-12", "2026-12-31T23:00:00"),
        ("2026-12-31T23:00:00", "2027-01", "2027-01-31T23:00:00"),
    ):
        assert (window_names(utc_s(at)).month, utc(resets_at_s(Window.MONTH, utc_s(at)))) == (month, ends)


def test_the_hour_that_comes_twice_has_sixty_other_minutes(set_zone: SetZone) -> None:
    """Half past two comes twice on 25 October: what was used the first time does not count the second."""
    set_zone(BERLIN)
    first, second = utc_s("2026-10-25T00:30:00"), utc_s("2026-10-25T01:30:00")
    assert window_names(first).minute != window_names(second).minute
    assert window_names(first).day == window_names(second).day


def test_a_day_may_begin_without_midnight(set_zone: SetZone) -> None:
    """Where the clock jumps from 0:00 to 1:00, the day begins at the jump."""
    set_zone(SANTIAGO)
    ends_s = resets_at_s(Window.DAY, utc_s("2026-09-05T20:00:00"))
    assert utc(ends_s) == "2026-09-06T04:00:00"
    assert (window_names(ends_s - 1).day, window_names(ends_s).day) == ("2026-09-05", "2026-09-06")


ZONES = st.sampled_from([BERLIN, SANTIAGO, "IST-5:30", "<+13>-13", "UTC0"])


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(zone=ZONES, at_s=st.integers(1_750_000_000, 1_950_000_000), window=st.sampled_from(Window))
def test_a_window_ends_exactly_where_the_next_begins(
    set_zone: SetZone, zone: str, at_s: int, window: Window
) -> None:
    """At any moment, in any zone: the end is later, and the first second of another name."""
    set_zone(zone)
    ends_s = resets_at_s(window, at_s)
    assert ends_s > at_s
    name = window_names(at_s)[window]
    assert window_names(ends_s - 1)[window] == name
    assert window_names(ends_s)[window] > name


DAYS = st.dates(date(2019, 1, 1), date(2026, 12, 31))


@given(since=DAYS, until=DAYS, today=DAYS)
def test_months_and_days_stand_for_exactly_the_days_asked_for(since: date, until: date, today: date) -> None:
    """No day is left out or counted twice, and a whole month is one period; nothing is later than today."""
    wanted = days_between(since, until, today)
    assert wanted == [day for day in wanted if since.isoformat() <= day <= min(until, today).isoformat()]
    assert len(wanted) == max(0, (min(until, today) - since).days + 1)
    periods = whole_periods(since, until, today)
    months = [period for period in periods if len(period) == 7]
    assert [day for day in wanted if day[:7] not in months] == [p for p in periods if len(p) == 10]
    for month in months:
        days = [day for day in wanted if day.startswith(month)]
        first = date.fromisoformat(f"{month}-01")
        assert days[0] == first.isoformat()
        end = date.fromisoformat(days[-1]) + timedelta(days=1)
        assert end.day == 1 or days[-1] == today.isoformat()
    assert sum(len(period) == 10 for period in periods) <= 60
