"""The bounds of a client as options of the command line; the daemon judges whether they make sense."""

from __future__ import annotations

import time
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from typing import TypeVar

from relayd.admin.bound_texts import parse_count, parse_expiry, parse_usd

NOTHING = "none"
"""Removes a bound."""

T = TypeVar("T")


def add_bound_options(parser: ArgumentParser) -> None:
    """Add an option for each bound. One that is not given has no attribute in the namespace."""
    for name, metavar, kind, text in (
        ("models", "GLOBS", _names, "models it may use, such as 'gpt-4o*,o3'"),
        ("endpoints", "PATHS", _names, "paths it may use, such as '/chat,/v1/*'"),
        ("origins", "ORIGINS", _names, "web pages that may use it, such as https://a.example"),
        ("max-streams", "N", _count, "requests at once"),
        ("requests-per-minute", "N", _count, "requests a minute"),
        ("tokens-per-minute", "N", _count, "tokens a minute, in and out; 20k and 2M are numbers, too"),
        ("tokens-per-day", "N", _count, "tokens a day"),
        ("tokens-per-month", "N", _count, "tokens a month"),
        ("usd-per-day", "USD", _usd, "money a day, such as 1.50"),
        ("usd-per-month", "USD", _usd, "money a month"),
        ("max-output-tokens", "N", _count, "length of one answer, in tokens"),
        ("expires", "WHEN", _expiry, "its end: in 12h or 30d, or the last day, such as 2027-01-31"),
        ("note", "TEXT", str, "whatever helps you to know it"),
    ):
        dest = "expires_at" if name == "expires" else name.replace("-", "_")
        parser.add_argument(
            f"--{name}", dest=dest, metavar=metavar, type=_or_nothing(kind), default=SUPPRESS, help=text
        )


def bounds_in(args: Namespace, names: tuple[str, ...]) -> dict[str, object]:
    """Return the given ones of these bounds, as the admin API takes them; None removes one."""
    given = vars(args)
    return {name: given[name] for name in names if name in given}


def _or_nothing(parse: Callable[[str], T]) -> Callable[[str], T | None]:
    def parsed(text: str) -> T | None:
        return None if text == NOTHING else parse(text)

    return parsed


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        # An empty list bounds nothing: a variable that a script did not set must not open everything.
        raise ArgumentTypeError(f"{text[:40]!r} names nothing; write none for no bound")
    return names


def _count(text: str) -> int:
    try:
        return parse_count(text)
    except ValueError:
        raise ArgumentTypeError(
            f"{text[:40]!r} is not a number; write 500, 20k, 2M, or none for no bound"
        ) from None


def _usd(text: str) -> float:
    try:
        return parse_usd(text)
    except ValueError:
        raise ArgumentTypeError(
            f"{text[:40]!r} is not an amount; write 20 or 1.50, or none for no bound"
        ) from None


def _expiry(text: str) -> str:
    try:
        return parse_expiry(text, time.time())
    except ValueError as error:
        raise ArgumentTypeError(f"{text[:40]!r} is not an end; write {error}, or none for no end") from None
