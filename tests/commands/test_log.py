"""Behaviour of `relayd.commands.log`: oldest first, filtered, followed, and harmless."""

from __future__ import annotations

import asyncio
import io
import json
import sys
import time
from argparse import Namespace
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any, Self

import msgspec
import pytest

from relayd.admin.client import AdminClient, VersionMismatch
from relayd.admin.schema import Ended, Event, Hello, RequestPage
from relayd.commands import log
from relayd.commands.console import Console
from relayd.state.records import Outcome, Phase, utc_text
from tests.admin.harness import AdminHarness, admin_api, new_record, open_chat, whole_daemon
from tests.commands.harness import relayd
from tests.wire import PATIENCE_S, until


async def test_the_newest_fifty_come_oldest_first_under_a_head(tmp_path: Path) -> None:
    """One line a request, columns below each other."""
    async with admin_api(tmp_path) as api:
        api.log(60, client="web", model="gpt-x")
        await api.logged(121)
        head, *rows = (await relayd(api.socket, "log")).lines
        assert head.startswith("TIME (UTC)")
        assert [row.split()[-1] for row in rows] == [f"r{n:06}" for n in range(10, 60)]
        assert {row.index("web") for row in rows} == {head.index("CLIENT")}


async def test_since_shows_all_of_that_time_and_nothing_before(tmp_path: Path) -> None:
    """However many pages that is."""
    async with admin_api(tmp_path) as api:
        now_s = time.time()
        api.log(1500, prefix="old", started_at=utc_text(now_s - 7200))
        api.log(2500, prefix="new", started_at=utc_text(now_s - 600))
        await api.logged(1 + 2 * 4000)
        ran = await relayd(api.socket, "log", "--since", "1h", "--json")
        assert [json.loads(line)["id"] for line in ran.lines] == [f"new{n:06}" for n in range(2500)]


async def test_where_is_the_filter_language_and_its_errors_point(tmp_path: Path) -> None:
    """A wrong filter is wrong usage, shown with carets below the place."""
    async with admin_api(tmp_path) as api:
        api.log(3, client="web")
        api.log(2, prefix="x", client="cli")
        await api.logged(11)
        ran = await relayd(api.socket, "log", "--where", "client=cli", "--json")
        assert [json.loads(line)["id"] for line in ran.lines] == ["x000000", "x000001"]
        wrong = await relayd(api.socket, "log", "--where", "status>=500 sttus=1")
        assert (wrong.status, wrong.out) == (2, "")
        assert wrong.err.splitlines()[1:] == ["  status>=500 sttus=1", "              ^^^^^"]


async def test_control_characters_from_outside_are_shown_not_obeyed(tmp_path: Path) -> None:
    """ESC, C1, bidi marks and line ends in a record become escapes, in words and in JSON."""
    evil = "a\x1b[31m\x9b2J\u202eb\nc\x7f"
    async with admin_api(tmp_path) as api:
        api.state.log.started(new_record("r1", model=evil, client=evil, ip="192.0.2.1"))
        await api.logged(2)
        words = await relayd(api.socket, "log")
        assert all(line.isprintable() for line in words.lines)
        assert len(words.lines) == 2
        assert "a\\x1b[31m\\x9b2J" in words.out
        document = await relayd(api.socket, "log", "--json")
        assert len(document.lines) == 1
        assert document.out.isascii()
        assert all(char.isprintable() for char in document.lines[0])
        assert json.loads(document.out)["model"] == evil


async def test_a_request_that_runs_is_shown_as_it_is_now() -> None:
    """Its phase and its deltas, of which the disk has only the beginning."""
    async with whole_daemon() as (relay, client):
        wire, _ = await open_chat(relay, "demo:deltas=10000,interval_ms=20")
        try:
            # Its beginning is on disk within 100 ms, as a rule.
            async with asyncio.timeout(PATIENCE_S):
                while not (ran := await relayd(client.socket, "log", "--json")).out:
                    pass
            document = json.loads(ran.out)
            assert (document["phase"], document["outcome"]) == ("streaming", None)
            assert document["deltas"] > 0
            assert document["first_token_ms"] is not None
            assert (await client.request(document["id"])).phase is Phase.STREAMING
        finally:
            wire.finish()


