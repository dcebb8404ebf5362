"""The main path on a real daemon over its real socket, from the first request to a restart."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from relayd.admin.client import AdminClient
from relayd.admin.schema import KeyState, Outcome, RequestRecord
from tests.e2e.daemon import KEY, Daemon
from tests.tui.stage import Stage, on_stage, until
from tests.wire import Wire, ask, body, post
from tui.model.desk import Contact
from tui.model.marks import MarkKind
from tui.screens.confirm import Confirm
from tui.screens.key_dialogs import AskGrace
from tui.screens.requests import RequestsPane
from tui.screens.secret import SecretDialog
from tui.widgets.key_list import KeyList

REQUESTS = 5
SLOW = "demo:deltas=4000,interval_ms=25"


def records(stage: Stage) -> list[RequestRecord]:
    """What the app holds, oldest first."""
    store = stage.app.desk.store
    rows = [store.row_at(index) for index in range(len(store))]
    return [row for row in rows if isinstance(row, RequestRecord)]


@pytest.mark.timeout(seconds=240)
async def test_the_main_path(tmp_path: Path) -> None:
    """Seen while it streams, filtered, opened, cancelled; rotated, straggler seen, revoked; restarted."""
    daemon = Daemon(tmp_path, demo=True)
    await asyncio.to_thread(daemon.start)
    try:
        admin = AdminClient(daemon.state_dir / "admin.sock")
        async with on_stage(tmp_path, wrap=lambda _: admin, wait_live=False) as stage:
            await until(lambda: stage.app.desk.contact is Contact.LIVE, "contact")
            await _cancel_a_stream(stage, daemon)
            await _rotate_and_revoke(stage, daemon)
            await _restart(stage, daemon)
    finally:
        daemon.kill()


async def _cancel_a_stream(stage: Stage, daemon: Daemon) -> None:
    async with await Wire.open(daemon.port) as wire:
        wire.send(post(KEY, body(SLOW)))
        await wire.head()
        await until(
            lambda: any(s.progress.deltas for s in stage.app.desk.live.streams.values()), "a running stream"
        )
        await stage.settle()
        assert " run " in stage.text()
        await stage.press("slash")
        await stage.type("phase=streaming")
        await stage.press("enter")
        await stage.press("enter")
        record = stage.app.main.query_one(RequestsPane).chosen()
        assert record is not None
        assert "Streaming." in stage.text()
        await stage.press("x")
        await until(lambda: isinstance(stage.app.screen, Confirm))
        await stage.press("tab", "enter")
        await until(lambda: not stage.app.desk.live.streams, "the end of the stream")
    await until(lambda: records(stage)[-1].outcome is Outcome.CANCELLED, "the record")
    await stage.press("escape", "slash", "ctrl+u", "enter")


async def _rotate_and_revoke(stage: Stage, daemon: Daemon) -> None:
    await until(lambda: stage.app.desk.ring.keys, "the ring")
    old = stage.app.desk.ring.keys[0]
    await stage.press("K", "r")
    await until(lambda: isinstance(stage.app.screen, AskGrace))
    await stage.press("tab", "enter")
    await until(lambda: isinstance(stage.app.screen, SecretDialog), "the new key")
    assert isinstance(stage.app.screen, SecretDialog)
    new_key = stage.app.screen._secret.text
    await stage.press("v", "escape")
    assert (await ask(daemon.port, new_key, body("demo:deltas=2"))).status == 200
    assert (await ask(daemon.port, KEY, body("demo:deltas=2"))).status == 200
    await until(lambda: stage.app.desk.evidence.stragglers(old.id), "the straggler")
    stage.app.main.query_one(KeyList).action_first()
    await stage.app.look_at_ring()
    await stage.settle()
    assert "still used" in stage.text()
    assert "First used at" in stage.text()
    await stage.press("exclamation_mark", *old.id[-4:], "enter")
    await until(
        lambda: any(k.id == old.id and k.state is KeyState.REVOKED for k in stage.app.desk.ring.keys),
        "the end of the old key",
    )
    assert (await ask(daemon.port, KEY, body("demo:deltas=2"))).status == 401
    await until(lambda: stage.app.desk.evidence.refused(old.id, 0), "the refusal")
    await stage.settle()
    assert "refused default  127.0.0.1  1 time, last" in stage.text()
    assert "4 Keys !" in stage.text()


async def _restart(stage: Stage, daemon: Daemon) -> None:
    await asyncio.to_thread(daemon.kill)
    await until(lambda: stage.app.desk.contact is not Contact.LIVE, "the loss of contact")
    await asyncio.to_thread(daemon.start)
    stage.app.feed.retry_now()
    await until(lambda: stage.app.desk.contact is Contact.LIVE, "contact again")
    await ask(daemon.port, "no-such-key-anywhere", body("demo:deltas=2"))
    await until(lambda: len(daemon.records()) == REQUESTS, "every request on disk")
    on_disk = [record.id for record in reversed(daemon.records())]
    await until(lambda: [record.id for record in records(stage)] == on_disk, "every record, once")
    assert stage.app.desk.store.marks(MarkKind.RESTART)
