"""Textual's terminal driver, made to survive what real terminals do, by its public methods alone.

Faults of the stock driver (Textual 8.2.8), each tried: bytes that are not UTF-8 (a Latin-1 keyboard, an
X10 mouse report) and reports of impossible keys end the app; going on after SIGSTOP starts a second
input thread beside the first; at the end, mouse reports that are under way reach the shell; on a slow
line a key is answered when all frames before it are written.
"""

from __future__ import annotations

import asyncio
import os
import re
import selectors
import shutil
import signal
import threading
import time
from codecs import getincrementaldecoder
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol, cast

from textual import constants, events
from textual.app import App
from textual.drivers.linux_driver import LinuxDriver
from textual.message import Message

from tui.model.glyphs import TERMINAL, UTF_8
from tui.painter import ANSWER, Painter

_OUTPUT_FD = 2
_READ_BYTES = 4096
# ESC [ M and three bytes of any value: button, column, row, each plus 32.
_X10_MOUSE = re.compile(rb"\x1b\[M[\x20-\xff]{3}", re.DOTALL)
_BEGUN = re.compile(rb"\x1b\[(M[\x20-\xff]{0,2}|0|20{0,2})?\Z", re.DOTALL)
# Press and release, motion, and the two wide forms of coordinates: as Textual asks for them.
_MOUSE_MODES = (1000, 1003, 1015, 1006)
_MOUSE_ON = frozenset(f"\x1b[?{mode}h" for mode in _MOUSE_MODES)
_NO_OTHER_REPORTS = "\x1b[?1016l\x1b[?1004l"
"""Places in pixels, and the focus of the window."""
_FRAME = re.compile(r"\x1b\[\d+;\d+H")
"""How Textual's frames begin: with a move of the cursor."""
_ASK_PLACE = "\x1b[6n"
"""The last question to the terminal, told from all others by its answer."""
_PLACE = re.compile(rb"\x1b\[\d+;\d+R")
_PASTE_BEGINS, _PASTE_ENDS = b"\x1b[200~", b"\x1b[201~"
_ESCAPED = re.compile(rb"\x1b([^\x1b\[O])", re.DOTALL)
"""Escape and a key; what else begins with Escape is a sequence of one key."""
_KEY_ENDS = b"\x1b[?0;0$y"
"""The report of a mode that does not exist: Textual knows then that an Escape was a key of its own."""
_DRAIN_S = 5.0
_LOOKS_AFTER_INPUT_S = 2 * constants.ESCAPE_DELAY + 0.5
"""Longer than Textual waits for what may follow an Escape."""
_QUIET_S = 0.1


class InputFilter:
    """Makes what a terminal sends UTF-8.

    X10 mouse reports are dropped, answers to our own questions counted, other bytes replaced. Escape and a
    key are two keys, however fast they come: Textual takes them for Alt and the key, or loses the Escape.
    A paste loses its Escapes: Textual makes keys of what follows one, and of a line's end Enter.

    Args:
        encoding: of what is typed.
        takes_alt: whether Alt and a character are one key now. The terminal sends that at once.
    """

    def __init__(self, encoding: str = UTF_8, takes_alt: Callable[[str], bool] = lambda _: False) -> None:
        self._decode = getincrementaldecoder(encoding)("replace").decode
        self._takes_alt = takes_alt
        self._held = b""
        self._passed = b""
        """The end of what was passed on: an answer that began with it is counted all the same."""
        self._is_in_paste = False
        self.answers = 0

    def feed(self, data: bytes) -> bytes:
        """Return these bytes cleaned, as far as they are complete; a lone Escape is never held back."""
        data = _X10_MOUSE.sub(b"", self._held + data)
        self.answers += (self._passed + data).count(ANSWER)
        data = data.replace(ANSWER, b"")
        begun = _BEGUN.search(data)
        end = len(data) if begun is None else begun.start()
        self._held = data[end:]
        data = data[:end]
        after_escape = self._passed.endswith(b"\x1b") and data[:1] not in {b"", b"\x1b", b"[", b"O"}
        key_ends = _KEY_ENDS if after_escape and not self._is_in_paste else b""
        self._passed = (self._passed + data)[1 - len(ANSWER) :]
        return self._decode(key_ends + self._told_apart(data)).encode()

    def _told_apart(self, data: bytes) -> bytes:
        parts: list[bytes] = []
        while data:
            if self._is_in_paste:
                text, end, data = data.partition(_PASTE_ENDS)
                text, begun = (text, b"") if end else _before_end(text)
                self._held = begun + self._held
                parts += text.replace(b"\x1b", b""), end
                self._is_in_paste = not end
            else:
                keys, begin, data = data.partition(_PASTE_BEGINS)
                parts += _ESCAPED.sub(self._two_keys, keys), begin
                self._is_in_paste = bool(begin)
        return b"".join(parts)

    def _two_keys(self, found: re.Match[bytes]) -> bytes:
        key: bytes = found[1]
        return found[0] if self._takes_alt(key.decode("latin-1")) else b"\x1b" + _KEY_ENDS + key


