"""Textual's terminal driver, made to survive what real terminals do, by its public methods alone.

Faults of the stock driver (Textual 8.2.8), each tried: bytes that are not UTF-8 (a Latin-1 keyboard, an
X10 mouse report) and reports of impossible keys end the app; going on after SIGSTOP starts a second
input thread beside the first.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import threading
from codecs import getincrementaldecoder
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, cast

from textual.app import App
from textual.drivers.linux_driver import LinuxDriver

from tui.sgr import squeezed

_READ_BYTES = 4096
_POLL_S = 0.1
# ESC [ M and three bytes of any value: button, column, row, each plus 32.
_X10_MOUSE = re.compile(rb"\x1b\[M[\x20-\xff]{3}", re.DOTALL)
_X10_BEGUN = re.compile(rb"\x1b\[(M[\x20-\xff]{0,2})?\Z", re.DOTALL)
# Press and release, motion, and the two wide forms of coordinates: as Textual asks for them.
_MOUSE_MODES = (1000, 1003, 1015, 1006)


class InputFilter:
    """Makes what a terminal sends UTF-8: X10 mouse reports are dropped, other bytes replaced."""

    def __init__(self) -> None:
        self._decode = getincrementaldecoder("utf-8")("replace").decode
        self._held = b""

    def feed(self, data: bytes) -> bytes:
        """Return these bytes cleaned, as far as they are complete; a lone Escape is never held back."""
        data = _X10_MOUSE.sub(b"", self._held + data)
        begun = _X10_BEGUN.search(data)
        end = len(data) if begun is None else begun.start()
        self._held = data[end:]
        return self._decode(data[:end]).encode()


class TerminalApp(Protocol):
    """An app that writes to its terminal: Textual keeps the driver to itself."""

    terminal: TerminalDriver | None


class TerminalDriver(LinuxDriver):
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
        self.redraw: Callable[[], object] = lambda: app.call_later(app.refresh, layout=True)
        cast("TerminalApp", app).terminal = self
        self.mouse = mouse
        self.drawing = self.suspended = False
        signal.signal(signal.SIGCONT, self.resume)

    def write(self, data: str) -> None:
        """Write, in fewer bytes."""
        super().write(squeezed(data))

    def set_mouse(self, *, on: bool) -> None:
        """Ask the terminal for mouse reports, or give the mouse back to it."""
        self.mouse = on
        self.write("".join(f"\x1b[?{mode}{'h' if on else 'l'}" for mode in _MOUSE_MODES))

    def start_application_mode(self) -> None:
        """Take over the terminal."""
        super().start_application_mode()  # type: ignore[no-untyped-call]  # Textual leaves it untyped
        self.drawing = True
        self.set_mouse(on=self.mouse)

    def stop_application_mode(self) -> None:
        """Give the terminal back, and end mouse reports, also those that were turned on later."""
        wanted = self.mouse
        self.set_mouse(on=False)
        self.mouse = wanted
        self.drawing = False
        super().stop_application_mode()

    def suspend_application_mode(self) -> None:
        """Give the terminal to the shell for a while."""
        super().suspend_application_mode()
        self.suspended = True

    def resume(self, *_: object) -> None:
        """Continue after a stop, including one that the app did not ask for (SIGSTOP)."""
        if self.drawing:
            self.suspend_application_mode()
        if self.suspended:
            self.suspended = False
            self.resume_application_mode()
            self.redraw()

    def run_input_thread(self) -> None:
        """Read keys until the app ends; input that can't be understood is lost, the app is not."""
        tty = self.fileno
        # Textual's thread reads what the copying thread lets through.
        self.fileno, cleaned = os.pipe()
        ended = threading.Event()
        copying = threading.Thread(target=_copy_input, args=(tty, cleaned, ended), name="input-filter")
        copying.start()
        try:
            while not self.exit_event.is_set():
                # A report of a key with an impossible code point: begin with a new parser.
                with suppress(ValueError, OverflowError, LookupError, RuntimeError):
                    super().run_input_thread()
        finally:
            ended.set()
            copying.join()
            os.close(cleaned)
            os.close(self.fileno)
            self.fileno = tty


def _copy_input(tty: int, cleaned: int, ended: threading.Event) -> None:
    """Copy what the terminal sends, cleaned, until `ended` is set or the terminal is gone."""
    input_filter = InputFilter()
    with selectors.DefaultSelector() as selector:
        selector.register(tty, selectors.EVENT_READ)
        while not ended.is_set():
            if selector.select(_POLL_S):
                try:
                    data = os.read(tty, _READ_BYTES)
                except OSError:
                    return
                if not data:
                    return
                os.write(cleaned, input_filter.feed(data))
