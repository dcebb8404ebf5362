"""What is wrong with a configuration, and how a faulty value is shown without giving away a secret."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from relayd.findings import Finding
from relayd.printable import printable

_SHOWN_CHARS = 60
_LARGEST_SHOWN_BITS = 64
# A key pasted into the wrong place, or a URL with a password, must not reach a terminal or a log.
_SECRET_LOOKING = re.compile(r"sk-|rly_|://.*[@?]", re.IGNORECASE | re.DOTALL)
_SHAPES: Mapping[type, str] = {list: "list", tuple: "list", dict: "table"}


class ConfigError(Exception):
    """The configuration cannot be used; `problems` lists everything that is wrong.

    Each problem's `where` is a place: `relayd.toml:12`, `.env:3`, `environment`, `command line` or a path.
    """

    def __init__(self, problems: Sequence[Finding]) -> None:
        self.problems = problems
        super().__init__("\n".join(map(str, problems)))


def looks_secret(text: str) -> bool:
    """Return whether a text might hold a key or a password, and must not be repeated."""
    return _SECRET_LOOKING.search(text) is not None


def shown(value: object) -> str | None:
    """Return a faulty value as messages show it, or None if it might be a secret."""
    match value:
        case str():
            return None if looks_secret(value) else _quoted(value)
        case bool():
            return "true" if value else "false"
        case int() if value.bit_length() > _LARGEST_SHOWN_BITS:
            # Python refuses to print integers of more than 4,300 digits.
            return "a huge number"
        case int() | float():
            return repr(value)
        case _:
            return f"a {_SHAPES.get(type(value), type(value).__name__)}"


def _quoted(text: str) -> str:
    # An unclosed quote in .env swallows the lines below, secrets included: show only the first line.
    first = text.partition("\n")[0][:_SHOWN_CHARS]
    clipped = first if first == text else first + "…"
    return '"' + printable(clipped.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def did_you_mean(name: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate that `name` most likely stands for, or None if none is near."""
    from difflib import get_close_matches  # noqa: PLC0415 - not needed if nothing is wrong

    near = get_close_matches(name[:200], list(candidates), n=1, cutoff=0.7)
    return near[0] if near else None
