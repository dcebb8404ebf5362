"""`relayd.commands.control`: the daemon in a dozen lines, and its switches."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

from relayd import __version__
from relayd.alerts.alert import AlertKind, Condition
from tests.admin.harness import admin_api, open_chat, whole_daemon
from tests.commands.harness import relayd


async def test_status_is_read_at_a_glance(tmp_path: Path) -> None:
    """Labels and sentences in two columns, without escape sequences."""
    async with admin_api(tmp_path) as api:
        ran = await relayd(api.socket, "status")
        assert ran.status == 0
        labels = [line[:13].strip() for line in ran.lines]
        assert labels == [
            *("relayd", "up", "serving", "upstream", "streams", "lately"),
            *("first token", "used", "keys", "log", "disk", "state"),
        ]
        assert ran.lines[0] == f"relayd       {__version__}, live"
        assert "1 active, 0 retiring, generation 1" in ran.out
        assert "\x1b" not in ran.out
        cooling = Condition(
            kind=AlertKind.ROUTE, subject="main", sentence="The route main\x1b cools down: 401"
        )
        api.alerts.update([cooling], time.time())
        last = (await relayd(api.socket, "status")).lines[-1]
        assert re.fullmatch(r"ALERT        for \d+s: The route main\\x1b cools down: 401", last)


async def test_status_in_json_is_what_the_socket_says(tmp_path: Path) -> None:
    """One document."""
    async with admin_api(tmp_path) as api:
        assert json.loads((await relayd(api.socket, "status", "--json")).out)["boot_id"] == "boot"


async def test_pause_resume_and_drain_say_what_follows(tmp_path: Path) -> None:
    """Each in one sentence; the status shows it until it is undone."""
    async with admin_api(tmp_path) as api:
        paused = await relayd(api.socket, "pause")
        assert paused.out.startswith("Paused: new requests get 503; 0 open streams may finish.")
        assert "paused" in (await relayd(api.socket, "status")).lines[0]
        assert (await relayd(api.socket, "resume")).out.startswith("Live: new requests are accepted at ")
        drained = await relayd(api.socket, "drain")
        assert "no stream is open, so relayd stops now" in drained.out
        assert api.stopped == [True]
        late = await relayd(api.socket, "resume")
        assert (late.status, late.out) == (1, "")


async def test_reload_says_what_changed() -> None:
    """Nothing here; programs get it in lists."""
    async with whole_daemon() as (_, client):
        ran = await relayd(client.socket, "reload")
        assert (ran.status, ran.out) == (0, "The configuration has not changed.\n")
        document = json.loads((await relayd(client.socket, "reload", "--json")).out)
        assert document == {"changed": [], "waiting": [], "notes": [], "error": None, "failed": []}


async def test_cancel_names_the_request() -> None:
    """0 for an open one, 1 for one that is not."""
    async with whole_daemon() as (relay, client):
        wire, reply = await open_chat(relay, "demo:deltas=100,interval_ms=50")
        request_id = reply.header("X-Request-Id")
        assert request_id is not None
        ran = await relayd(client.socket, "cancel", request_id)
        assert (ran.status, ran.out.startswith(f"Cancelled {request_id}:")) == (0, True)
        await wire.rest(reply)
        assert reply.error is not None
        wire.finish()
        again = await relayd(client.socket, "cancel", request_id, "--json")
        assert (again.status, again.out) == (1, "")
