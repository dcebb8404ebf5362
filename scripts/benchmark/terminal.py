"""The operator's app at 80x24 in a pseudo-terminal: first paint, idle CPU, and from a key to the screen."""

from __future__ import annotations

import fcntl
import os
import pty
import random
import select
import statistics
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from typing import Self

from benchmark.programs import cpu_s, on_core

LIVE = b"LIVE"
_PAINTED = b"Requests"
_CURSOR = "▶".encode()
_STARTS = 3
_SETTLE_S = 4.0
_WATCH_S = 8.0
_TIMEOUT_S = 60.0


class Screen:
    """The app in a pseudo-terminal, on one core."""

    def __init__(self, command: Sequence[str], env: Mapping[str, str], core: int) -> None:
        self._master, slave = pty.openpty()
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self.began_s = time.monotonic()
        with on_core(core):
            self._process = subprocess.Popen(
                command,
                stdin=slave,
                stdout=slave,
                stderr=slave,
                env={**env, "LANG": "C.UTF-8", "TERM": "xterm-256color", "COLORTERM": "truecolor"},
                start_new_session=True,
            )
        os.close(slave)
        self._keys = b"kj"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    def read(self, timeout_s: float) -> bytes:
        """Return what the app writes next, or nothing after the timeout."""
        if not select.select([self._master], [], [], max(0.0, timeout_s))[0]:
            return b""
        return os.read(self._master, 1 << 16)

    def until(self, wanted: bytes) -> float:
        """Read until this was written; return how many seconds after the start that was.

        Raises:
            TimeoutError: it was not written in time.
        """
        deadline_s, seen = time.monotonic() + _TIMEOUT_S, b""
        while wanted not in seen:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"The app did not write {wanted!r} in time: {seen[-500:]!r}")
            seen += self.read(0.5)
        return time.monotonic() - self.began_s

    def watch(self, seconds: float) -> float:
        """Read for so long; return the app's share of a core meanwhile."""
        began_s, before_s = time.monotonic(), cpu_s(self._process.pid)
        while (left_s := began_s + seconds - time.monotonic()) > 0:
            self.read(left_s)
        return (cpu_s(self._process.pid) - before_s) / seconds

    def press(self, keys: bytes) -> None:
        """Type."""
        os.write(self._master, keys)

    def key_to_cursor_ms(self) -> float:
        """After a pause, move the cursor up or down by turns; return how long it took to be shown there."""
        self.watch(random.uniform(0.02, 0.08))  # noqa: S311 - nothing secret
        self._keys = self._keys[::-1]
        began_s = time.monotonic()
        self.press(self._keys[:1])
        self.until(_CURSOR)
        return (time.monotonic() - began_s) * 1000


def measure_start(command: Sequence[str], env: Mapping[str, str], core: int) -> dict[str, float]:
    """Start the app a few times; return how long its first paint takes, and what it costs idle."""
    painted_s = []
    for _ in range(_STARTS):
        with Screen(command, env, core) as screen:
            painted_s.append(screen.until(_PAINTED))
    with Screen(command, env, core) as screen:
        screen.until(LIVE)
        screen.watch(_SETTLE_S)
        idle = screen.watch(_WATCH_S)
    return {
        "tui: ms from the start to the first paint": statistics.median(painted_s) * 1000,
        "tui: % CPU, idle": 100 * idle,
    }