def _before_end(text: bytes) -> tuple[bytes, bytes]:
    """Return the text of a paste, and apart from it the begun end of the paste."""
    begun = text[text.rfind(b"\x1b") :] if b"\x1b" in text else b""
    if begun and _PASTE_ENDS.startswith(begun):
        return text[: -len(begun)], begun
    return text, b""


class InputEvent(threading.Event):
    """Set at the end, as Textual's own; the thread that reads waits here while there is nothing to read.

    Textual's reader asks before each look at its input, which takes a tenth of a second: at rest, too.
    After input it is let through for a while: a lone Escape is only told by what does not follow. After the
    end it looks once more: a key that comes with it, such as one behind a SIGCONT, is not lost.
    """

    def __init__(self) -> None:
        super().__init__()
        self.reader: int | None = None
        """The thread that waits here; others are answered at once."""
        self._looks_until_s = 0.0
        self._has_looked = False
        """Whether the reader has looked since the end came."""
        self._is_awake = threading.Event()

    def wake(self) -> None:
        """Let the reader look: there is input, or the end has come."""
        self._looks_until_s = time.monotonic() + _LOOKS_AFTER_INPUT_S
        self._is_awake.set()

    def set(self) -> None:
        """Tell of the end."""
        self._has_looked = False
        super().set()
        self.wake()

    def is_set(self) -> bool:
        """Return whether the end has come; to the reader, whether it may leave."""
        if threading.get_ident() != self.reader:
            return super().is_set()
        if time.monotonic() >= self._looks_until_s:
            self._is_awake.wait()
            self._is_awake.clear()
        if not super().is_set():
            return False
        has_looked, self._has_looked = self._has_looked, True
        return has_looked


