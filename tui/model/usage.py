"""What was used by each client, key, model or day: one row each, for today and for a month."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, timedelta
from enum import StrEnum

from relayd.admin.schema import Usage, UsageSums, start_of, utc_text
from tui.model.stats import name_filter
from tui.model.units import money

DAYS = 30
"""How many days the plots of the running month show."""
_OTHER_MODELS = "(other)"
_NO_MODEL = "(no answer)"
_NOTHING = UsageSums()


class Grouping(StrEnum):
    """What usage is summed by, as `GET /usage?by=` calls it."""

    CLIENT = "client"
    KEY = "key"
    MODEL = "model"
    DAY = "day"


PARTS: Mapping[Grouping, tuple[Grouping, Grouping]] = {
    Grouping.CLIENT: (Grouping.MODEL, Grouping.KEY),
    Grouping.KEY: (Grouping.MODEL, Grouping.DAY),
    Grouping.MODEL: (Grouping.CLIENT, Grouping.KEY),
    Grouping.DAY: (Grouping.CLIENT, Grouping.MODEL),
}
"""What the use of one row is broken down by."""
_FIELDS = {Grouping.CLIENT: "client", Grouping.KEY: "key_id", Grouping.MODEL: "model"}


def tokens_of(sums: UsageSums) -> int:
    """Return the tokens of prompts and answers together."""
    return sums.prompt_tokens + sums.completion_tokens


FIGURES: Mapping[str, Callable[[UsageSums], float]] = {
    "req": lambda sums: sums.requests,
    "tok": tokens_of,
    "in": lambda sums: sums.prompt_tokens,
    "cache": lambda sums: sums.cached_tokens,
    "out": lambda sums: sums.completion_tokens,
    "US$": lambda sums: sums.cost_usd,
}
"""The figures of a row by the title of their column."""


@dataclass(frozen=True, slots=True)
class UsageItem:
    """One client, key, model or day; or all of them together, without a name."""

    name: str | None
    today: UsageSums
    month: UsageSums

    @property
    def is_total(self) -> bool:
        """Whether this is all of them together."""
        return self.name is None


@dataclass(frozen=True, slots=True)
class Report:
    """Usage by one grouping, of one month and of today."""

    by: Grouping
    month: Usage
    today: Usage | None
    """None for a month that is over, and by day."""
    past_month: date | None = None
    """The first day of a month that is over; None for the running one."""

    def items(self) -> list[UsageItem]:
        """Return the total, then the rows of the month in the daemon's order; of days the newest first."""
        today = {row.name: row for row in self.today.rows} if self.today is not None else {}
        rows = reversed(self.month.rows) if self.by is Grouping.DAY else self.month.rows
        total = UsageItem(None, _NOTHING if self.today is None else self.today.total, self.month.total)
        return [total, *(UsageItem(row.name, today.get(row.name, _NOTHING), row) for row in rows)]


@dataclass(frozen=True, slots=True)
class Breakdown:
    """The use of one row by day, and by what it is made of."""

    days: Usage
    parts: tuple[Usage, Usage]
    """By the two groupings of `PARTS`."""


def name_in_words(by: Grouping, name: str | None) -> str:
    """Return what a row is called."""
    if name is None:
        return "all"
    return name or (_NO_MODEL if by is Grouping.MODEL else "—")


def cost_in_words(sums: UsageSums) -> str:
    """Return the cost in US dollars: with a plus if some of it is not known, an em dash if none is."""
    if not sums.unpriced:
        return money(sums.cost_usd)
    return f"{money(sums.cost_usd)}+" if sums.cost_usd else money(None)


def requests_of(by: Grouping, name: str | None) -> str | None:
    """Return the filter that finds the requests of a row; empty for all, None if no filter does."""
    if name is None:
        return ""
    if by is Grouping.DAY:
        day = date.fromisoformat(name)
        since, until = (utc_text(start_of(first)) for first in (day, day + timedelta(days=1)))
        return f'started_at>="{since}" started_at<"{until}"'
    if not name or (by is Grouping.MODEL and name == _OTHER_MODELS):
        return None
    return name_filter(_FIELDS[by], name)


# Months.


def other_month(month: date, months: int) -> date:
    """Return the first day of the month that is so many months later."""
    number = month.year * 12 + month.month - 1 + months
    return date(number // 12, number % 12 + 1, 1)


def last_day(month: date) -> date:
    """Return the last day of a month."""
    return other_month(month, 1) - timedelta(days=1)


def days_of(usage: Usage) -> list[str]:
    """Return the days that a report by day covers, the oldest first."""
    since, until = date.fromisoformat(usage.since), date.fromisoformat(usage.until)
    return [(since + timedelta(days=day)).isoformat() for day in range((until - since).days + 1)]


def by_day(usage: Usage, titles: Iterable[str]) -> dict[str, list[float]]:
    """Return figures of each day that a report by day covers, the oldest first, by their titles."""
    rows = {row.name: row for row in usage.rows}
    days = [rows.get(day, _NOTHING) for day in days_of(usage)]
    return {title: [float(FIGURES[title](day)) for day in days] for title in titles}
