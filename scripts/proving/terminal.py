"""A person at a terminal: a program is started, what it asks is answered."""

from __future__ import annotations

import os
import pty
import select
import struct
import sys
import termios
import time
from collections.abc import Mapping, Sequence
from fcntl import ioctl
from pathlib import Path

from proving.roots import ProofFailed

_STEP_S = 900.0


def at_terminal(
    words: Sequence[str],
    answers: Sequence[tuple[str, str]] = (),
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    shown: bool = True,
) -> str:
    """Run a program in a terminal of 80 columns; returns all that it showed.

    Args:
        words: the program and its arguments.
        answers: part of each question, in order, and what is typed then, with its Enter where one is due.
        env: its environment; None for this one.
        cwd: where it starts; None for here.
        shown: whether it is seen here too.

    Raises:
        ProofFailed: it failed, asked something else, or takes too long.
    """
    pid, terminal = pty.fork()
    if pid == 0:
        os.chdir(cwd or Path.cwd())
        os.execvpe(words[0], list(words), dict(os.environ if env is None else env))  # noqa: S606 - fixed words
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    seen, looked_at, left, deadline = "", 0, list(answers), time.monotonic() + _STEP_S
    while time.monotonic() < deadline:
        if not select.select([terminal], [], [], 1)[0]:
            continue
        try:
            piece = os.read(terminal, 4096).decode(errors="replace")
        except OSError:  # the program is gone
            break
        if not piece:
            break
        if shown:
            sys.stdout.write(piece)
            sys.stdout.flush()
        seen += piece
        if left and (at := seen.find(left[0][0], looked_at)) >= 0:
            looked_at = at + len(left[0][0])
            os.write(terminal, left.pop(0)[1].encode())
    os.close(terminal)  # who still runs is hung up on
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status != 0 or left:
        raise ProofFailed(f"status {status}, unasked: {[question for question, _ in left]}")
    return seen.replace("\r\n", "\n")
