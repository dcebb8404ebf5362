"""Runs the command line in this process, against whatever socket it is given."""

from __future__ import annotations

import asyncio
import io
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from relayd.cli import main


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended, and what it said."""

    status: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        """The lines of the answer."""
        return self.out.splitlines()


async def relayd(socket: Path, *words: str) -> Ran:
    """`relayd WORDS --socket …`, in a thread, so that the daemon in this loop can answer."""
    return await asyncio.to_thread(run, *words, "--socket", str(socket))


def run(*words: str) -> Ran:
    """`relayd WORDS`, as the shell sees it."""
    with _captured() as (out, err):
        try:
            status = main(words)
        except SystemExit as stopped:
            status = stopped.code if isinstance(stopped.code, int) else 1
    return Ran(status, out.getvalue(), err.getvalue())


@contextmanager
def _captured() -> Iterator[tuple[io.StringIO, io.StringIO]]:
    """Both outputs as text; redirect_stdout would not reach what another thread writes later."""
    before = sys.stdout, sys.stderr
    out, err = io.StringIO(), io.StringIO()
    sys.stdout, sys.stderr = out, err
    try:
        yield out, err
    finally:
        sys.stdout, sys.stderr = before
