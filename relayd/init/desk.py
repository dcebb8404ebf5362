"""Where `init` asks and answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO


class InitError(Exception):
    """`init` can't go on; nothing was changed unless the text says so."""


@dataclass(frozen=True, slots=True)
class Desk:
    """Where `init` reads and writes.

    Attributes:
        env: the environment.
        cwd: where relayd.toml goes.
        out: what is said.
        ask: puts a question and returns the answer; None where nobody is there to answer.
        ask_secret: the same, without showing what is typed.
        read_stdin: all of stdin, for `--key-file -`.
    """

    env: Mapping[str, str]
    cwd: Path
    out: TextIO
    ask: Callable[[str], str] | None
    ask_secret: Callable[[str], str]
    read_stdin: Callable[[], str]

    def say(self, line: str = "") -> None:
        """A line to the person."""
        self.out.write(line + "\n")
