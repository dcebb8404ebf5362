"""The main path in a real terminal, by keys alone, on a real daemon: from the first request to a crash."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from relayd.admin.schema import KeyState, Outcome
from tests.e2e.daemon import KEY, Daemon
from tests.tui.tmux import Tmux, needs_tmux
from tests.wire import Wire, ask, body, post, until
from tui.model.secret import Secret

SLOW = "demo:deltas=40000,interval_ms=25"
SHORT = "demo:deltas=2"
REQUESTS = 10
ROW = re.compile(r"^[ ▶](\d\d:\d\d:\d\d) ", re.MULTILINE)


@needs_tmux
async def test_the_main_path_by_keys(tmp_path: Path) -> None:
    """Streams, is filtered, opened, cancelled; rotated, straggler seen, revoked; SIGKILL loses nothing."""
    with (
        Daemon(tmp_path) as daemon,
        Tmux(("--socket", str(daemon.state_dir / "admin.sock")), tmp_path, (80, 24)) as terminal,
    ):
        await terminal.until("● LIVE")
        await _cancel_what_streams(terminal, daemon)
        new_key = await _rotate(terminal, daemon)
        await _see_the_straggler_and_revoke(terminal, daemon, new_key)
        await _crash_and_restart(terminal, daemon, new_key)
        terminal.press("Q")
        assert await terminal.ended() in {"0", ""}


async def _cancel_what_streams(terminal: Tmux, daemon: Daemon) -> None:
    assert (await ask(daemon.port, KEY, body(SHORT))).status == 200
    async with await Wire.open(daemon.port) as wire:
        await wire.begin(post(KEY, body(SLOW)))
        await terminal.until(lambda screen: re.search(r" run .*▸", screen))
        terminal.press("/")
        await terminal.until("Enter keeps it")
        terminal.type("phase=streaming")
        await terminal.until("1 match ")
        terminal.press("Enter")
        await terminal.until("1 of 2 ")
        terminal.press("Enter")
        await terminal.until("Streaming.")
        terminal.press("x")
        await terminal.until("Cancel this request?")
        terminal.press("Tab", "Enter")
        await terminal.until("cancelled the request.")
    await until(lambda: daemon.records()[0].outcome is Outcome.CANCELLED)
    await terminal.until("0 of 2 ")
    # Sent at once, Escape and slash would be one key to a terminal: Alt and slash.
    terminal.press("Escape")
    await terminal.until("Enter(open)")
    terminal.press("/")
    await terminal.until("Enter keeps it")
    terminal.press("C-u", "Enter")
    await terminal.until("2 records")


async def _rotate(terminal: Tmux, daemon: Daemon) -> Secret:
    """Rotate by keys; returns the new key as the file has it that `s` wrote."""
    terminal.press("K")
    await terminal.until("r rotate")
    terminal.press("r")
    await terminal.until("Rotate the key of default?")
    terminal.press("Tab", "Enter")
    await terminal.until("•" * 12)
    terminal.press("s")
    await terminal.until("Saved to")
    (kept,) = daemon.home.glob("relayd-key-*")
    assert kept.stat().st_mode & 0o777 == 0o600
    new_key = Secret(kept.read_text().strip())
    assert new_key.text not in terminal.screen()
    terminal.press("Escape")
    await terminal.until("Not used yet.")
    return new_key


async def _see_the_straggler_and_revoke(terminal: Tmux, daemon: Daemon, new_key: Secret) -> None:
    assert (await ask(daemon.port, new_key.text, body(SHORT))).status == 200
    assert (await ask(daemon.port, KEY, body(SHORT))).status == 200
    await terminal.until("First used at")
    await terminal.until("still used default  127.0.0.1")
    await terminal.until(lambda screen: re.search(r"OLD KEY \S+ 1 user", screen.splitlines()[0]))
    old = next(key for key in (await daemon.admin.keys()).keys if key.state is KeyState.RETIRING)
    terminal.press("!")
    await terminal.until("Type the last four characters")
    terminal.type(old.id[-4:])
    await terminal.until(f"Ends the retiring key {old.id}")
    terminal.press("Enter")
    await terminal.until("is revoked.")
    assert (await ask(daemon.port, KEY, body(SHORT))).status == 401
    assert (await ask(daemon.port, new_key.text, body(SHORT))).status == 200
    await terminal.until(f"Old key {old.id}  revoked at")
    await terminal.until("refused default  127.0.0.1  1 time, last")


async def _crash_and_restart(terminal: Tmux, daemon: Daemon, new_key: Secret) -> None:
    terminal.press("1")
    async with await Wire.open(daemon.port) as wire:
        await wire.begin(post(new_key.text, body(SLOW)))
        await terminal.until(lambda screen: re.search(r" run .*▸", screen))
        await asyncio.to_thread(daemon.kill)
        await terminal.until(lambda screen: "LIVE" not in screen.splitlines()[0])
    await asyncio.to_thread(daemon.start)
    terminal.press("R")
    await terminal.until("● LIVE")
    for _ in range(3):
        assert (await ask(daemon.port, new_key.text, body(SHORT))).status == 200
    await until(lambda: len(daemon.records()) == REQUESTS and all(r.outcome for r in daemon.records()))
    began = [record.started_at[11:19] for record in reversed(daemon.records())]
    # Drawn a few times a second: the last end may be on disk and not yet on the screen.
    await terminal.until(lambda screen: ROW.findall(screen) == began and "▸" not in screen)
    await terminal.until(lambda screen: screen.count("daemon restarted") == 1)
    await terminal.until(lambda screen: re.search(r" lost .*✗", screen))
