"""The app in a tmux of its own: a real terminal whose screen can be read as text."""

from __future__ import annotations

import asyncio
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.programs import needs
from tests.tui.terminal import ROOT
from tests.wire import PATIENCE_S

_LOOK_EVERY_S = 0.05
_CLICK_AGAIN_S = 5.0
_CONFIG = "set -g status off\nset -s escape-time 0\nset -g remain-on-exit on\n"

needs_tmux = needs("tmux")


class Tmux:
    """One server, one window, the app in it; as a context manager it is started and ended.

    Args:
        arguments: of `python -m tui`.
        home: HOME of the app, and its working directory.
        size: columns and rows.
        in_shell: start an interactive shell, and the app in it, so that the app can be suspended.
        zone: TZ of the app.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        home: Path,
        size: tuple[int, int],
        *,
        in_shell: bool = False,
        zone: str = "UTC",
    ) -> None:
        self._arguments = arguments
        self._in_shell = in_shell
        self._zone = zone
        self._home = home
        self._size = size
        # Not in the test's own directory: the path of a Unix socket holds 107 bytes.
        self._folder = tempfile.TemporaryDirectory(prefix="relayd-tmux-")
        self._socket = Path(self._folder.name) / "socket"

    def __enter__(self) -> Self:
        config = Path(self._folder.name) / "tmux.conf"
        config.write_text(_CONFIG)
        program = shlex.join([sys.executable, "-m", "tui", *self._arguments])
        size = ["-x", str(self._size[0]), "-y", str(self._size[1])]
        self._tmux(
            "-f",
            str(config),
            "new-session",
            "-d",
            *size,
            "-c",
            str(self._home),
            f"exec {'sh -i' if self._in_shell else program}",
        )
        if self._in_shell:
            self.type(f"{program}\n")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._tmux("kill-server")
        finally:
            self._folder.cleanup()

    def _tmux(self, *arguments: str) -> str:
        env = {
            "PATH": os.environ["PATH"],
            "HOME": str(self._home),
            "TZ": self._zone,
            "LANG": "C.UTF-8",
            "PYTHONPATH": str(ROOT),
            "SHELL": "/bin/sh",
            "TERM": "xterm-256color",
        }
        command = ["tmux", "-u", "-S", str(self._socket), *arguments]
        return subprocess.run(
            command, env=env, check=True, capture_output=True, text=True, timeout=PATIENCE_S
        ).stdout

    @property
    def pid(self) -> int:
        """The process id of the app, or of the shell that it is in."""
        return int(self._tmux("display-message", "-p", "#{pane_pid}"))

    def has_rung(self) -> bool:
        """Whether the bell has rung."""
        return self._tmux("display-message", "-p", "#{window_bell_flag}").strip() == "1"

    def reports_mouse(self) -> bool:
        """Whether a move of the mouse would be typed into what runs in the terminal."""
        return self._tmux("display-message", "-p", "#{mouse_all_flag}").strip() == "1"

    def screen(self) -> str:
        """What the terminal shows now."""
        return self._tmux("capture-pane", "-p")

    def styled(self) -> str:
        """What the terminal shows now, with an escape sequence wherever the look changes."""
        return self._tmux("capture-pane", "-p", "-e")

    async def ended(self) -> str:
        """Wait until the app has ended; returns its exit status, empty where tmux did not get to know it."""
        end_s = time.monotonic() + PATIENCE_S
        while True:
            told = self._tmux("display-message", "-p", "#{pane_dead}:#{pane_dead_status}")
            dead, status = told.strip().split(":")
            if dead == "1":
                return status
            assert time.monotonic() < end_s, f"it did not end; the screen:\n{self.screen()}"
            await asyncio.sleep(_LOOK_EVERY_S)

    def reset(self) -> None:
        """Have the terminal forget what it shows, as if another program had cleared it."""
        self._tmux("send-keys", "-R")

    def press(self, *keys: str) -> None:
        """Press keys by tmux's names: `Enter`, `Tab`, `K`."""
        self._tmux("send-keys", *keys)

    def type(self, text: str) -> None:
        """Type a text."""
        self._tmux("send-keys", "-l", text)

    def resize(self, width: int, height: int) -> None:
        """Give the window another size."""
        self._tmux("resize-window", "-x", str(width), "-y", str(height))

    def click(self, column: int, row: int) -> None:
        """Press and let go of the left button there, counted from 0, as SGR mouse reports."""
        at = f"\x1b[<0;{column + 1};{row + 1}"
        self._tmux("send-keys", "-l", f"{at}M{at}m")

    async def click_on(self, text: str, shows: Callable[[str], object] | str, *, last: bool = False) -> str:
        """Click on a text until the screen shows what that leads to; returns that screen.

        In the middle of the first or last line with this text, where it first stands. A frame reaches the
        terminal in pieces, and a dialog that grows moves its buttons: a click aimed at half a frame misses,
        and is made again where the text then stands.
        """
        end_s, again_s = time.monotonic() + PATIENCE_S, 0.0
        while True:
            screen = self.screen()
            # What it shows before the first click is none of its doing.
            if again_s and _holds(shows, screen):
                return screen
            found = [(row, line.find(text)) for row, line in enumerate(screen.splitlines()) if text in line]
            if found and time.monotonic() >= again_s:
                row, column = found[-1 if last else 0]
                self.click(column + len(text) // 2, row)
                again_s = time.monotonic() + _CLICK_AGAIN_S
            assert time.monotonic() < end_s, f"{text!r} did not lead there; the screen:\n{screen}"
            await asyncio.sleep(_LOOK_EVERY_S)

    async def until(self, holds: Callable[[str], object] | str) -> str:
        """Wait until the screen shows a text, or holds; returns it. Fails with the screen.

        It may be seen amid a frame, which the app writes in pieces: another text that belongs to the frame is
        waited for as well.
        """
        end_s = time.monotonic() + PATIENCE_S
        while True:
            screen = self.screen()
            if _holds(holds, screen):
                return screen
            assert time.monotonic() < end_s, f"not within {PATIENCE_S:.0f} s; the screen:\n{screen}"
            await asyncio.sleep(_LOOK_EVERY_S)


def _holds(condition: Callable[[str], object] | str, screen: str) -> bool:
    return condition in screen if isinstance(condition, str) else bool(condition(screen))
