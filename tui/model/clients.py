"""Clients as an operator reads and writes them: how much of each bound is used, and bounds as text."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from datetime import time as clock_time
from typing import Any

from relayd.admin.bound_texts import parse_count, parse_expiry, parse_usd
from relayd.admin.schema import ClientInfo, Usage, Window, epoch_s
from tui.model.units import count, money

NEAR = 0.8
"""From this share of a bound on, a client is about to reach it."""
_MONTH = "$/month"
_FULL = "█"
_EMPTY = "░"


def bar(share: float, cells: int) -> str:
    """Return a share as a bar that reads without colour; more than nothing is never empty."""
    full = max(1, min(cells, round(share * cells))) if share > 0 else 0
    return _FULL * full + _EMPTY * (cells - full)


@dataclass(frozen=True, slots=True)
class Meter:
    """How much of one bound is used."""

    label: str
    short: str
    """The same for a narrow column."""
    used: float
    limit: float
    window: Window | None = None
    """How long it counts before it begins again; None if it counts what is open."""
    is_money: bool = False

    @property
    def share(self) -> float:
        """The used part of the bound: 1 and more if it is used up."""
        return self.used / self.limit

    @property
    def amounts(self) -> str:
        """What is used, and the bound: `12.3/20`."""
        if self.is_money:
            return f"{money(self.used)}/{_show_usd(self.limit)}"
        return f"{count(self.used)}/{count(self.limit)}"


def month_meter(client: ClientInfo) -> Meter | None:
    """Return the money of this month against its bound; None if there is no such bound."""
    return next((meter for meter in meters(client) if meter.short == _MONTH), None)


def meters(client: ClientInfo) -> list[Meter]:
    """Return every bound that is used up by and by, with its use."""
    minute, today, month = client.minute, client.today, client.month
    given = (
        ("requests at once", "at once", client.open_streams, client.max_streams, None),
        ("requests a minute", "req/min", minute.requests, client.requests_per_minute, Window.MINUTE),
        ("tokens a minute", "tok/min", minute.tokens, client.tokens_per_minute, Window.MINUTE),
        ("tokens today", "tok/day", today.tokens, client.tokens_per_day, Window.DAY),
        ("US$ today", "$/day", today.cost_usd, client.usd_per_day, Window.DAY),
        ("tokens this month", "tok/month", month.tokens, client.tokens_per_month, Window.MONTH),
        ("US$ this month", _MONTH, month.cost_usd, client.usd_per_month, Window.MONTH),
    )
    return [
        Meter(label, short, used, limit, window, is_money="US$" in label)
        for label, short, used, limit, window in given
        if limit is not None
    ]


def nearest(client: ClientInfo) -> Meter | None:
    """Return the bound of which the most is used, if that is `NEAR` or more."""
    most = max(meters(client), key=lambda meter: meter.share, default=None)
    return most if most is not None and most.share >= NEAR else None


def has_expired(client: ClientInfo, now_s: float) -> bool:
    """Return whether the client's end has passed: all its keys are refused."""
    return client.expires_at is not None and epoch_s(client.expires_at) <= now_s


def by_day(usage: Usage, days: int) -> tuple[list[float], list[float]]:
    """Return the tokens and the US dollars of each of the last days, the oldest first."""
    rows = {row.name: row for row in usage.rows}
    tokens, usd = [], []
    for name in last_days(days, date.fromisoformat(usage.until)):
        row = rows.get(name)
        tokens.append(float(row.prompt_tokens + row.completion_tokens) if row is not None else 0.0)
        usd.append(row.cost_usd if row is not None else 0.0)
    return tokens, usd


def last_days(days: int, today: date) -> list[str]:
    """Return the last days by name, today being the last."""
    return [(today - timedelta(days=ago)).isoformat() for ago in range(days - 1, -1, -1)]


# Bounds as text.


@dataclass(frozen=True, slots=True)
class BoundField:
    """A bound, or the note, as a line of a form."""

    name: str
    """As `ClientInfo` calls it."""
    label: str
    hint: str
    """How it is written."""
    parse: Callable[[str, float], object]
    """Reads the text, given the Unix time; raises ValueError with a sentence."""
    show: Callable[[Any], str]


def _parse_text(text: str, _: float) -> str:
    return text


def _parse_names(text: str, _: float) -> list[str]:
    return text.replace(",", " ").split()


def _parse_count(text: str, _: float) -> int:
    return parse_count(text.replace(",", "").replace("_", ""))


def _parse_usd(text: str, _: float) -> float:
    return parse_usd(text)


def _show_names(names: tuple[str, ...]) -> str:
    return " ".join(names)


def _show_usd(usd: float | None) -> str:
    return "" if usd is None else f"{usd:.9f}".rstrip("0").rstrip(".")


def _show_expiry(at: str | None) -> str:
    if at is None:
        return ""
    when = datetime.fromtimestamp(epoch_s(at)).astimezone()
    if when.time() == clock_time():
        return (when.date() - timedelta(days=1)).isoformat()
    return f"{when:%Y-%m-%d %H:%M:%S}"


def _count_field(name: str, label: str, hint: str = "500, 20k, 2M") -> BoundField:
    return BoundField(name, label, hint, _parse_count, lambda value: "" if value is None else str(value))


FIELDS = (
    BoundField("note", "note", "for you", _parse_text, str),
    BoundField("models", "models", "gpt-4o* o3; empty: all", _parse_names, _show_names),
    BoundField("endpoints", "paths", "/chat /v1/*; empty: all", _parse_names, _show_names),
    BoundField("origins", "origins", "https://a.example", _parse_names, _show_names),
    _count_field("max_streams", "requests at once", "4"),
    _count_field("requests_per_minute", "requests a minute", "20"),
    _count_field("tokens_per_minute", "tokens a minute"),
    _count_field("tokens_per_day", "tokens a day"),
    _count_field("tokens_per_month", "tokens a month"),
    BoundField("usd_per_day", "US$ a day", "1.50", _parse_usd, _show_usd),
    BoundField("usd_per_month", "US$ a month", "20", _parse_usd, _show_usd),
    _count_field("max_output_tokens", "tokens an answer"),
    BoundField("expires_at", "ends", "30d or 2027-01-31", parse_expiry, _show_expiry),
)


def texts_of(client: ClientInfo) -> dict[str, str]:
    """Return the note and the bounds of a client as text, by the name of the field."""
    return {field.name: field.show(getattr(client, field.name)) for field in FIELDS}


def parsed(texts: dict[str, str], before: dict[str, str], now_s: float) -> dict[str, object]:
    """Return the bounds whose text has changed, as the admin API takes them; None removes one.

    Raises:
        ValueError: the sentence names the field, and how it is written.
    """
    changes: dict[str, object] = {}
    for field in FIELDS:
        text = texts[field.name].strip()
        if text == before.get(field.name, "").strip():
            continue
        try:
            changes[field.name] = field.parse(text, now_s) if text else None
        except ValueError as error:
            raise ValueError(f"{field.label} is {error}.") from None
    return changes
