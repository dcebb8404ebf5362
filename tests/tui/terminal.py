"""A real pseudo-terminal with a program in it."""

from __future__ import annotations

import fcntl
import os
import pty
import signal
import struct
import subprocess
import sys
import termios
from codecs import getincrementaldecoder
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.tui.emulator import Emulator
from tests.wire import until

ROOT = Path(__file__).parents[2]


class Terminal:
    """Starts a program in a pseudo-terminal of its own and keeps every byte that it writes.

    Args:
        arguments: of Python.
        home: HOME of the program.
        size: columns and rows.
        through: a command that starts the program as its argument: with fewer rights.
        env: more environment.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        home: Path,
        size: tuple[int, int] = (80, 24),
        through: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> None:
        self._master, slave = pty.openpty()
        os.set_blocking(self._master, False)
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
        # setsid(1) makes it the terminal that signals of the keyboard and of a closed window come from.
        self.process = subprocess.Popen(
            ["setsid", "--ctty", *through, sys.executable, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            cwd=ROOT,
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

    def hang_up(self) -> None:
        """Close the window."""
        if self._master >= 0:
            os.close(self._master)
            self._master = -1

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.process.send_signal(number)

    async def until(self, holds: Callable[[bytes], object]) -> bytes:
        """Read until what came since this call holds; return it."""
        start = len(self.raw)

        def seen() -> object:
            self._read()
            assert holds(self.raw[start:]) or self.process.poll() is None, self.raw[-3000:].decode(
                errors="replace"
            )
            return holds(self.raw[start:])

        try:
            await until(seen)
        except TimeoutError:
            raise AssertionError(self.raw[start:][-3000:].decode(errors="replace")) from None
        return self.raw[start:]

    async def ended(self) -> int:
        """Wait for the end, reading on; return the exit status."""

        def over() -> bool:
            self._read()
            return self.process.poll() is not None

        await until(over)
        self._read()
        return self.process.returncode

    def _read(self) -> None:
        """Take in what has come."""
        while self._master >= 0:
            try:
                data = os.read(self._master, 65536)
            except OSError:
                # Nothing more yet; or no program is left in the terminal.
                return
            if not data:
                return
            self.raw += data


class SeenTerminal(Terminal):
    """A terminal whose screen is kept; it answers what it is asked when it comes to that.

    Args:
        arguments: of Python.
        home: HOME of the program.
        through: a command that starts the program as its argument.
        env: more environment.
        encoding: of what it shows.
        read_bytes: the most that it takes in at a time; small is a slow line.
        mouse: report a move of the mouse after each read, as long as the program wants such reports.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        home: Path,
        *,
        through: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        encoding: str = "utf-8",
        read_bytes: int = 65536,
        mouse: bool = False,
    ) -> None:
        super().__init__(arguments, home, through=through, env=env)
        self._emulator = Emulator(80, 24)
        self._decode = getincrementaldecoder(encoding)("replace").decode
        self._read_bytes = read_bytes
        self._mouse = mouse
        self._answers: list[bytes] = []
        self.holds_answers = False
        """Whether answers are kept back, as on a line that has not carried them yet."""

    async def shows(self, *texts: str, gone: str = "\0") -> str:
        """Wait until the screen shows all of these texts, and one no more; return it."""

        def screen() -> str:
            return "\n".join(self._emulator.texts())

        try:
            await self.until(lambda _: all(text in screen() for text in texts) and gone not in screen())
        except AssertionError:
            raise AssertionError(f"not {texts}; the screen:\n{screen()}") from None
        return screen()

    def _read(self) -> None:
        while self._answers and not self.holds_answers:
            self.send(self._answers.pop(0))
        try:
            data = os.read(self._master, self._read_bytes) if self._master >= 0 else b""
        except OSError:
            # Nothing more yet; or no program is left in the terminal.
            return
        self.raw += data
        self._answers += self._emulator.feed(self._decode(data))
        if self._mouse and "?1003" in self._emulator.modes:
            self.send(b"\x1b[<35;20;10M")
