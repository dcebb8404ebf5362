"""Line mode."""

from __future__ import annotations

import asyncio
from io import StringIO
from pathlib import Path

import pytest

from relayd.admin.client import AdminClient
from relayd.admin.schema import Ended, Gap, Lost, Outcome, Progress, Started
from tests.admin.harness import admin_api, log_requests
from tests.tui.samples import a_failure, a_record, an_open
from tests.wire import until
from tui.plain import ended_line, event_line, run_lines


def test_an_ended_request_is_one_sentence() -> None:
    """Everything that matters, in an order that can be listened to."""
    line = ended_line(a_failure(1))
    assert line.startswith("14:13:23 upstream error, upstream_failed: web at 192.0.2.7, model gpt-4o")
    assert line.endswith("The provider failed, or its stream broke.")


def test_starts_and_progress_are_left_out() -> None:
    """A listener hears of a request once, when it has ended."""
    assert event_line(Started(1, "b", an_open(1))) is None
    assert event_line(Progress("2026-01-01T00:00:00.000Z", [])) is None
    assert event_line(Ended(2, "b", a_record(1))) is not None


def test_losses_are_told() -> None:
    """Gaps and lost records are lines of their own."""
    assert event_line(Gap(3, 9)) == "gap: events 3 to 9 are no longer kept"
    lost = Lost(5, "b", "2026-09-21T14:13:20.000Z", 12, "disk full")
    assert event_line(lost) == "14:13:20 lost: 12 records, disk full"


def test_hostile_text_is_harmless_in_line_mode_too() -> None:
    """No escape sequence goes through a pipe into somebody's terminal."""
    line = event_line(Ended(2, "b", a_record(1, client="\x1b[2Jx")))
    assert line is not None
    assert line.isprintable()


async def test_line_mode_waits_for_the_daemon_and_tells_what_happens(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No contact is said once; then the newest requests, those that end, alerts, figures, and a restart."""
    monkeypatch.setattr("relayd.admin.alert_watch.LOOK_EVERY_S", 0.3)
    monkeypatch.setattr("tui.plain._WATCH_EVERY_S", 0.3)
    monkeypatch.setattr("tui.plain._FIGURES_EVERY", 1)
    out = StringIO()
    socket = tmp_path / "state" / "admin.sock"
    mode = asyncio.create_task(run_lines(AdminClient(socket), out), name="line mode")
    await until(lambda: "no contact: No relayd answers at" in out.getvalue())
    async with admin_api(tmp_path) as api:
        api.log(1, client="before")
        await until(lambda: "before at 192.0.2.1" in out.getvalue())
        await until(lambda: " now: 0 open streams, 0 tokens a second," in out.getvalue())
        ring = await api.client.keys()
        key = ring.keys[0]
        await api.client.rotate_key(key.id, grace_s=600, generation=ring.generation, idempotency_key="r")
        await until(lambda: ": rotate default, done, key " in out.getvalue())
        api.log(1, prefix="n", client="after")
        await until(lambda: "after at 192.0.2.1" in out.getvalue())
        await until(
            lambda: f" errors since the start. The old key {key.id} of default ends in" in out.getvalue()
        )
        log_requests(api.state, 1, "d", outcome=Outcome.DENIED, client="web", key_id="dead")
        await until(lambda: " alert: The ended key dead of web is still in use" in out.getvalue())
    await until(lambda: out.getvalue().count("no contact: ") > 1)
    async with admin_api(tmp_path, boot_id="next"):
        await until(lambda: "daemon restarted" in out.getvalue())
    mode.cancel()
    await asyncio.gather(mode, return_exceptions=True)
    assert out.getvalue().count("No relayd answers") <= 2
