"""How the commands that ask the daemon run: where they read and write, and what errors look like."""

from __future__ import annotations

import asyncio
import math
import os
import sys
from argparse import Namespace
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from io import TextIOWrapper
from typing import TextIO

from relayd.admin.client import AdminClient, AdminClientError, NoDaemon
from relayd.admin.schema import FilterError, epoch_s
from relayd.durations import short
from relayd.files import socket_path
from relayd.printable import plural, printable, printable_json, typeable

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NO_DAEMON = 3
_CENT = 0.01
_KIB = 1024


@dataclass(frozen=True, slots=True)
class Console:
    """The surroundings of one command. Answers go to `out`, all other text to `err`."""

    env: Mapping[str, str]
    out: TextIO
    err: TextIO

    def client(self, socket: str | None) -> AdminClient:
        """Return a client of the daemon at `--socket`, or at the place that the environment names."""
        return AdminClient(socket_path(self.env, socket))

    def say(self, text: str) -> None:
        """Write a line of the answer."""
        self.out.write(f"{printable(text)}\n")

    def note(self, text: str) -> None:
        """Write a line beside the answer; commands in it are as the reader can type them."""
        self.err.write(f"{printable(typeable(text))}\n")

    def tell(self, sentence: str) -> None:
        """Write a sentence of ours as the answer, with commands as the reader can type them."""
        self.say(typeable(sentence))

    def json(self, document: object) -> None:
        """Write the answer as one line of JSON."""
        self.out.write(printable_json(document) + "\n")

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        """Write rows in aligned columns; the last column may have any width."""
        cells = [[printable(cell) for cell in row] for row in rows]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        for row in cells:
            padded = [cell.ljust(width) for cell, width in zip(row[:-1], widths, strict=False)]
            self.say("  ".join([*padded, row[-1]]).rstrip())

    def discard_output(self) -> None:
        """Send what is still to be written to a broken stdout nowhere, without an error."""
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.out.fileno())


def run(args: Namespace) -> int:
    """Run the command whose function `args.answer` names, and return the exit status."""
    if isinstance(sys.stdout, TextIOWrapper):
        # A terminal without UTF-8 shows escapes instead of ending the command.
        sys.stdout.reconfigure(errors="backslashreplace")
    console = Console(os.environ, sys.stdout, sys.stderr)
    module, name = args.answer.split(":")
    command: Callable[[Namespace, Console], Awaitable[int]] = getattr(
        import_module(f"relayd.commands.{module}"), name
    )

    async def answer() -> int:
        return await command(args, console)

    try:
        return asyncio.run(answer())
    except FilterError as error:
        console.note(f"relayd: {error}")
        for line in error.pointer().splitlines():
            console.note(f"  {line}")
        return EXIT_USAGE
    except AdminClientError as error:
        console.note(f"relayd: {error}")
        return EXIT_NO_DAEMON if isinstance(error, NoDaemon) else EXIT_FAILED


def show(args: Namespace, console: Console, document: object, sentence: str) -> int:
    """Write the document if `--json` is given, else the sentence; return the exit status."""
    if args.json:
        console.json(document)
    else:
        console.tell(sentence)
    return 0


def streams_after(cut: int | None) -> str:
    """Return what becomes of the open streams of a key or client that has ended.

    Args:
        cut: how many were ended with it; None: they may continue.
    """
    if cut is None:
        return "Its open streams continue to their end."
    return f"{plural(cut, 'open stream')} ended."


def usd(amount: float) -> str:
    """Return `$1.50`, or `$0.0035`: what is less than a cent has two digits that count."""
    digits = 2 if amount >= _CENT or amount <= 0 else 1 - math.floor(math.log10(amount))
    return f"${amount:,.{digits}f}"


def left(utc: str, now_s: float) -> str:
    """Return how far in the future a time is: `42m left`."""
    return f"{short(epoch_s(utc) - now_s)} left"


def ago(utc: str, now_s: float) -> str:
    """Return how far in the past a time is: `42m ago`."""
    return f"{short(now_s - epoch_s(utc))} ago"


def size(count: int) -> str:
    """Return `512 B`, `1.5 MiB`."""
    amount, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < _KIB:
            break
        amount, unit = amount / _KIB, larger
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
