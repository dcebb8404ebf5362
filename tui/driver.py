"""Textual's terminal driver, made to survive what real terminals do.

Four faults of the stock driver (Textual 8.2.8), each tried: a mouse report in the old X10 form has
bytes that are not UTF-8, and the strict decoder ends the app; a terminal that is gone reads as empty
for ever, and the input thread spins; writing to it kills the output thread, and the app then blocks
for ever on a full queue; going on after SIGSTOP starts a second input thread beside the first.
"""

from __future__ import annotations

import os
import re
import selectors
import termios
import tty
from codecs import getincrementaldecoder
from collections.abc import Callable, Iterable
from contextlib import suppress
from io import TextIOWrapper
from typing import IO, Protocol, cast

from textual._xterm_parser import XTermParser
from textual.app import App
from textual.drivers.linux_driver import LinuxDriver
from textual.message import Message

from tui.sgr import squeezed

_READ_BYTES = 4096
_POLL_S = 0.1
# ESC [ M and three bytes of any value: button, column, row, each plus 32.
_X10_MOUSE = re.compile(rb"\x1b\[M[\x20-\xff]{3}", re.DOTALL)
_X10_BEGUN = re.compile(rb"\x1b\[(M[\x20-\xff]{0,2})?\Z", re.DOTALL)


class HangUp(Protocol):
    """What the app offers to a driver whose terminal is gone."""

    def hung_up(self) -> None:
        """Leave: nobody is there."""


class InputDecoder:
    """Terminal bytes to text: X10 mouse reports are dropped, bytes that are not UTF-8 are replaced."""

    def __init__(self) -> None:
        self._decode = getincrementaldecoder("utf-8")("replace").decode
        self._held = b""

    def feed(self, data: bytes, *, final: bool = False) -> str:
        """The text of these bytes, as far as it is complete."""
        data = _X10_MOUSE.sub(b"", self._held + data)
        begun = None if final else _X10_BEGUN.search(data)
        self._held = b"" if begun is None else data[begun.start() :]
        return self._decode(data if begun is None else data[: begun.start()], final)


class SafeParser:
    """Textual's key parser, begun anew when a sequence makes it fail."""

    def __init__(self, make: Callable[[], XTermParser]) -> None:
        self._make = make
        self._parser = make()

    def feed(self, text: str) -> Iterable[Message]:
        """The events of this text; the parser would take an empty one for the end of all input."""
        if not text:
            return []
        return self._guarded(lambda: self._parser.feed(text))

    def tick(self) -> Iterable[Message]:
        """Events that were waiting for more: a lone Escape."""
        return self._guarded(self._parser.tick)

    def _guarded(self, parse: Callable[[], Iterable[Message]]) -> list[Message]:
        events: list[Message] = []
        try:
            for event in parse():
                events.append(event)  # noqa: PERF402 - what came before a failure must not be lost
        except (ValueError, OverflowError, LookupError, RuntimeError):
            # A key report with an impossible code point, for one: the sequence is lost, the app is not.
            self._parser = self._make()
        return events


class TerminalFile:
    """Standard error, until the terminal is gone; from then on a hole."""

    def __init__(self, file: IO[str], gone: Callable[[], None]) -> None:
        self._file = file
        self._gone = gone
        self._open = True

    def write(self, text: str) -> int:
        """Write, or throw away."""
        self._try(lambda: self._file.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush, or do nothing."""
        self._try(self._file.flush)

    def fileno(self) -> int:
        """The descriptor of the terminal."""
        return self._file.fileno()

    def _try(self, act: Callable[[], object]) -> None:
        if not self._open:
            return
        try:
            act()
        except (OSError, ValueError):
            self._open = False
            self._gone()


class RelaydDriver(LinuxDriver):
    """The driver that the app uses on a real terminal."""

    def __init__(
        self,
        app: App[object],
        *,
        debug: bool = False,
        mouse: bool = True,
        size: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(app, debug=debug, mouse=mouse, size=size)
        self._file = cast("TextIOWrapper", TerminalFile(cast("IO[str]", self._file), self._hang_up))

    def write(self, data: str) -> None:
        """Write, in fewer bytes."""
        super().write(squeezed(data))

    def _hang_up(self) -> None:
        app = cast("HangUp", self._app)
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(app.hung_up)

    def _sigcont_application(self, *args: object) -> None:
        """Go on after a stop.

        Textual starts everything anew here, also when the stop was not its own (SIGSTOP): two threads
        then read the keys, and the app can't end. In that case only the terminal is set up again.
        """
        if self._must_signal_resume:
            super()._sigcont_application(*args)
        elif self._writer_thread is not None and not self.exit_event.is_set():
            self._set_up_again()

    def _set_up_again(self) -> None:
        """The modes that a shell changes while this process is stopped."""
        with suppress(termios.error):
            attributes = termios.tcgetattr(self.fileno)
            attributes[tty.LFLAG] = self._patch_lflag(attributes[tty.LFLAG])
            attributes[tty.IFLAG] = self._patch_iflag(attributes[tty.IFLAG])
            attributes[tty.CC][termios.VMIN] = 1
            termios.tcsetattr(self.fileno, termios.TCSANOW, attributes)
        self.write("\x1b[?1049h\x1b[?25l\x1b[?1004h")
        self._enable_mouse_support()
        self._enable_bracketed_paste()
        self._disable_line_wrap()
        self._loop.call_soon_threadsafe(lambda: self._app.refresh(layout=True))

    def set_mouse(self, *, on: bool) -> None:
        """Ask the terminal for mouse reports, or give the mouse back to it."""
        if on:
            self._mouse = True
            self._enable_mouse_support()
        else:
            self._disable_mouse_support()
            self._mouse = False

    def run_input_thread(self) -> None:
        """Read keys until the app ends or the terminal is gone."""
        parser = SafeParser(lambda: XTermParser(self._debug))
        decoder = InputDecoder()
        with selectors.DefaultSelector() as selector:
            selector.register(self.fileno, selectors.EVENT_READ)
            while not self.exit_event.is_set():
                if selector.select(_POLL_S):
                    data = self._read()
                    if not data:
                        self._hang_up()
                        return
                    self._pass_on(parser.feed(decoder.feed(data)))
                self._pass_on(parser.tick())

    def _read(self) -> bytes:
        try:
            return os.read(self.fileno, _READ_BYTES)
        except OSError:
            return b""

    def _pass_on(self, events: Iterable[Message]) -> None:
        for event in events:
            self.process_message(event)
