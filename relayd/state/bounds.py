"""What the note and the bounds of a client may be: one rule a field, whoever sets it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from fnmatch import fnmatchcase
from typing import Any

from msgspec.structs import replace

from relayd.durations import MAX_EXPIRY_S
from relayd.state.errors import BadChange
from relayd.state.records import Client, utc_text

MAX_COUNT = 10**15
MIN_USD, MAX_USD = 1e-6, 1e9
MAX_LIST = 50
MAX_ITEM_CHARS = 200
MAX_NOTE_CHARS = 500

_SHOWN_CHARS = 60
# As `fnmatch` reads it: * and ? are wild, [abc] and [!abc] are sets, and a set is closed.
_GLOB = re.compile(r"(?:[^\s\[\]]|\[!?[^\s\[\]]+\])+")
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://(?:\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::[1-9][0-9]{0,4})?")
_USUAL_PORT = re.compile(r"http://.*:80|https://.*:443")


def with_changes(client: Client, changes: Mapping[str, object], now_s: float) -> Client:
    """Return the client with some of its fields set anew; None removes a bound.

    Args:
        client: as it is.
        changes: field names and values, as JSON has them.
        now_s: the Unix time.

    Raises:
        BadChange: a field is unknown, or a value is not allowed; the text says what is.
    """
    accepted: dict[str, object] = {}
    for name, value in changes.items():
        rule = _RULES.get(name)
        if rule is None:
            raise BadChange(f"A client has no field {_shown(name)}; it has: {', '.join(_RULES)}.")
        allowed, check = rule
        try:
            accepted[name] = _NOTHING.get(name) if value is None else check(value, now_s)
        except (ValueError, OverflowError) as error:
            reason = f" ({error})" if str(error) and type(error) is _Reason else ""
            raise BadChange(f"{name} is {allowed}, not {_shown(value)}{reason}.") from error
    return replace(client, **accepted)


def describe(client: Client, names: Mapping[str, object]) -> str:
    """Return the named fields of a client in words, for the audit: `models gpt-4o*; max_streams 5`."""
    return "; ".join(f"{name} {_described(getattr(client, name))}" for name in names)


class _Reason(ValueError):
    """Says what is wrong with a value that has the right form."""


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}…"


def _described(value: object) -> str:
    if isinstance(value, tuple):
        value = ",".join(value)
    return "none" if value in {None, ""} else str(value)


def _count(value: object, _: float) -> int:
    if type(value) is not int or not 1 <= value <= MAX_COUNT:
        raise ValueError
    return value


def _usd(value: object, _: float) -> float:
    if type(value) not in {int, float} or not MIN_USD <= (usd := float(value)) <= MAX_USD:  # type: ignore[arg-type]
        raise ValueError
    return usd


def _note(value: object, _: float) -> str:
    if not isinstance(value, str) or len(value) > MAX_NOTE_CHARS or not value.isprintable():
        raise ValueError
    return value


def _list(check: Callable[[str], bool]) -> Callable[[object, float], tuple[str, ...]]:
    def checked(value: object, _: float) -> tuple[str, ...]:
        if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
            raise ValueError
        items = tuple(dict.fromkeys(value))
        if len(items) > MAX_LIST:
            raise _Reason(f"there are {len(items)}")
        for item in items:
            if len(item) > MAX_ITEM_CHARS or not item.isprintable() or not check(item):
                raise _Reason(f"see {_shown(item)}")
        return items

    return checked


def is_glob(text: str) -> bool:
    """Return whether a text is a pattern whose brackets are closed, without spaces."""
    return _GLOB.fullmatch(text) is not None


def allows(globs: Collection[str], text: str) -> bool:
    """Return whether one of the patterns matches the text; no patterns allow everything."""
    return not globs or any(fnmatchcase(text, glob) for glob in globs)


def _is_endpoint(text: str) -> bool:
    return is_glob(text) and text[0] == "/" and (text.startswith("/v1/") or fnmatchcase("/chat", text))


def _is_origin(text: str) -> bool:
    return _ORIGIN.fullmatch(text) is not None and _USUAL_PORT.fullmatch(text) is None


def _expiry(value: object, now_s: float) -> str:
    if not isinstance(value, str):
        raise ValueError  # noqa: TRY004 - as for all other values
    when = datetime.fromisoformat(value)
    if when.tzinfo is None:
        raise _Reason("it has no time zone; end it with Z")
    # Rounded down to the millisecond that the text can hold.
    end_s = math.floor(when.timestamp() * 1000) / 1000
    if not now_s < end_s <= now_s + MAX_EXPIRY_S:
        raise _Reason(f"it is {utc_text(now_s)} now")
    return utc_text(end_s)


_Rule = tuple[str, Callable[[object, float], Any]]
_COUNT: _Rule = (f"a whole number from 1 to {MAX_COUNT:,}", _count)
_USD: _Rule = (f"an amount of US dollars from {MIN_USD:f} to {MAX_USD:,.0f}", _usd)
_SIZE = f"at most {MAX_LIST}, each of at most {MAX_ITEM_CHARS} characters"
_RULES: dict[str, _Rule] = {
    "note": (f"a text of at most {MAX_NOTE_CHARS} visible characters", _note),
    "models": (
        f"a list of models' names, in which * and ? are wild and [abc] is one of these ({_SIZE})",
        _list(is_glob),
    ),
    "endpoints": (
        f"a list of paths: /chat, or patterns that begin with /v1/, such as /v1/* ({_SIZE})",
        _list(_is_endpoint),
    ),
    "origins": (
        f"a list of origins as browsers send them, such as https://a.example:8443, without a path ({_SIZE})",
        _list(_is_origin),
    ),
    "max_streams": _COUNT,
    "requests_per_minute": _COUNT,
    "tokens_per_minute": _COUNT,
    "tokens_per_day": _COUNT,
    "tokens_per_month": _COUNT,
    "max_output_tokens": _COUNT,
    "usd_per_day": _USD,
    "usd_per_month": _USD,
    "expires_at": ("a time in the future, at most ten years ahead, such as 2027-01-31T23:59:59Z", _expiry),
}
_NOTHING: dict[str, object] = {"note": "", "models": (), "endpoints": (), "origins": ()}
"""What stands for no bound, where it is not None."""
