"""SIGTERM and SIGINT: no new work, open streams may finish, others get a line, the log is whole, exit 0."""

from __future__ import annotations

import asyncio
import re
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from relayd.state.records import Outcome, Phase
from tests.e2e.daemon import KEY, Daemon
from tests.wire import DONE, Reply, Wire, ask, body, post, until

_ENDLESS = "demo:deltas=100000,interval_ms=20"


@asynccontextmanager
async def _stream(daemon: Daemon, model: str) -> AsyncIterator[tuple[Wire, Reply]]:
    """A stream that has begun."""
    async with await Wire.open(daemon.port) as wire:
        wire.send(post(KEY, body(model)))
        reply = await wire.head()
        await wire.first_piece(reply)
        yield wire, reply


async def _rest(wire: Wire, reply: Reply) -> Reply:
    async with asyncio.timeout(60):
        async for _ in wire.pieces(reply):
            pass
    return reply


async def _ended(daemon: Daemon) -> int:
    return await asyncio.to_thread(daemon.wait)


async def test_open_streams_finish_and_stragglers_get_a_line(tmp_path: Path) -> None:
    """A stream that ends within the drain timeout is whole; another gets `draining` and the done line."""
    drain_s = 10.0
    with Daemon(tmp_path, settings={"server.drain_timeout_s": drain_s}) as daemon:
        if daemon.settings["server.workers"] > 1:
            pytest.skip("a worker without a stream ends at once, and with it its kept connections")
        async with (
            await Wire.open(daemon.port) as kept,
            _stream(daemon, _ENDLESS) as endless,
            _stream(daemon, "demo:text=words,deltas=30,interval_ms=100") as short,
        ):
            kept.send(post(KEY, b"{"))
            assert (await kept.reply()).status == 400
            began_at = time.monotonic()
            daemon.signal(signal.SIGTERM)
            await until(lambda: re.search(r"draining: \d streams? open, at most 10 s", daemon.stderr))
            await until(lambda: _refuses(daemon))
            with pytest.raises(ConnectionRefusedError):
                await Wire.open(daemon.port)
            kept.send(post(KEY, body("demo")))
            refused = await kept.reply()
            finished, cut = await asyncio.gather(_rest(*short), _rest(*endless))
            assert await _ended(daemon) == 0
            took_s = time.monotonic() - began_at
        assert (refused.status, refused.header("X-Relayd-Error")) == (503, "draining")
        assert refused.header("Connection") == "close"
        assert refused.header("Retry-After") == "5"
        assert finished.error is None
        assert finished.lines[-1] == DONE
        assert len(finished.lines) == 31
        assert cut.error is not None
        assert cut.error.startswith("draining: ")
        assert cut.lines[-1] == DONE
        assert took_s >= drain_s
        outcomes = Counter(record.outcome for record in daemon.records())
        assert outcomes == {Outcome.REJECTED: 2, Outcome.COMPLETED: 1, Outcome.SHUTDOWN: 1}
        assert daemon.stderr.rstrip().endswith("stopped")
        assert "Traceback" not in daemon.stderr


async def test_a_second_signal_forces_the_end(tmp_path: Path) -> None:
    """Open streams get their line at once, the daemon exits with 0; a body on its way is cut off."""
    with Daemon(tmp_path, settings={"server.drain_timeout_s": 600}) as daemon:
        async with _stream(daemon, _ENDLESS) as endless, await Wire.open(daemon.port) as unfinished:
            unfinished.send(post(KEY, b"{", {"Expect": "100-continue"}, length=100))
            assert (await unfinished.head()).status == 100
            daemon.signal(signal.SIGINT)
            await until(lambda: "draining: " in daemon.stderr)
            daemon.signal(signal.SIGTERM)
            cut = await _rest(*endless)
            assert await _ended(daemon) == 0
        assert cut.error is not None
        assert cut.error.startswith("draining: ")
        assert cut.lines[-1] == DONE
        assert all(record.phase is Phase.DONE for record in daemon.records())
        assert len(daemon.records()) == 2


async def test_an_idle_daemon_stops_at_once_with_its_log_whole(tmp_path: Path) -> None:
    """What ended a moment before is on disk; nothing is left open, no socket stays behind."""
    with Daemon(tmp_path) as daemon:
        replies = await asyncio.gather(
            *(ask(daemon.port, KEY, body("demo:deltas=2,interval_ms=0")) for _ in range(40))
        )
        daemon.signal(signal.SIGTERM)
        assert await asyncio.to_thread(daemon.wait) == 0
        assert sorted(path.name for path in daemon.state_dir.iterdir()) == ["relayd.db", "relayd.lock"]
        records = {record.id: record for record in daemon.records()}
        assert set(records) == {reply.header("X-Request-Id") for reply in replies}
        assert {record.outcome for record in records.values()} == {Outcome.COMPLETED}


async def test_a_body_that_was_on_its_way_is_still_served(tmp_path: Path) -> None:
    """A request that was admitted before the signal is not refused by it."""
    with Daemon(tmp_path) as daemon:
        payload = body("demo:text=words,deltas=2,interval_ms=0")
        async with await Wire.open(daemon.port) as wire:
            wire.send(post(KEY, b"", {"Expect": "100-continue"}, length=len(payload)))
            assert (await wire.head()).status == 100
            daemon.signal(signal.SIGTERM)
            await until(lambda: _refuses(daemon))
            wire.send(payload)
            reply = await wire.reply()
        assert await _ended(daemon) == 0
    assert reply.text == "The relay "
    assert reply.lines[-1] == DONE


def _refuses(daemon: Daemon) -> bool:
    """Whether nothing listens any more."""
    listening = f":{daemon.port:04X} 00000000:0000 0A"
    return listening not in Path("/proc/net/tcp").read_text()