class _Following:
    """`relayd log -f` as a process, whose lines come as they are written."""

    def __init__(self, api: AdminHarness, *words: str) -> None:
        self._command = [sys.executable, "-m", "relayd", "log", "-f", *words, "--socket", str(api.socket)]

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *self._command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        assert self._process.stdout is not None
        self._stdout = self._process.stdout
        return self

    async def __aexit__(self, *_: object) -> None:
        self._process.kill()
        await self._process.communicate()

    async def line(self) -> str:
        """The next line."""
        return (await asyncio.wait_for(self._stdout.readline(), 30)).decode().rstrip("\n")


async def test_following_shows_each_request_once_when_it_ends_also_through_a_pipe(tmp_path: Path) -> None:
    """The past first, then what ends, filtered; a request that runs is shown when it has ended."""
    async with admin_api(tmp_path) as api:
        now = utc_text(time.time())
        api.log(2, client="web", started_at=now)
        running = new_record("running", client="web", started_at=now)
        api.state.log.started(running)
        await api.logged(6)
        async with _Following(api, "--where", "client=web", "--json") as following:
            assert json.loads(await following.line())["id"] == "r000000"
            assert json.loads(await following.line())["id"] == "r000001"
            await until(lambda: len(api.event_bus) == 1)
            api.log(1, prefix="x", client="cli")
            api.state.log.ended(running)
            api.log(1, prefix="last", client="web", started_at=now)
            assert json.loads(await following.line())["id"] == "running"
            assert json.loads(await following.line())["id"] == "last000000"


class _Overlapping(AdminClient):
    """A request ends after the stream of events began and before the past is read: both tell of it."""

    ended = msgspec.structs.replace(new_record("twice"), seq=4, phase=Phase.DONE, outcome=Outcome.COMPLETED)
    later = msgspec.structs.replace(ended, id="later", seq=7)

    async def requests(self, **_: Any) -> RequestPage:
        """The past, in which it has ended."""
        now = utc_text(time.time())
        return RequestPage([msgspec.structs.replace(self.ended, started_at=now)], None)

    async def events(self, after: int | None = None) -> AsyncGenerator[Event, None]:
        """Its end, the end of another one, and of this daemon."""
        if after is not None:
            raise VersionMismatch("enough")
        yield Hello("boot", "1", 5)
        yield Ended(6, "boot", self.ended)
        yield Ended(8, "boot", self.later)


class _Played(Console):
    """A console whose daemon is played."""

    def client(self, socket: str | None) -> AdminClient:
        """The play."""
        return _Overlapping(Path(socket or "none"))


async def test_what_ends_while_the_past_is_read_is_shown_once() -> None:
    """It is in the past and comes as an event too."""
    out = io.StringIO()
    args = Namespace(follow=True, since=None, where="", json=True, socket=None)
    with pytest.raises(VersionMismatch):
        await log.run(args, _Played({}, out, io.StringIO()))
    assert [json.loads(line)["id"] for line in out.getvalue().splitlines()] == ["twice", "later"]


async def test_following_says_what_operators_do_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    """Key changes appear between the requests; what happened while the daemon was away is told."""
    async with admin_api(tmp_path) as api:
        following = _Following(api)
        await following.__aenter__()
        await until(lambda: len(api.event_bus) == 1)
        await relayd(api.socket, "keys", "add", "web")
        assert " -- root: add web " in await following.line()
    try:
        async with admin_api(tmp_path, boot_id="next") as api:
            api.log(1, client="web")
            assert (await following.line()).startswith("TIME")
            assert (await following.line()).split()[-1] == "r000000"
    finally:
        await following.__aexit__()
