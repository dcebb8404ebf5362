"""Several processes on one port: what one of them suffers, and what they do together."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import signal
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest

from relayd.admin.client import Refused
from relayd.admin.schema import Outcome
from relayd.state.directory import LOCK_NAME
from tests.e2e.daemon import KEY, Daemon
from tests.wire import PATIENCE_S, Reply, Wire, ask, body, eventually, fetch, post, until

pytestmark = pytest.mark.usefixtures("only_large")

_STREAMS = 12
_ENDLESS = "demo:deltas=100000,interval_ms=20"


def _workers(home: Path, **settings: object) -> Daemon:
    """Return a daemon with two workers."""
    named = {name.replace("__", "."): value for name, value in settings.items()}
    return Daemon(home, settings={"server.workers": 2, **named})


async def _stream(stack: AsyncExitStack, daemon: Daemon, model: str) -> tuple[Wire, Reply]:
    """Return a stream that has begun, on a connection of its own."""
    wire = await stack.enter_async_context(await Wire.open(daemon.port))
    return wire, await wire.begin(post(KEY, body(model)))


async def _streams_on_all_workers(stack: AsyncExitStack, daemon: Daemon) -> list[tuple[Wire, Reply]]:
    """Return streams that have begun: so many that each worker has some."""
    streams = [await _stream(stack, daemon, _ENDLESS) for _ in range(_STREAMS)]

    async def all_have_some() -> bool:
        counts = [worker.streams for worker in (await daemon.admin.instances()).instances]
        if len(counts) == 2 and all(counts):
            return True
        # A worker hears what another has at its next heartbeat.
        await asyncio.sleep(0.2)
        streams.append(await _stream(stack, daemon, _ENDLESS))
        return False

    await eventually(all_have_some)
    return streams


def _is_unlocked(file: Path) -> bool:
    with file.open("rb") as opened:
        try:
            fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


async def test_a_worker_that_is_killed_takes_only_its_own_streams_along(tmp_path: Path) -> None:
    """The other's go on, and no connection is refused."""
    with _workers(tmp_path, server__max_streams_per_address=1000) as daemon:
        _, victim = daemon.worker_pids
        is_over = asyncio.Event()

        async def ask_again_and_again() -> None:
            while not is_over.is_set():
                # The worker that is killed may have it, but none is refused (ConnectionRefusedError).
                with suppress(EOFError, ConnectionResetError, BrokenPipeError):
                    reply = await ask(daemon.port, KEY, body("demo:deltas=1"))
                    assert reply.cut or reply.status == 200

        async with AsyncExitStack() as stack:
            streams = await _streams_on_all_workers(stack, daemon)
            reading = {asyncio.create_task(wire.rest(reply), name="reader"): reply for wire, reply in streams}
            asking = asyncio.create_task(ask_again_and_again(), name="other clients")
            os.kill(victim, signal.SIGKILL)
            await until(lambda: daemon.stderr.count(" serves\n") == 3)
            await until(lambda: any(task.done() for task in reading))
            known = {task: len(reply.pieces) for task, reply in reading.items()}
            await until(
                lambda: all(task.done() or len(reading[task].pieces) > known[task] + 10 for task in reading)
            )
            is_over.set()
            await asyncio.wait_for(asking, PATIENCE_S)
            broken = [task for task in reading if task.done()]
            assert 0 < len(broken) < len(streams)
            assert all(task.result().cut for task in broken)
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)
        # In a thread: this loop has yet to close the connections.
        assert await asyncio.to_thread(daemon.stop) == 0


async def test_what_a_killed_worker_had_open_ends_as_crashed(tmp_path: Path) -> None:
    """The others see to that; what the other one streams goes on."""
    with _workers(tmp_path, server__max_streams_per_address=1000) as daemon:
        async with AsyncExitStack() as stack:
            streams = await _streams_on_all_workers(stack, daemon)
            ids = {reply.header("X-Request-Id") for _, reply in streams}
            # What is not on disk yet is lost with its worker.
            await until(lambda: ids <= {record.id for record in daemon.records()})
            reading = {asyncio.create_task(wire.rest(reply), name="reader"): reply for wire, reply in streams}
            os.kill(daemon.worker_pids[1], signal.SIGKILL)

            def all_broken_have_crashed() -> bool:
                crashed = {record.id for record in daemon.records() if record.outcome is Outcome.CRASHED}
                broken = {reply.header("X-Request-Id") for task, reply in reading.items() if task.done()}
                return len(crashed) > 0 and crashed == broken

            await until(all_broken_have_crashed)
            assert not all(task.done() for task in reading)
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)
        assert await asyncio.to_thread(daemon.stop) == 0


async def test_one_admin_socket_reaches_all_workers(tmp_path: Path) -> None:
    """It counts the streams of both, cancels any of them, and drains the whole relay."""
    with _workers(tmp_path) as daemon:
        async with AsyncExitStack() as stack:
            streams = [await _stream(stack, daemon, _ENDLESS) for _ in range(4)]

            async def counts_all() -> bool:
                return (await daemon.admin.status()).streams.streaming == 4

            # The worker that answers may not have heard of the other's yet.
            await eventually(counts_all)
            for wire, reply in streams:
                request_id = reply.header("X-Request-Id")
                assert request_id is not None

                async def cancels(request_id: str = request_id) -> bool:
                    try:
                        await daemon.admin.cancel(request_id)
                    except Refused:
                        return False
                    return True

                await eventually(cancels)
                assert ((await wire.rest(reply)).error or "").startswith("cancelled: ")
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


async def test_what_a_client_stored_is_its_own_at_every_worker(tmp_path: Path) -> None:
    """Also in the moment before the worker that relayed it has written that to disk."""
    with _workers(tmp_path) as daemon:
        question = json.dumps({"model": "demo:deltas=1", "input": "hi"}).encode()
        async with await Wire.open(daemon.port) as wire:
            wire.send(post(f"Bearer {KEY}", question, path="/v1/responses"))
            response_id = json.loads((await wire.reply()).body)["id"]
            # The first connection is still open, so that the next one goes to the other worker.
            found = await fetch(
                daemon.port, f"/v1/responses/{response_id}", {"Authorization": f"Bearer {KEY}"}
            )
        assert (found.status, json.loads(found.body)["id"]) == (200, response_id)
