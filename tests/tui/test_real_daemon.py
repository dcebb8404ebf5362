"""The main path on a real daemon over its real socket, from the first request to a restart."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from relayd.admin.client import AdminClient
from relayd.admin.schema import KeyState, Outcome, RequestRecord
from tests.e2e.daemon import KEY, Daemon
from tests.tui.app_harness import AppHarness, running_app, until
from tests.tui.screens.test_keys import reveal
from tests.wire import Wire, ask, body, post
from tui.model.app_state import Connection
from tui.model.store import MarkKind
from tui.screens.dialogs import Confirm
from tui.screens.key_dialogs import AskGrace, SecretDialog
from tui.screens.keys import KeyList

REQUESTS = 5
SLOW = "demo:deltas=4000,interval_ms=25"


def records(harness: AppHarness) -> list[RequestRecord]:
    """What the app holds, oldest first."""
    store = harness.state.store
    rows = [store.row_at(index) for index in range(len(store))]
    return [row for row in rows if isinstance(row, RequestRecord)]


@pytest.mark.timeout(seconds=240)
async def test_the_main_path(tmp_path: Path) -> None:
    """Seen while it streams, filtered, opened, cancelled; rotated, straggler seen, revoked; restarted."""
    daemon = Daemon(tmp_path)
    await asyncio.to_thread(daemon.start)
    try:
        admin = AdminClient(daemon.state_dir / "admin.sock")
        async with running_app(tmp_path, wrap=lambda _: admin, wait_live=False) as harness:
            await until(lambda: harness.state.connection is Connection.LIVE, "contact")
            await _cancel_a_stream(harness, daemon)
            await _rotate_and_revoke(harness, daemon)
            await _restart(harness, daemon)
    finally:
        daemon.kill()


async def _cancel_a_stream(harness: AppHarness, daemon: Daemon) -> None:
    async with await Wire.open(daemon.port) as wire:
        wire.send(post(KEY, body(SLOW)))
        await wire.head()
        await until(
            lambda: any(s.progress.deltas for s in harness.state.open_streams.streams.values()),
            "a running stream",
        )
        await harness.redraw()
        assert " run " in harness.text()
        await harness.press("slash")
        await harness.press(*"phase=streaming")
        await harness.press("enter")
        await harness.press("enter")
        record = harness.requests.chosen()
        assert record is not None
        assert "Streaming." in harness.text()
        await harness.press("x")
        await harness.dialog(Confirm)
        await harness.press("tab", "enter")
        await until(lambda: not harness.state.open_streams.streams, "the end of the stream")
    await until(lambda: records(harness)[-1].outcome is Outcome.CANCELLED, "the record")
    await harness.press("escape", "slash", "ctrl+u", "enter")


async def _rotate_and_revoke(harness: AppHarness, daemon: Daemon) -> None:
    await until(lambda: harness.state.ring.keys, "the ring")
    old = harness.state.ring.keys[0]
    await harness.press("K", "r")
    await harness.dialog(AskGrace)
    await harness.press("tab", "enter")
    await harness.dialog(SecretDialog)
    new_key = await reveal(harness)
    await harness.press("escape")
    assert (await ask(daemon.port, new_key, body("demo:deltas=2"))).status == 200
    assert (await ask(daemon.port, KEY, body("demo:deltas=2"))).status == 200
    await until(lambda: harness.state.evidence.stragglers(old.id), "the straggler")
    harness.main.query_one(KeyList).action_first()
    await harness.app.feed.refresh_ring()
    await harness.redraw()
    assert "still used" in harness.text()
    assert "First used at" in harness.text()
    await harness.press("exclamation_mark", *old.id[-4:], "enter")
    await until(
        lambda: any(k.id == old.id and k.state is KeyState.REVOKED for k in harness.state.ring.keys),
        "the end of the old key",
    )
    assert (await ask(daemon.port, KEY, body("demo:deltas=2"))).status == 401
    await until(lambda: harness.state.evidence.refused(old.id, 0), "the refusal")
    await harness.redraw()
    assert "refused default  127.0.0.1  1 time, last" in harness.text()
    assert "4 Keys !" in harness.text()


async def _restart(harness: AppHarness, daemon: Daemon) -> None:
    await asyncio.to_thread(daemon.kill)
    await until(lambda: harness.state.connection is not Connection.LIVE, "the loss of contact")
    await asyncio.to_thread(daemon.start)
    harness.app.feed.retry_now()
    await until(lambda: harness.state.connection is Connection.LIVE, "contact again")
    await ask(daemon.port, "no-such-key-anywhere", body("demo:deltas=2"))
    await until(lambda: len(daemon.records()) == REQUESTS, "every request on disk")
    on_disk = [record.id for record in reversed(daemon.records())]
    await until(lambda: [record.id for record in records(harness)] == on_disk, "every record, once")
    assert harness.state.store.marks(MarkKind.RESTART)
