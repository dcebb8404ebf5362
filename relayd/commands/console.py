"""Where a command reads its surroundings from and writes its answer to."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

import msgspec

from relayd.admin.client import AdminClient
from relayd.admin.paths import socket_path


@dataclass(frozen=True, slots=True)
class Console:
    """One command's surroundings. Answers go to `out`, all other words to `err`."""

    env: Mapping[str, str]
    out: TextIO
    err: TextIO

    def client(self, socket: str | None) -> AdminClient:
        """The daemon at `--socket`, or where the environment says."""
        return AdminClient(socket_path(self.env, socket))

    def say(self, text: str) -> None:
        """A line of the answer; control characters in it are made visible."""
        self.out.write(f"{harmless(text)}\n")

    def note(self, text: str) -> None:
        """A line beside the answer."""
        self.err.write(f"{harmless(text)}\n")

    def json(self, document: object) -> None:
        """The answer as one line of JSON."""
        # Everything outside ASCII is escaped by the encoder below: no terminal can be moved by it.
        self.out.write(ascii_json(document) + "\n")

    def give_up_output(self) -> None:
        """Let what is still to be written to a broken stdout go nowhere, in silence."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.out.fileno())

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Rows in aligned columns; the last column is as long as it likes."""
        for line in aligned(rows):
            self.say(line)


def harmless(text: str) -> str:
    r"""The text with everything a terminal could act on written as an escape (`\x1b`, `\u202e`)."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def ascii_json(document: object) -> str:
    r"""One line of JSON in ASCII: what is beyond it, and DEL, become \u escapes."""
    text = msgspec.json.encode(document).decode()
    if text.isascii() and "\x7f" not in text:
        return text
    return "".join(char if " " <= char <= "~" else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    units = char.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """The rows as lines whose columns stand below each other."""
    shown = [[harmless(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        yield "  ".join([*cells, row[-1]]).rstrip()
