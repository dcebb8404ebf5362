"""Log lines of `key=value` pairs that a hostile value cannot break."""

from __future__ import annotations

import re

from relayd.printable import printable_json

_PLAIN = re.compile(r"[A-Za-z0-9_.:/@+-]+")


def logfmt(**values: object) -> str:
    """The pairs whose value is not None, in order; values with anything unusual are quoted as JSON.

    What is not printable ASCII is escaped, so that a value can neither end a line nor steer a terminal.
    """
    return " ".join(f"{key}={_value(value)}" for key, value in values.items() if value is not None)


def _value(value: object) -> str:
    text = str(value)
    if _PLAIN.fullmatch(text):
        return text
    return printable_json(text)
