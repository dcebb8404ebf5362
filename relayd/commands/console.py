"""Where a command reads its surroundings from and writes its answer to."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

from relayd.admin.client import AdminClient
from relayd.admin.paths import socket_path
from relayd.printable import printable, printable_json


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
        self.out.write(f"{printable(text)}\n")

    def note(self, text: str) -> None:
        """A line beside the answer."""
        self.err.write(f"{printable(text)}\n")

    def json(self, document: object) -> None:
        """The answer as one line of JSON."""
        self.out.write(printable_json(document) + "\n")

    def give_up_output(self) -> None:
        """Let what is still to be written to a broken stdout go nowhere, in silence."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.out.fileno())

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Rows in aligned columns; the last column is as long as it likes."""
        for line in aligned(rows):
            self.say(line)


def aligned(rows: Sequence[Sequence[str]]) -> Iterable[str]:
    """The rows as lines whose columns stand below each other."""
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*shown, strict=True)]
    for row in shown:
        cells = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)]
        yield "  ".join([*cells, row[-1]]).rstrip()
