"""The bounds of a client as options of the command line; the daemon judges whether they make sense."""

from __future__ import annotations

import time
from argparse import SUPPRESS, ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from relayd.admin.bound_texts import parse_count, parse_expiry, parse_usd

NOTHING = "none"
"""Removes a bound."""

T = TypeVar("T")


def add_bound_options(parser: ArgumentParser) -> None:
    """Add an option for each bound. One that is not given has no attribute in the namespace."""
    names = _or_nothing(_parse_names)
    count = _or_nothing(parse_count, "a number; write 500, 20k, 2M, or none for no bound")
    usd = _or_nothing(parse_usd, "an amount; write 20 or 1.50, or none for no bound")
    end = _or_nothing(partial(parse_expiry, now_s=time.time()), "an end; write {}, or none for no end")
    for name, metavar, read, text in (
        ("models", "GLOBS", names, "models it may use, such as 'gpt-4o*,o3'"),
        ("endpoints", "PATHS", names, "paths it may use, such as '/chat,/v1/*'"),
        ("origins", "ORIGINS", names, "web pages that may use it, such as https://a.example"),
        ("max-streams", "N", count, "requests at once"),
        ("requests-per-minute", "N", count, "requests a minute"),
        ("tokens-per-minute", "N", count, "tokens a minute, in and out; 20k and 2M are numbers, too"),
        ("tokens-per-day", "N", count, "tokens a day"),
        ("tokens-per-month", "N", count, "tokens a month"),
        ("usd-per-day", "USD", usd, "money a day, such as 1.50"),
        ("usd-per-month", "USD", usd, "money a month"),
        ("max-output-tokens", "N", count, "length of one answer, in tokens"),
        ("expires", "WHEN", end, "its end: in 12h or 30d, or the last day, such as 2027-01-31"),
        ("note", "TEXT", _or_nothing(str), "whatever helps you to know it"),
    ):
        dest = "expires_at" if name == "expires" else name.replace("-", "_")
        parser.add_argument(f"--{name}", dest=dest, metavar=metavar, type=read, default=SUPPRESS, help=text)


def bounds_in(args: Namespace, names: tuple[str, ...]) -> dict[str, object]:
    """Return the given ones of these bounds, as the admin API takes them; None removes one."""
    given = vars(args)
    return {name: given[name] for name in names if name in given}


def _or_nothing(parse: Callable[[str], T], expected: str = "") -> Callable[[str], T | None]:
    """Return what reads an option; `expected` says what the text is not, and may name the fault as `{}`."""

    def parsed(text: str) -> T | None:
        try:
            return None if text == NOTHING else parse(text)
        except ValueError as error:
            raise ArgumentTypeError(f"{text[:40]!r} is not {expected.format(error)}") from None

    return parsed


def _parse_names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        # An empty list bounds nothing: a variable that a script did not set must not open everything.
        raise ArgumentTypeError(f"{text[:40]!r} names nothing; write none for no bound")
    return names
