"""What may follow in a filter that is being typed: fields, operators and values."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from relayd.admin.schema import Fields, quoted

MAX_FOUND = 30
_TERM = re.compile(
    r'(?P<word>(?:(?!!=|!~)[^\s=<>~"])+)'
    r'(?:(?P<op>\s*(?:!=|!~|>=|<=|=|>|<|~))\s*(?P<value>"(?:[^"\\]|\\.)*"?|\S*))?'
    r'|"(?:[^"\\]|\\.)*"?'
    r"|\S"
)
_TEXT_OPERATORS = ("=", "~", "!=", "!~")
_NUMBER_OPERATORS = (">", "<", "=", ">=", "<=", "!=")


@dataclass(frozen=True, slots=True)
class Completion:
    """One way to go on."""

    text: str
    """The whole filter with it."""
    shown: str
    """The part that is chosen."""


def completions(text: str, fields: Fields, values: Callable[[str], Iterable[str]]) -> list[Completion]:
    """Return how the last term of a filter may go on, the best first; nothing if it has not begun.

    Args:
        text: what is typed.
        fields: those that a filter may name.
        values: returns the known values of a field.
    """
    term = next(iter(deque(_TERM.finditer(text), maxlen=1)), None)
    if term is None or term.end() != len(text) or term["word"] is None:
        return []
    word, name = term["word"], term["word"].lower()
    if term["op"] is None:
        found = [(field, field) for field in fields if field.startswith(name) and field != name]
        if name in fields:
            known = fields[name]
            operators = _TEXT_OPERATORS if known.is_text else _NUMBER_OPERATORS
            found = [*((name + sign, sign) for sign in operators), *found]
        elif not found and len(word) > 1:
            found = [(field, field) for field in fields if f"_{name}" in field]
        return [Completion(text[: term.start()] + new, shown) for new, shown in found[:MAX_FOUND]]
    if name not in fields:
        return []
    return [
        Completion(text[: term.start("value")] + quoted(value), quoted(value))
        for value in _matching(term["value"], fields[name].choices or values(name))
    ]


def _matching(typed: str, values: Iterable[str]) -> list[str]:
    """Return the values that begin with what is typed, then those that have it elsewhere."""
    if len(typed) > 1 and typed[0] == typed[-1] == '"':
        return []
    part = typed.removeprefix('"').lower()
    known = [value for value in values if value.lower() != part]
    first = [value for value in known if value.lower().startswith(part)]
    return [*first, *(value for value in known if part in value.lower() and value not in first)][:MAX_FOUND]