class TerminalApp(Protocol):
    """An app that writes to its terminal: Textual keeps the driver to itself."""

    terminal: TerminalDriver | None

    def takes_alt(self, character: str) -> bool:
        """Return whether Alt and this character are one key now."""


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
        self._shown_app = cast("TerminalApp", app)
        self._shown_app.terminal = self
        self.mouse = mouse
        self.drawing = self.suspended = False
        self._painter: Painter | None = None
        self._was_typed = True
        self._is_read = False
        self.exit_event = self._input = InputEvent()
        # A handler of Python's own runs amid a frame, and waits for the thread that waits for the frame.
        self._loop = asyncio.get_running_loop()
        self._loop.add_signal_handler(signal.SIGTSTP, self._sigtstp_application)
        self._loop.add_signal_handler(signal.SIGCONT, self.resume)

    def write(self, data: str) -> None:
        """Draw a frame, or send a control sequence."""
        if self._painter is None or (data in _MOUSE_ON and not self.drawing):
            # Textual asks for reports of the mouse before the terminal's echo is off; `set_mouse` does later.
            return
        if _FRAME.match(data):
            if not self._painter.draw(data, shutil.get_terminal_size(), urgent=self._was_typed):
                self.redraw()
            self._was_typed = False
        else:
            self._painter.control(data)

    def process_message(self, message: Message) -> None:
        """Hand a message on; the next frame is the answer if it was a key or a click."""
        if isinstance(message, events.Key | events.MouseDown | events.MouseScrollDown | events.MouseScrollUp):
            self._was_typed = True
        super().process_message(message)

    def repaint(self) -> None:
        """Draw every cell anew: what the terminal shows is not known any more."""
        if self._painter is not None:
            self._painter.forget()
            self.redraw()

    def set_mouse(self, *, on: bool) -> None:
        """Ask the terminal for mouse reports, or give the mouse back to it."""
        self.mouse = on
        self._report_mouse(on=on)

    def _report_mouse(self, *, on: bool) -> None:
        self.write("".join(f"\x1b[?{mode}{'h' if on else 'l'}" for mode in _MOUSE_MODES))

    def start_application_mode(self) -> None:
        """Take over the terminal."""
        if self._painter is None:
            self._painter = Painter(_OUTPUT_FD, shutil.get_terminal_size(), TERMINAL)
        super().start_application_mode()  # type: ignore[no-untyped-call]  # Textual leaves it untyped
        self.drawing = True
        self._painter.begin()
        self.set_mouse(on=self.mouse)

    def disable_input(self) -> None:
        """End the reports of mouse and focus, then the reading; the shell gets none of them."""
        painter = self._painter
        if painter is not None:
            painter.stop_drawing()
            self._report_mouse(on=False)
            painter.control(_NO_OTHER_REPORTS)
        super().disable_input()
        if painter is not None and self._is_read:
            self._is_read = False
            painter.control(_ASK_PLACE)
            self._drop_input(_DRAIN_S if painter.answers else _QUIET_S)

    def _drop_input(self, quiet_s: float) -> None:
        """Drop what the terminal sent before it knew: until its answer, or until it sends nothing."""
        received, end_s = b"", time.monotonic() + _DRAIN_S
        with selectors.DefaultSelector() as selector, suppress(OSError):
            selector.register(self.fileno, selectors.EVENT_READ)
            while not _PLACE.search(received) and (left_s := end_s - time.monotonic()) > 0:
                data = os.read(self.fileno, _READ_BYTES) if selector.select(min(quiet_s, left_s)) else b""
                if not data:
                    return
                received = received[-_READ_BYTES:] + data

    def stop_application_mode(self) -> None:
        """Give the terminal back."""
        self.drawing = False
        super().stop_application_mode()

    def close(self) -> None:
        """Write what is left, and end the writing."""
        if self._painter is not None:
            self._painter.close()
            self._painter = None
        if not self.suspended:
            # What has the terminal next, such as ssh that asks for a password, stops in its own way.
            self._loop.remove_signal_handler(signal.SIGTSTP)
            self._loop.remove_signal_handler(signal.SIGCONT)
        super().close()

    def suspend_application_mode(self) -> None:
        """Give the terminal to the shell for a while."""
        self.suspended = True
        super().suspend_application_mode()

    def resume(self) -> None:
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
        self._is_read = True
        self._input.reader = threading.get_ident()
        # Textual's thread reads what the copying thread lets through.
        self.fileno, cleaned = os.pipe()
        # Closing the second end wakes the copying thread.
        ended, end = os.pipe()
        copying = threading.Thread(target=self._copy_input, args=(tty, cleaned, ended), name="input-filter")
        copying.start()
        try:
            has_ended = False
            while not has_ended:
                # A report of a key with an impossible code point: begin with a new parser.
                with suppress(ValueError, OverflowError, LookupError, RuntimeError):
                    super().run_input_thread()
                    has_ended = True
        finally:
            os.close(end)
            copying.join()
            for descriptor in (ended, cleaned, self.fileno):
                os.close(descriptor)
            self.fileno = tty

    def _copy_input(self, tty: int, cleaned: int, ended: int) -> None:
        """Copy what the terminal sends, cleaned, until `ended` can be read or the terminal is gone."""
        input_filter = InputFilter(TERMINAL.typed, self._shown_app.takes_alt)
        painter = self._painter
        with selectors.DefaultSelector() as selector:
            for descriptor in (tty, ended):
                selector.register(descriptor, selectors.EVENT_READ)
            while all(key.fd != ended for key, _ in selector.select()):
                try:
                    data = os.read(tty, _READ_BYTES)
                except OSError:
                    return
                if not data:
                    return
                if typed := input_filter.feed(data):
                    os.write(cleaned, typed)
                    self._input.wake()
                if painter is not None and input_filter.answers:
                    painter.answered(input_filter.answers)
                    input_filter.answers = 0
