"""Keys in a real terminal of 80x24: all users of an old key, and the end of a key that was pasted."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.e2e.daemon import KEY, Daemon
from tests.tui.tmux import Tmux, needs_tmux
from tests.wire import Wire, ask, body, post

SHORT = "demo:deltas=1,interval_ms=0"
SLOW = "demo:deltas=40000,interval_ms=25"
USERS = 32


@needs_tmux
async def test_32_users_of_an_old_key_are_reached_by_keys_and_a_pasted_key_is_revoked(tmp_path: Path) -> None:
    """Enter on the key lists them all and its history, `G` shows the last, Enter its requests.

    `W`, a paste, Enter, `!`, `y` end the key.
    """
    daemon = Daemon(tmp_path)
    await asyncio.to_thread(daemon.start)
    try:
        ring = await daemon.admin.keys()
        old = ring.keys[0].id
        change = await daemon.admin.rotate_key(
            old, grace_s=3600, generation=ring.generation, idempotency_key="rotate"
        )
        new = change.key.id
        users = [{"X-Forwarded-For": f"203.0.113.{100 + number}"} for number in range(USERS)]
        for user in users[:-1]:
            assert (await ask(daemon.port, KEY, body(SHORT), user)).status == 200
        async with await Wire.open(daemon.port) as wire:
            await wire.begin(post(KEY, body(SLOW), users[-1]))
            await _see_its_users_and_revoke_it(daemon, old, new)
        assert (await ask(daemon.port, KEY, body(SHORT))).status == 401
    finally:
        daemon.kill()


async def _see_its_users_and_revoke_it(daemon: Daemon, old: str, new: str) -> None:
    with Tmux(("--socket", str(daemon.state_dir / "admin.sock")), daemon.home, (80, 24)) as terminal:
        await terminal.until("● LIVE")
        terminal.press("K", "Enter")
        await terminal.until("Enter open key")
        terminal.press("Down", "Enter")
        await terminal.until(f"Key {old} of default  retiring")
        await terminal.until(f"{USERS} users in the log")
        await terminal.until(f" replaced by {new}")
        await terminal.until(lambda screen: "203.0.113.130 " in screen and "203.0.113.100 " not in screen)
        terminal.press("G")
        await terminal.until(lambda screen: "203.0.113.100 " in screen and "203.0.113.130 " not in screen)
        terminal.press("Enter")
        await terminal.until(f'key_id="{old}" ip="203.0.113.100"')
        await terminal.until(f"1 of {USERS} ")
        terminal.press("Escape")
        await terminal.until(f"{USERS} users in the log")
        terminal.press("W")
        # As a terminal sends what is pasted into an app that asked for brackets around it.
        terminal.type(f"\x1b[200~Bearer {KEY}\x1b[201~")
        await terminal.until("•" * len(KEY))
        terminal.press("Enter")
        found = await terminal.until(f"It is the key {old} of the client default.")
        assert KEY not in found
        terminal.press("!")
        await terminal.until(f"Revoke the key {old} of default now?")
        await terminal.until("1 stream open with it goes on.")
        terminal.press("y")
        await terminal.until("is revoked.")
