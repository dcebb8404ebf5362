"""The app gives the terminal to the shell and takes it back."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path
from typing import cast
from unittest.mock import patch

from textual.app import App

from tests.admin.harness import admin_api
from tests.tui.tmux import Tmux, needs_tmux
from tests.wire import PATIENCE_S
from tui.driver import TerminalDriver

ROWS = 5


@needs_tmux
async def test_ctrl_z_and_a_stop_from_outside_leave_the_shell_and_come_back_whole(tmp_path: Path) -> None:
    """In the shell the app's screen is gone; after `fg` every part is there, and keys work.

    What SIGKILL leaves switched on, `reset` switches off.
    """
    async with admin_api(tmp_path) as api:
        api.log(ROWS)
        with Tmux(("--socket", str(api.socket)), tmp_path, (80, 24), in_shell=True) as terminal:
            await terminal.until(_is_whole)
            for stop in (None, signal.SIGTSTP, signal.SIGSTOP):
                if stop is None:
                    terminal.press("C-z")
                else:
                    os.kill(_child(terminal.pid), stop)
                # A stop that can't be caught leaves the app's screen there, with the shell's words on it.
                await terminal.until("Stopped")
                terminal.type("fg\n")
                await terminal.until(_is_whole)
            terminal.press("4")
            await terminal.until("US$ this month")
            terminal.press("1")
            await terminal.until(_is_whole)
            assert terminal.reports_mouse()
            os.kill(_child(terminal.pid), signal.SIGKILL)
            await terminal.until("Killed")
            assert terminal.reports_mouse()
            terminal.type("reset\n")
            await terminal.until(lambda _: not terminal.reports_mouse())


async def test_a_stop_waits_for_the_frame_and_ends_with_the_app() -> None:
    """Amid a frame it would wait for the thread that waits for the frame; ssh's questions are its own."""
    app: App[None] = App()
    driver = TerminalDriver(cast("App[object]", app))
    went_on = asyncio.Event()
    driver.suspended = True
    with patch.object(driver, "resume_application_mode", went_on.set):
        os.kill(os.getpid(), signal.SIGCONT)
        assert not went_on.is_set()
        async with asyncio.timeout(PATIENCE_S):
            await went_on.wait()
    driver.close()
    assert signal.getsignal(signal.SIGTSTP) == signal.getsignal(signal.SIGCONT) == signal.SIG_DFL


def _child(pid: int) -> int:
    """The process that a shell has started."""
    [child] = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return int(child)


def _is_whole(screen: str) -> bool:
    """Whether every part of the screen is there, and nothing of the shell."""
    lines = screen.splitlines()
    return (
        "● LIVE" in lines[0]
        and lines[1].startswith("[1 Requests]")
        and f"{ROWS} records" in lines[2]
        and len(re.findall(r"^[ ▶]\d\d:\d\d:\d\d 200 ", screen, re.MULTILINE)) == ROWS
        and "Enter open" in screen
        and "Stopped" not in screen
    )
