"""Usage as rows, and the months and requests that it leads to."""

from __future__ import annotations

from datetime import date

import pytest

from relayd.admin.schema import Usage, UsageRow, UsageSums, parse_filter
from tests.tui.samples import NOON_S, a_record
from tui.model.units import day_clock
from tui.model.usage import (
    Grouping,
    Report,
    by_day,
    cost_in_words,
    days_of,
    last_day,
    name_in_words,
    other_month,
    requests_of,
)


def a_usage(by: str, since: str, until: str, **requests: int) -> Usage:
    """Usage of so many requests by name, in the daemon's order."""
    rows = [
        UsageRow(name=name.replace("_", "-"), requests=number, prompt_tokens=10 * number)
        for name, number in requests.items()
    ]
    return Usage(by, since, until, rows, UsageSums(requests=sum(requests.values())))


def test_a_row_has_today_beside_the_month_and_the_total_comes_first() -> None:
    """What was not used today has nothing there; what was removed from the log still has its month."""
    month = a_usage("client", "2027-01-01", "2027-01-15", web=7, phone=2)
    today = a_usage("client", "2027-01-15", "2027-01-15", web=3)
    items = Report(Grouping.CLIENT, month, today).items()
    assert [(item.name, item.today.requests, item.month.requests) for item in items] == [
        (None, 3, 9),
        ("web", 3, 7),
        ("phone", 0, 2),
    ]
    days = Report(Grouping.DAY, a_usage("day", "2027-01-01", "2027-01-02", a=1, b=2), None).items()
    assert [item.name for item in days] == [None, "b", "a"]


@pytest.mark.parametrize(
    ("usd", "unpriced", "words"),
    [(0.0, 0, "0"), (1.5, 0, "1.50"), (1.5, 2, "1.50+"), (0.0, 2, "—")],
)
def test_a_cost_that_is_not_known_is_marked(usd: float, unpriced: int, words: str) -> None:
    """Partly unknown is at least so much; wholly unknown is not nothing."""
    assert cost_in_words(UsageSums(requests=3, cost_usd=usd, unpriced=unpriced)) == words


@pytest.mark.parametrize(
    ("by", "name", "record", "other"),
    [
        (Grouping.CLIENT, "web", {"client": "web"}, {"client": "web2"}),
        (Grouping.KEY, "key00001", {"key_id": "key00001"}, {"key_id": "key00002"}),
        (Grouping.MODEL, 'a "b" \\c', {"model": 'a "b" \\c'}, {"model": "a b c"}),
    ],
)
def test_a_row_leads_to_its_requests(
    by: Grouping, name: str, record: dict[str, str], other: dict[str, str]
) -> None:
    """By a filter that finds them alone."""
    wanted = requests_of(by, name)
    assert wanted is not None
    found = parse_filter(wanted).matches
    assert found(a_record(1, **record))
    assert not found(a_record(1, **other))


def test_a_day_leads_to_what_began_between_its_midnights() -> None:
    """Midnight of the local time, as the daemon counts days."""
    day = date.fromisoformat(day_clock(NOON_S)[:10])
    found = parse_filter(requests_of(Grouping.DAY, f"{day}") or "").matches
    assert found(a_record(0))
    assert not found(a_record(86_400))
    assert not found(a_record(-86_400))


@pytest.mark.parametrize(
    ("by", "name", "words", "wanted"),
    [
        (Grouping.MODEL, "", "(no answer)", None),
        (Grouping.MODEL, "(other)", "(other)", None),
        (Grouping.CLIENT, None, "all", ""),
    ],
)
def test_what_no_filter_finds_says_so(by: Grouping, name: str | None, words: str, wanted: str | None) -> None:
    """Requests that no model answered, or whose models are summed up; all of them need no filter."""
    assert name_in_words(by, name) == words
    assert requests_of(by, name) == wanted


def test_months_are_whole() -> None:
    """Also over the turn of a year, and in a leap year."""
    assert other_month(date(2027, 1, 1), -1) == date(2026, 12, 1)
    assert other_month(date(2026, 12, 1), 2) == date(2027, 2, 1)
    assert last_day(date(2028, 2, 1)) == date(2028, 2, 29)


def test_every_day_has_a_place_in_the_plot() -> None:
    """Those without use are nothing."""
    rows = [UsageRow(name="2027-02-28", prompt_tokens=3, completion_tokens=4, cost_usd=0.5)]
    usage = Usage("day", "2027-02-27", "2027-03-01", rows, UsageSums())
    assert days_of(usage) == ["2027-02-27", "2027-02-28", "2027-03-01"]
    assert by_day(usage, ("in", "out", "US$")) == {"in": [0, 3, 0], "out": [0, 4, 0], "US$": [0, 0.5, 0]}
