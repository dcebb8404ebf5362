"""The operator's app at 80x24 in a pseudo-terminal: what it costs, and how soon it shows what a key does."""

from __future__ import annotations

import fcntl
import os
import pty
import random
import select
import struct
import subprocess
import termios
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from benchmark.programs import cpu_s, on_core, resident_mib

_CURSOR = "▶".encode()
_QUESTION, _ANSWER = b"\x1b[5n", b"\x1b[0n"
"""Device status report (ECMA-48, 8.3.35): the app waits for a terminal that answers."""
_TIMEOUT_S = 60.0
_FAST_BYTES = 1 << 16
_SLOW_READS_A_S = 50


@dataclass(frozen=True, slots=True)
class Cost:
    """What the app took in some time."""

    cpu: float
    """Share of a core."""
    bytes_a_s: float
    """What it wrote to the terminal."""


class Terminal:
    """The app in a pseudo-terminal, on one core.

    Args:
        command: what to run.
        env: its whole environment.
        core: where to run it.
        line_bytes_a_s: what the line to the terminal carries; None: as much as the app writes.
    """

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str], core: int, line_bytes_a_s: int | None = None
    ) -> None:
        self._line_bytes_a_s = line_bytes_a_s
        self._read_bytes = line_bytes_a_s // _SLOW_READS_A_S if line_bytes_a_s else _FAST_BYTES
        self._master, slave = pty.openpty()
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        self._began_s = time.monotonic()
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
        self._last = b""
        """The end of what was read: a question may come in two parts."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._master)

    @property
    def age_s(self) -> float:
        """How long ago the app was started."""
        return time.monotonic() - self._began_s

    def _read(self, timeout_s: float) -> bytes:
        """Return what the line brings next, or nothing after the timeout; answer what the app asks."""
        if not select.select([self._master], [], [], max(0.0, timeout_s))[0]:
            return b""
        written = os.read(self._master, self._read_bytes)
        if self._line_bytes_a_s:
            time.sleep(len(written) / self._line_bytes_a_s)
        self._last += written
        self.press(_ANSWER * self._last.count(_QUESTION))
        self._last = self._last[1 - len(_QUESTION) :]
        return written

    def until(self, wanted: bytes) -> None:
        """Read until this is written.

        The app writes only the cells that change: a text that is shown already does not come again.

        Raises:
            TimeoutError: it was not written in time.
        """
        deadline_s, seen = time.monotonic() + _TIMEOUT_S, b""
        while wanted not in seen:
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"The app did not write {wanted!r} in time: {seen[-500:]!r}")
            seen += self._read(0.5)

    def watch(self, seconds: float) -> Cost:
        """Read for so long; return what the app takes meanwhile."""
        began_s, before_s, written = time.monotonic(), self.cpu_s(), 0
        while (left_s := began_s + seconds - time.monotonic()) > 0:
            written += len(self._read(left_s))
        return Cost((self.cpu_s() - before_s) / seconds, written / seconds)

    def press(self, keys: bytes) -> None:
        """Type."""
        os.write(self._master, keys)

    def answer_ms(self, keys: bytes, wanted: bytes) -> float:
        """Type; return how long it took until this was shown."""
        began_s = time.monotonic()
        self.press(keys)
        self.until(wanted)
        return (time.monotonic() - began_s) * 1000

    def key_to_cursor_ms(self) -> float:
        """After a pause, move the cursor up or down by turns; return how long it took to be shown there."""
        self.watch(random.uniform(0.02, 0.08))  # noqa: S311 - nothing secret
        self._keys = self._keys[::-1]
        return self.answer_ms(self._keys[:1], _CURSOR)

    def cpu_s(self) -> float:
        """Return the CPU seconds that the app has used."""
        return cpu_s(self._process.pid)

    def resident_mib(self) -> float:
        """Return the app's resident memory."""
        return resident_mib(self._process.pid)
