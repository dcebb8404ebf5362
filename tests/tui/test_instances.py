"""Several processes of one relay, seen from the app on one admin socket."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from pathlib import Path

from relayd.admin.schema import InstanceInfo, InstanceRing
from tests.admin.harness import whole_daemons
from tests.e2e.daemon import KEY, Daemon
from tests.support.postgres import Postgres
from tests.tui.app_harness import app_with_past, running_app
from tests.tui.tmux import Tmux, needs_tmux
from tests.wire import Wire, body, post, until
from tui.model.app_state import Connection
from tui.model.instances import still_serving, stopping_with, which_have_it
from tui.screens.dialogs import Confirm

SLOW = "demo:deltas=40000,interval_ms=25"


@needs_tmux
async def test_all_workers_are_seen_and_have_a_rotation(tmp_path: Path) -> None:
    """Header, tab and view show both; a stream names its instance; a rotation says who has it."""
    daemon = Daemon(tmp_path, settings={"server.workers": 2})
    await asyncio.to_thread(daemon.start)
    try:
        async with await Wire.open(daemon.port) as wire:
            wire.send(post(KEY, body(SLOW)))
            await wire.head()
            with Tmux(("--socket", str(daemon.state_dir / "admin.sock")), tmp_path, (80, 24)) as terminal:
                await terminal.until("● LIVE  keys on 2 of 2  run 1 ")
                terminal.press("2")
                await terminal.until(lambda screen: re.search(r"▶default .* streaming .* \S+-[12]\s", screen))
                terminal.press("6")
                await terminal.until(lambda screen: len(re.findall(r"-[12] .* newest live ", screen)) == 2)
                terminal.press("D")
                await terminal.until(
                    lambda screen: re.search(r"Drain, then stop all 2 workers of \S+\?", screen)
                )
                terminal.press("Escape")
                await terminal.until(lambda screen: "Drain, then" not in screen)
                terminal.press("K", "r")
                await terminal.until("Rotate the key of default?")
                terminal.press("y")
                await terminal.until("2 of 2 instances have it.")
                assert "daemon restarted" not in terminal.screen()
                terminal.press("s")
                await terminal.until("Saved to")
                terminal.press("C-q")
                assert await terminal.ended() in {"0", ""}
    finally:
        await asyncio.to_thread(daemon.stop)


@needs_tmux
async def test_the_end_of_one_worker_is_no_restart(tmp_path: Path) -> None:
    """Whichever worker the app asks, its end is not told as one of the whole relay."""
    daemon = Daemon(tmp_path, settings={"server.workers": 2})
    await asyncio.to_thread(daemon.start)
    try:
        with Tmux(("--socket", str(daemon.state_dir / "admin.sock")), tmp_path, (80, 24)) as terminal:
            await terminal.until("● LIVE  keys on 2 of 2")
            terminal.press("6")
            for worker in (1, 2):
                pid = await _process(terminal, worker)
                os.kill(pid, signal.SIGKILL)
                # The same place, another process; the other worker served on.
                await _process(terminal, worker, other_than=pid)
                terminal.press("j")
            terminal.press("1")
            await terminal.until("● LIVE  keys on 2 of 2")
            assert "daemon restarted" not in terminal.screen()
    finally:
        await asyncio.to_thread(daemon.stop)


async def test_a_pause_that_an_instance_did_not_hear_says_so(
    tmp_path: Path, postgres: Postgres, postgres_url: str
) -> None:
    """It is named: there, requests may still be accepted."""
    async with (
        whole_daemons(tmp_path, 2, postgres_url) as [(_, client), (other, _)],
        running_app(tmp_path, client, size=(120, 30)) as app,
    ):
        await until(lambda: app.state.connection is Connection.LIVE)
        postgres.kill()
        await until(lambda: app.state.status is not None and not app.state.status.engine.ok)
        await app.press("P")
        await app.dialog(Confirm)
        await app.press("y")
        name = other.state.instances.identity.name
        await app.shows(f"Pause intake: no answer yet from {name};")


async def test_an_instance_shows_its_open_streams(tmp_path: Path) -> None:
    """Where there is room, below the list; Enter opens the request."""
    async with app_with_past(tmp_path, size=(100, 40), backlog=False) as (harness, past):
        past.now_s += 1
        past.tell_progress(2)
        await harness.press("6")
        await harness.shows("has the newest keys", "streaming")
        await harness.press("tab", "enter")
        await harness.shows("[1 Requests]", "[Summary]")


async def _process(terminal: Tmux, worker: int, other_than: int = 0) -> int:
    """Return the process id of a worker, once the selected instance is this worker."""
    pattern = re.compile(rf"-{worker}, worker.*process (?!{other_than},)(\d+), boot", re.DOTALL)
    found = pattern.search(await terminal.until(pattern.search))
    assert found is not None
    return int(found[1])


def test_a_drain_counts_the_streams_of_all_workers_that_stop() -> None:
    """Those of one machine stop together; others of the same database serve on."""

    def instance(host: str, worker: int | None, streams: int) -> InstanceInfo:
        name = host if worker is None else f"{host}-{worker}"
        return InstanceInfo(
            boot_id=name,
            name=name,
            worker=worker,
            address=f"http://{host}",
            pid=1,
            version="1",
            started_at="",
            heartbeat_age_s=0.0,
            generation=1,
            intake="live",
            streams=streams,
        )

    known = [instance("a", 1, 2), instance("a", 2, 5), instance("b", 1, 7), instance("c", None, 1)]
    assert stopping_with(known[1], known) == ("all 2 workers of a", 7)
    assert stopping_with(known[2], known) == ("b-1", 7)
    assert stopping_with(known[3], known) == ("c", 1)


def test_those_that_do_not_have_a_change_are_named() -> None:
    """Alone, an instance says nothing; of several, those that are behind are named."""
    one = InstanceRing(name="a", boot_id="1", generation=2, has_it=True)
    late = InstanceRing(name="b-2", boot_id="2", generation=1, has_it=False)
    assert which_have_it([one]) == ""
    assert which_have_it([one, late]) == "1 of 2 instances have it; not yet: b-2."


def test_a_relay_is_the_same_while_one_of_its_processes_lives_on() -> None:
    """Also if all have been replaced, one after the other; not if none was left."""
    boots = still_serving({"a1", "b1"}, {"a2", "b1"})
    boots = still_serving(boots, {"a2", "b2"})
    assert boots == {"a1", "b1", "a2", "b2"}
    assert still_serving(boots, {"a3", "b3"}) == {"a3", "b3"}
