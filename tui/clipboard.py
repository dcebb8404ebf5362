"""Copying from a terminal that may be far away. Nobody confirms it, so nothing here claims success."""

from __future__ import annotations

import asyncio
import base64
import os
import shutil
import tempfile
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Callable, Mapping
from pathlib import Path

_TMUX_WAIT_S = 2.0
# The longest that xterm and most others take.
_OSC52_MAX_BYTES = 74_000
_NO_OSC52_TERMS = frozenset({"linux", "dumb", "vt100", "vt220", ""})


class NoClipboard(Exception):
    """This terminal has no clipboard that is known of; the sentence says what to do."""


async def copy(
    text: str, what: str, env: Mapping[str, str], write: Callable[[str], None], *, may_use_file: bool = True
) -> str:
    """Send text towards the operator's clipboard; returns a sentence that says by which way.

    tmux's own clipboard first, then the escape sequence OSC 52, then a file that only this user can
    read.

    Raises:
        NoClipboard: there is no other way than a file, and `may_use_file` is False (secrets).
    """
    if env.get("TMUX") and await _by_tmux(text, env):
        return f"{what} was given to tmux (load-buffer -w): paste with tmux, or from your clipboard."
    if env.get("TERM", "") not in _NO_OSC52_TERMS and len(text.encode()) <= _OSC52_MAX_BYTES:
        write(osc52(text, env))
        return f"{what} was sent by OSC 52; if your terminal allows that, it is in your clipboard."
    if not may_use_file:
        raise NoClipboard(f"{what} could not be sent: this terminal has no clipboard. s saves it to a file.")
    path = await asyncio.to_thread(private_file, text, "relayd-copy-", None)
    return f"{what} is in {path} (only you can read it)."


def osc52(text: str, env: Mapping[str, str]) -> str:
    """Return the sequence that asks a terminal to take text into its clipboard."""
    sequence = f"\x1b]52;c;{base64.b64encode(text.encode()).decode()}\x07"
    return f"\x1bP{sequence}\x1b\\" if env.get("STY") else sequence


async def _by_tmux(text: str, env: Mapping[str, str]) -> bool:
    program = shutil.which("tmux", path=env.get("PATH"))
    if program is None:
        return False
    try:
        # The text goes through a pipe: arguments are visible to every user of the machine.
        process = await asyncio.create_subprocess_exec(
            program, "load-buffer", "-w", "-", stdin=PIPE, stdout=DEVNULL, stderr=DEVNULL, env=dict(env)
        )
    except OSError:
        return False
    try:
        async with asyncio.timeout(_TMUX_WAIT_S):
            await process.communicate(text.encode())
    except TimeoutError:
        process.kill()
        await process.wait()
        return False
    return process.returncode == 0


def private_file(text: str, prefix: str, directory: Path | None, suffix: str = ".txt") -> Path:
    """Return a new file of mode 0600 with this text.

    Raises:
        OSError: it can't be made.
    """
    descriptor, name = tempfile.mkstemp(prefix=prefix, suffix=suffix, dir=directory)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    return Path(name)
