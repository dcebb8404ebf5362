"""Several processes on one port: what one of them suffers, and what they do together."""

from __future__ import annotations

import asyncio
import fcntl
import os
import signal
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

from relayd.admin.schema import Instance
from relayd.state.directory import LOCK_NAME
from relayd.state.records import Outcome
from tests.e2e.daemon import KEY, Daemon
from tests.wire import DONE, PATIENCE_S, Reply, Wire, ask, body, post, until

_STREAMS = 12
_ENDLESS = "demo:deltas=100000,interval_ms=20"


def _workers(home: Path, **settings: object) -> Daemon:
    """Return a daemon with two workers."""
    named = {name.replace("__", "."): value for name, value in settings.items()}
    return Daemon(home, settings={"server.workers": 2, **named})


async def _stream(stack: AsyncExitStack, daemon: Daemon, model: str) -> tuple[Wire, Reply]:
    """Return a stream that has begun, on a connection of its own."""
    wire = await stack.enter_async_context(await Wire.open(daemon.port))
    wire.send(post(KEY, body(model)))
    reply = await wire.head()
    await wire.first_piece(reply)
    return wire, reply


async def _rest(wire: Wire, reply: Reply) -> Reply:
    async for _ in wire.pieces(reply):
        pass
    return reply


async def _both(daemon: Daemon) -> Sequence[Instance]:
    """Return the two workers by number, once the one that answers has heard of the other."""
    async with asyncio.timeout(PATIENCE_S):
        while len(instances := (await daemon.admin.instances()).instances) < 2:  # noqa: ASYNC110 - nothing announces it
            await asyncio.sleep(0.02)
    return instances


def _is_unlocked(file: Path) -> bool:
    with file.open("rb") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


async def test_a_worker_that_is_killed_takes_only_its_own_streams_along(tmp_path: Path) -> None:
    """The other's are whole, no connection is refused, and the log says which ones broke off."""
    with _workers(tmp_path) as daemon:
        _, victim = daemon.worker_pids
        answered = asyncio.Event()

        async def ask_again_and_again() -> None:
            while not answered.is_set():
                reply = await ask(daemon.port, KEY, body("demo:deltas=1"))
                # It may have been on the worker that was killed, but it was accepted.
                assert reply.cut or reply.status == 200

        async with AsyncExitStack() as stack:
            model = "demo:text=words,deltas=200,interval_ms=30"
            streams = [await _stream(stack, daemon, model) for _ in range(_STREAMS)]
            ids = {reply.header("X-Request-Id") for _, reply in streams}
            # What began in the last moments before the kill may be missing in the log.
            await until(lambda: ids <= {record.id for record in daemon.records()})
            asking = asyncio.create_task(ask_again_and_again(), name="other clients")
            os.kill(victim, signal.SIGKILL)
            replies = await asyncio.gather(*(_rest(*stream) for stream in streams))
            await until(lambda: daemon.stderr.count(" serves\n") == 3)
            answered.set()
            await asyncio.wait_for(asking, PATIENCE_S)
        whole = [reply for reply in replies if not reply.cut]
        assert 0 < len(whole) < _STREAMS
        assert all(len(reply.lines) == 201 and reply.lines[-1] == DONE for reply in whole)

        def outcomes() -> Counter[Outcome | None]:
            return Counter(record.outcome for record in daemon.records() if record.id in ids)

        await until(lambda: outcomes()[Outcome.CRASHED] == _STREAMS - len(whole))
        assert outcomes()[Outcome.COMPLETED] == len(whole)
        assert daemon.stop() == 0


async def test_one_admin_socket_reaches_all_workers(tmp_path: Path) -> None:
    """It counts the streams of both, cancels any of them, and drains the whole relay."""
    with _workers(tmp_path) as daemon:
        async with AsyncExitStack() as stack:
            streams = [await _stream(stack, daemon, _ENDLESS) for _ in range(4)]
            instances = await _both(daemon)
            assert [(instance.worker, instance.pid) for instance in instances] == [
                *enumerate(daemon.worker_pids, 1)
            ]
            assert (await daemon.admin.status()).streams.streaming == 4
            for wire, reply in streams:
                request_id = reply.header("X-Request-Id")
                assert request_id is not None
                await daemon.admin.cancel(request_id)
                assert ((await _rest(wire, reply)).error or "").startswith("cancelled: ")
        await daemon.admin.drain()
        assert await asyncio.to_thread(daemon.wait) == 0
    assert daemon.stderr.count("stopped\n") == 2


async def test_a_replaced_worker_has_the_settings_of_the_last_reload(tmp_path: Path) -> None:
    """Not those of the supervisor's start, which it was forked from."""
    with _workers(tmp_path) as daemon:
        daemon.configure({"chat.allowed_models": ["another"]})
        daemon.signal(signal.SIGHUP)
        await until(lambda: daemon.stderr.count("reload: chat.allowed_models is now") == 2)
        os.kill(daemon.worker_pids[0], signal.SIGKILL)
        await until(lambda: daemon.stderr.count(" serves\n") == 3)
        replies = [await ask(daemon.port, KEY, body("demo:deltas=1")) for _ in range(10)]
        assert {reply.status for reply in replies} == {403}


async def test_the_state_is_free_when_the_last_worker_has_ended(tmp_path: Path) -> None:
    """Workers whose supervisor was killed drain; until then, no other relay uses their database."""
    daemon = _workers(tmp_path, server__drain_timeout_s=600)
    with daemon:
        async with AsyncExitStack() as stack:
            await _stream(stack, daemon, _ENDLESS)
            daemon.process.kill()
            daemon.wait()
            await until(lambda: "the supervisor has died: stopping" in daemon.stderr)
            daemon.launch()
            assert await asyncio.to_thread(daemon.wait) == 1
            assert "Another relayd uses the state directory" in daemon.stderr
        await until(lambda: daemon.stderr.count("stopped\n") == 2)
        await until(lambda: _is_unlocked(daemon.state_dir / LOCK_NAME))
        daemon.start()
        assert (await ask(daemon.port, KEY, body("demo:deltas=1"))).status == 200
        assert daemon.stop() == 0
