"""A real pseudo-terminal with a program in it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

ROOT = Path(__file__).parents[2]
WAIT_S = 60.0


class Terminal:
    """Starts a program in a pseudo-terminal of its own and keeps every byte that it writes."""

    def __init__(
        self,
        arguments: Sequence[str],
        home: Path,
        size: tuple[int, int] = (80, 24),
        through: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        """`through` is a command that starts the program as its argument: another user, fewer rights."""
        self._master, slave = pty.openpty()
        self.resize(*size)
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "TERM": "xterm-256color",
            "TZ": "UTC",
            "PYTHONPATH": str(ROOT),
            "LANG": "C.UTF-8",
            **(env or {}),
        }
        self.process = subprocess.Popen(
            [*through, sys.executable, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            cwd=ROOT,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # noqa: PLW1509 - the test has no threads
        )
        os.close(slave)
        self.raw = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(10)
        self.hang_up()

    def resize(self, width: int, height: int) -> None:
        """Give the window another size; the program gets SIGWINCH."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))

    def send(self, data: bytes) -> None:
        """Type."""
        os.write(self._master, data)

    def read(self, seconds: float) -> bytes:
        """Take in what comes within this time; returns it."""
        end_s = time.monotonic() + seconds
        before = len(self.raw)
        while (left_s := end_s - time.monotonic()) > 0:
            if not select.select([self._master], [], [], left_s)[0]:
                break
            try:
                data = os.read(self._master, 65536)
            except OSError:
                break
            if not data:
                break
            self.raw += data
        return self.raw[before:]

    def until(self, holds: Callable[[bytes], object]) -> bytes:
        """Read until what came since this call holds; fails after a minute."""
        start = len(self.raw)
        end_s = time.monotonic() + WAIT_S
        while not holds(self.raw[start:]):
            assert time.monotonic() < end_s, self.raw[start:][-3000:].decode(errors="replace")
            assert self.process.poll() is None, self.raw[-3000:].decode(errors="replace")
            self.read(0.1)
        return self.raw[start:]

    def hang_up(self) -> None:
        """Close the window."""
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    def wait(self, seconds: float = WAIT_S) -> int:
        """Wait for the end, reading on; returns the exit status."""
        end_s = time.monotonic() + seconds
        while self.process.poll() is None:
            assert time.monotonic() < end_s, "it did not end"
            if self._master >= 0:
                self.read(0.05)
            else:
                time.sleep(0.05)
        if self._master >= 0:
            self.read(0.2)
        return self.process.wait()
