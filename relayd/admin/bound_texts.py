"""Bounds of a client as operators write them: numbers, amounts, and its end."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, timedelta

from relayd.durations import MAX_EXPIRY_S, TooLong, parse_duration
from relayd.state.calendar import start_of

_COUNT = re.compile(r"([0-9]{1,16})([kM]?)")
_TIMES = {"": 1, "k": 1000, "M": 1_000_000}
_USD = re.compile(r"\$?([0-9]{1,10}(?:\.[0-9]{1,9})?)")


def parse_count(text: str) -> int:
    """Return a number, such as `500`, `20k` or `2M`.

    Raises:
        ValueError: it is none; the text says what it may be, to stand in a sentence.
    """
    found = _COUNT.fullmatch(text)
    if found is None:
        raise ValueError("a whole number, such as 500, 20k or 2M")
    return int(found[1]) * _TIMES[found[2]]


def parse_usd(text: str) -> float:
    """Return an amount of US dollars, such as `20` or `1.50`; a dollar sign may come first.

    Raises:
        ValueError: it is none; the text says what it may be, to stand in a sentence.
    """
    found = _USD.fullmatch(text)
    if found is None:
        raise ValueError("an amount of US dollars, such as 20 or 1.50")
    return float(found[1])


def parse_expiry(text: str, now_s: float) -> str:
    """Return when a client ends, as RFC 3339, from a span (`30d`), a day or a time.

    A day counts whole, in the time zone of this machine, as does a time without a zone.

    Raises:
        ValueError: it is none of these; the text says what it may be, to stand in a sentence.
    """
    try:
        end = datetime.fromtimestamp(_end_s(text, now_s), UTC)
    except TooLong:
        raise ValueError(f"a span of at most {MAX_EXPIRY_S // 86_400}d") from None
    except (ValueError, OverflowError):
        raise ValueError("12h or 30d, or the last day, such as 2027-01-31") from None
    return end.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _end_s(text: str, now_s: float) -> float:
    try:
        # First, since a datetime may also be written as a day alone.
        last_day = date.fromisoformat(text)
    except ValueError:
        pass
    else:
        return start_of(last_day + timedelta(days=1))
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return now_s + parse_duration(text, MAX_EXPIRY_S)
