"""Each screen in tmux, at both sizes, by mouse alone, on a real daemon."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from relayd.admin.schema import Outcome
from tests.e2e.daemon import KEY, Daemon
from tests.tui.tmux import Tmux, needs_tmux
from tests.wire import Wire, ask, body, post, until

SLOW = "demo:deltas=40000,interval_ms=25"
SIZES = ((80, 24), (140, 40))
SCREENS = (
    ("2 In flight", "x cancel"),
    ("3 Stats", "filter by it"),
    ("4 Clients", "r rotate"),
    ("5 Audit", "result"),
    ("1 Requests", "/ filter"),
)


@needs_tmux
@pytest.mark.parametrize("size", SIZES, ids=lambda size: "x".join(map(str, size)))
async def test_screens_by_mouse(tmp_path: Path, size: tuple[int, int]) -> None:
    """Every screen by a click on its tab; the mouse alone cancels, filters and rotates."""
    daemon = Daemon(tmp_path)
    await asyncio.to_thread(daemon.start)
    try:
        assert (await ask(daemon.port, KEY, body("demo:deltas=2"))).status == 200
        with Tmux(("--socket", str(daemon.state_dir / "admin.sock")), tmp_path, size) as terminal:
            await terminal.until("● LIVE")
            async with await Wire.open(daemon.port) as wire:
                wire.send(post(KEY, body(SLOW)))
                await wire.head()
                await terminal.until(lambda screen: re.search(r" run .*▸", screen))
                await _each_by_click(terminal)
                await _cancel_by_mouse(terminal)
            await _filter_by_mouse(terminal)
            await _fields_by_key(terminal)
            await _rotate_by_mouse(terminal)
            await until(lambda: daemon.records()[0].outcome is Outcome.CANCELLED)
    finally:
        daemon.kill()


async def _each_by_click(terminal: Tmux) -> None:
    for title, there in SCREENS:
        await terminal.click_on(title, f"[{title}")
        await terminal.until(there)


async def _cancel_by_mouse(terminal: Tmux) -> None:
    await terminal.click_on(" run ", lambda screen: re.search(r"▶\S+ run ", screen))
    await terminal.click_on("x cancel", "Cancel this request?")
    await terminal.click_on("Cancel the request", "cancelled the request.")


async def _filter_by_mouse(terminal: Tmux) -> None:
    """A row of Stats and the footer's Enter: the list with that filter; there a row is opened, and turned."""
    await terminal.click_on("3 Stats", "filter by it")
    await terminal.click_on("demo:deltas=2", "▶demo:deltas=2")
    await terminal.click_on("filter by it", 'model="demo:deltas=2"')
    await terminal.until("1 of 2 ")
    await terminal.click_on(" 200 ", lambda screen: re.search(r"▶.* 200 ", screen))
    await terminal.click_on("Enter open", "[Summary]")
    await terminal.click_on("Timeline", "came from 127.0.0.1")


async def _fields_by_key(terminal: Tmux) -> None:
    """Ctrl-Space lists the fields while a filter is written; Escape and `t` in one piece are two keys.

    Ctrl-L draws the screen anew.
    """
    terminal.press("/")
    await terminal.until("Enter keeps it")
    terminal.press("C-Space")
    await terminal.until("may name")
    terminal.press("Escape")
    await terminal.until(lambda screen: "may name" not in screen)
    terminal.press("Escape", "t")
    await terminal.until("Go to a time")
    terminal.press("Escape")
    await terminal.until(lambda screen: "Go to a time" not in screen)
    await terminal.until(' / model="demo:deltas=2"')
    terminal.reset()
    terminal.press("C-l")
    await terminal.until("4 Clients")


async def _rotate_by_mouse(terminal: Tmux) -> None:
    await terminal.click_on("4 Clients", "r rotate")
    await terminal.click_on("r rotate", "Rotate the key of default?")
    await terminal.click_on("15 minutes", "(•) 15 minutes")
    await terminal.click_on("Rotate (y)", "•" * 12, last=True)
    await terminal.click_on("Save", "Saved to", last=True)
    await terminal.click_on("Close (Esc)", lambda screen: "Saved to" not in screen, last=True)
    await terminal.until("Not used yet.")
    await terminal.until(lambda screen: re.search(r"OLD KEY 1[45]:\d\d", screen.splitlines()[0]))
