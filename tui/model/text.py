"""Texts from outside made safe to show and bounded, once, where they enter the app."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from relayd.printable import printable
from tui.model.glyphs import TERMINAL

FIELD_LIMIT = 200
MESSAGE_LIMIT = 500
_LONG_FIELDS = frozenset({"message", "detail", "value", "new_value", "warnings", "problems"})

S = TypeVar("S", bound=msgspec.Struct)


def printable_text(text: str, limit: int = FIELD_LIMIT) -> str:
    """Return the text safe to show, cut to `limit` characters with an ellipsis."""
    shown = TERMINAL.escaped(printable(text[:limit]))
    return shown if len(shown) <= limit and len(text) <= limit else shown[: limit - 1] + "…"


def printable_struct(struct: S) -> S:
    """Return the struct with every text in it, nested ones too, safe to show and bounded."""
    changes = {}
    for name in struct.__struct_fields__:
        value = getattr(struct, name)
        shown = _printable_value(value, MESSAGE_LIMIT if name in _LONG_FIELDS else FIELD_LIMIT)
        if shown is not value:
            changes[name] = shown
    return msgspec.structs.replace(struct, **changes) if changes else struct


def _printable_value(value: object, limit: int) -> object:
    # Not isinstance: the members of a StrEnum are texts of our own.
    if type(value) is str:
        is_safe = len(value) <= limit and value.isprintable() and TERMINAL.escaped(value) is value
        return value if is_safe else printable_text(value, limit)
    if isinstance(value, msgspec.Struct):
        return printable_struct(value)
    if isinstance(value, tuple | list):
        return type(value)(_printable_value(item, limit) for item in value) if value else value
    return value
