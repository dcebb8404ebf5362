"""The states on real sockets: a daemon paused, drained, not there; a closed door; another version."""

from __future__ import annotations

import asyncio
import os
import re
import shlex
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from relayd.admin.archive import Archive
from relayd.admin.schema import Outcome, RequestRecord
from tests.e2e.daemon import KEY, Daemon
from tests.tui.app_harness import AppHarness, running_app
from tests.tui.terminal import Terminal
from tests.wire import PATIENCE_S, Wire, ask, body, post, until
from tui.model.store import MarkKind
from tui.screens.dialogs import Confirm

SHORT = "demo:deltas=2"
SLOW = "demo:deltas=40000,interval_ms=25"
# Without these, a process of root is stopped by the modes of files like anybody else.
_NO_OVERRIDE = ("--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")


def held(harness: AppHarness) -> list[RequestRecord]:
    """The records that the app holds, oldest first."""
    store = harness.state.store
    rows = [store.row_at(index) for index in range(len(store))]
    return [row for row in rows if isinstance(row, RequestRecord)]


@asynccontextmanager
async def at_the_desk(daemon: Daemon) -> AsyncIterator[AppHarness]:
    """The app on this daemon's socket, with its database to fall back on."""
    home = daemon.home / "operator"
    home.mkdir()
    async with running_app(home, daemon.admin, archive=Archive(daemon.database)) as harness:
        yield harness


async def header(harness: AppHarness, word: str) -> None:
    """Wait until the header says it."""
    await until(lambda: word in harness.text().splitlines()[0])


async def test_a_daemon_that_is_down_at_the_start_shows_its_history_and_comes_back(tmp_path: Path) -> None:
    """Killed before the app came: records, keys and audit come from the file; once back, none is double."""
    with Daemon(tmp_path) as daemon:
        for _ in range(3):
            assert (await ask(daemon.port, KEY, body(SHORT))).status == 200
        async with await Wire.open(daemon.port) as wire:
            await wire.begin(post(KEY, body(SLOW)))
            await until(lambda: len(daemon.records()) == 4)
            await asyncio.to_thread(daemon.kill)
        async with at_the_desk(daemon) as harness:
            await header(harness, "○ DOWN")
            await until(lambda: len(held(harness)) == 4)
            await harness.redraw()
            assert "No relayd answers at" in harness.text()
            assert "▶" in harness.text()
            assert "History is read from disk" in " ".join(harness.text().split())
            assert "x(cancel)" in harness.text()
            await harness.press("K")
            await until(lambda: "r(rotate)" in harness.text())
            assert harness.state.ring.keys[0].id in harness.text()
            await harness.press("r", "exclamation_mark", "5")
            assert harness.windows == 1
            await until(lambda: harness.state.audit)
            await harness.press("7")
            await until(lambda: "▶all" in harness.text())
            await asyncio.to_thread(daemon.start)
            assert (await ask(daemon.port, KEY, body(SHORT))).status == 200
            harness.app.feed.retry_now()
            await header(harness, "● LIVE")
            await until(lambda: [r.outcome for r in held(harness)[4:]] == [Outcome.COMPLETED])
            assert [record.id for record in held(harness)] == [r.id for r in reversed(daemon.records())]
            assert held(harness)[3].outcome is Outcome.CRASHED


async def test_a_real_daemon_is_paused_resumed_and_drained(tmp_path: Path) -> None:
    """P asks, pauses and resumes; D says what is open, waits for it, and leaves the history to read."""
    with Daemon(tmp_path) as daemon:
        async with at_the_desk(daemon) as harness:
            await header(harness, "● LIVE")
            await _confirm(harness, "P", "Pause intake?")
            await header(harness, "PAUSED")
            assert (await ask(daemon.port, KEY, body(SHORT))).status == 503
            await harness.press("P")
            await header(harness, "● LIVE")
            assert (await ask(daemon.port, KEY, body(SHORT))).status == 200
            # Its end must be known, or the question counts it too.
            await until(lambda: held(harness) and held(harness)[-1].outcome is Outcome.COMPLETED)
            async with await Wire.open(daemon.port) as wire:
                await wire.begin(post(KEY, body(SLOW)))
                await until(lambda: harness.state.open_streams.streams)
                await _confirm(harness, "D", "1 stream open now")
                await header(harness, "DRAINING")
                # A second request to stop ends what is open.
                daemon.signal(signal.SIGTERM)
                assert await asyncio.to_thread(daemon.wait, PATIENCE_S) == 0
            await header(harness, "○ DOWN")
            await until(lambda: held(harness)[-1].outcome is Outcome.SHUTDOWN)
            assert harness.state.store.marks(MarkKind.RESTART) == []


async def _confirm(harness: AppHarness, key: str, question: str) -> None:
    await harness.press(key)
    await until(lambda: isinstance(harness.screen, Confirm) and question in harness.text())
    await harness.press("y")


async def test_a_server_of_another_version_is_only_read_from(tmp_path: Path) -> None:
    """The header says so, history comes from the file, and nothing can be changed; mended, R goes on."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.1 200 OK\r\nRelayd-Admin: 99\r\nContent-Length: 14\r\n\r\n{"later":true}')
        await writer.drain()
        writer.close()

    with Daemon(tmp_path) as daemon:
        assert (await ask(daemon.port, KEY, body(SHORT))).status == 200
        await asyncio.to_thread(daemon.stop)
        server = await asyncio.start_unix_server(speak, daemon.state_dir / "admin.sock")
        async with server, at_the_desk(daemon) as harness:
            await header(harness, "VERSION MISMATCH")
            await until(lambda: len(held(harness)) == 1)
            await harness.press("K", "r", "a", "P")
            await until(lambda: "speaks another version" in harness.text())
            assert harness.windows == 1
            server.close()
            (daemon.state_dir / "admin.sock").unlink(missing_ok=True)
            await asyncio.to_thread(daemon.start)
            harness.app.feed.retry_now()
            await header(harness, "● LIVE")


@pytest.mark.skipif(os.geteuid() == 0 and shutil.which("setpriv") is None, reason="root needs setpriv")
@pytest.mark.parametrize("closed", ["the socket", "its directory"])
async def test_a_closed_door_names_the_path_and_opens_with_r(tmp_path: Path, closed: str) -> None:
    """DENIED: which path, which permission, and a command that mends it: after that, R connects."""
    daemon = Daemon(tmp_path)
    await asyncio.to_thread(daemon.start)
    door = daemon.state_dir / "admin.sock" if closed == "the socket" else daemon.state_dir
    mode = door.stat().st_mode
    # What the group may do is of no use to the owner.
    door.chmod(0o070)
    through = ("setpriv", *_NO_OVERRIDE) if os.geteuid() == 0 else ()
    arguments = ("-m", "tui", "--socket", str(daemon.state_dir / "admin.sock"))
    try:
        with Terminal(arguments, tmp_path, (400, 40), through) as terminal:
            advice = re.compile(rf"0070\)\. It is yours: (chmod \S+ {re.escape(str(door))})".encode())
            said = await terminal.until(advice.search)
            assert b"DENIED" in said
            assert b"permission is missing" in said
            command = advice.search(said)
            assert command is not None
            await asyncio.to_thread(subprocess.run, shlex.split(command[1].decode()), check=True)
            terminal.send(b"R")
            await terminal.until(lambda raw: "● LIVE".encode() in raw)
            terminal.send(b"Q")
            assert await terminal.ended() == 0
    finally:
        door.chmod(mode)
        daemon.kill()
