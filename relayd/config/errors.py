"""What is wrong with a configuration, said in sentences."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from relayd.printable import printable

_SHOWN_CHARS = 60
_LARGEST_SHOWN_BITS = 64
# A key pasted into the wrong place, or a URL that carries a password, must not reach a terminal or a log.
_SECRET_LOOKING = re.compile(r"sk-|rly_|://.*[@?]", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing to mend before relayd can start.

    `where` is a place (`relayd.toml:12`, `.env:3`, `environment`, `command line`, a path), `message` the rest
    of the sentence, `key` the dotted key concerned or None. No part ever holds a secret.
    """

    where: str
    message: str
    key: str | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


class ConfigError(Exception):
    """The configuration cannot be used; `problems` says everything that is wrong, not only the first."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


@dataclass(slots=True)
class Findings:
    """What reading turned up, gathered on the way: problems stop the start, warnings do not."""

    problems: list[Problem] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def looks_secret(text: str) -> bool:
    """Whether a text might hold a key or a password, and is better not repeated."""
    return _SECRET_LOOKING.search(text) is not None


def shown(value: object) -> str | None:
    """Render a faulty value for a sentence; None when it might be a secret and must stay unsaid."""
    if isinstance(value, str):
        return None if looks_secret(value) else _quoted(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and value.bit_length() > _LARGEST_SHOWN_BITS:
        # str() of a huge int is slow, and refused by Python over 4,300 digits.
        return "a huge number"
    if isinstance(value, int | float):
        return repr(value)
    return _SHAPES.get(type(value), f"a {type(value).__name__}")


_SHAPES: dict[type, str] = {list: "a list", tuple: "a list", dict: "a table"}


def _quoted(text: str) -> str:
    # A quote left open in .env takes the lines below with it, whatever they hold: show the first alone.
    first = text.partition("\n")[0][:_SHOWN_CHARS]
    clipped = first if first == text else first + "…"
    return '"' + printable(clipped.replace("\\", "\\\\").replace('"', '\\"')) + '"'


def did_you_mean(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate a person most likely meant by `name`, or None when nothing is near."""
    # Needed only when something is wrong: a start that goes well does not pay for the import.
    from difflib import get_close_matches  # noqa: PLC0415

    near = get_close_matches(name[:200], list(candidates), n=1, cutoff=0.7)
    return near[0] if near else None


def in_order(problems: Iterable[Problem]) -> list[Problem]:
    """Sort as a person mends: files by line, `.env` by line, the environment, the command line."""
    return sorted(
        problems, key=lambda problem: (_rank(problem.where), _natural(problem.where), problem.message)
    )


def _rank(where: str) -> int:
    return {"environment": 2, "command line": 3}.get(where, 1 if where.startswith(".env:") else 0)


def _natural(text: str) -> list[str | int]:
    """Split so that line 9 sorts before line 10; text and numbers alternate, so they always compare."""
    return [int(part) if part.isdigit() else part for part in re.split(r"([0-9]{1,9})", text)]
