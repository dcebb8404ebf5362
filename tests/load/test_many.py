"""What only many repetitions show: growth, restarts under load, guessed keys."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.daemon import KEY, PROVIDER_KEY
from tests.load.harness import Usage, ask_as, fresh_address, loaded_daemon, ordinary, report
from tests.support.upstream import fault_upstream_url
from tests.test_systemd import started
from tests.wire import DONE, HOST, Wire, body, post, until

pytestmark = pytest.mark.usefixtures("only_large")

_QUICK = "demo:text=words,deltas=5,interval_ms=0"
_STOP_TIMEOUT_S = 60.0


@pytest.mark.timeout(seconds=1200)
async def test_many_streams_leave_nothing_behind(tmp_path: Path) -> None:
    """No descriptor stays, every answer is whole, and memory stops growing after the first tenth."""
    streams = 100_000
    with loaded_daemon(tmp_path) as daemon:
        assert await _wrong_of(daemon.port, streams // 10) == 0
        early = Usage.of(daemon)
        assert await _wrong_of(daemon.port, streams - streams // 10) == 0
        grown_kib = Usage.of(daemon).rss_kib - early.rss_kib
        report(f"{streams} streams: {grown_kib / 1024:+.1f} MiB after the first tenth")
        # The goal of 2 MiB is the benchmark's (`growth`); a busy machine holds more for a while.
        assert grown_kib < 6 * 1024
        await until(lambda: Usage.of(daemon).descriptors <= early.descriptors)


async def _wrong_of(port: int, streams: int) -> int:
    left, wrong = iter(range(streams)), 0

    async def client() -> None:
        nonlocal wrong
        async with await Wire.open(port) as wire:
            for _ in left:
                wire.send(post(KEY, body(_QUICK)))
                wrong += (await wire.reply()).text != "The relay passes each delta "

    await asyncio.gather(*(client() for _ in range(20)))
    return wrong


@pytest.mark.timeout(seconds=600)
async def test_guessed_keys_are_refused_and_disturb_no_other_client(tmp_path: Path) -> None:
    """Each guess gets its 401, clients of other addresses are served, and memory does not grow."""
    guesses, ip = 10_000, fresh_address()
    with loaded_daemon(tmp_path, {"log.level": "error"}) as daemon:
        others = asyncio.create_task(ordinary(daemon.port, 10, 20), name="ordinary clients")
        statuses = Counter[int]()

        async def guesser(numbers: Iterator[int]) -> None:
            for number in numbers:
                async with await Wire.open(daemon.port, source=ip) as wire:
                    wire.send(post(f"guessed-key-number-{number:08}", b"{}"))
                    statuses[(await wire.reply()).status] += 1

        async def guess(numbers: range) -> None:
            left = iter(numbers)
            await asyncio.gather(*(guesser(left) for _ in range(50)))

        await guess(range(guesses // 5))
        beside = await others
        report(f"beside guessed keys: {beside}")
        assert beside.wrong == 0
        early = Usage.of(daemon)
        await guess(range(guesses // 5, guesses))
        assert statuses == {401: guesses}
        assert Usage.of(daemon).rss_kib - early.rss_kib < 4 * 1024


@pytest.mark.timeout(seconds=600)
async def test_a_restart_refuses_no_connection_and_breaks_no_stream(tmp_path: Path) -> None:
    """A client that connects between two daemons waits; open streams are finished, or end with `draining`."""
    ends, stopping = Counter[str](), asyncio.Event()
    with socket.create_server((HOST, 0), backlog=1024) as listening:
        port = listening.getsockname()[1]

        async def client() -> None:
            while not stopping.is_set():
                ends[await _end_of_one(port)] += 1

        env = {"RELAYD_UPSTREAM__BASE_URL": fault_upstream_url(PROVIDER_KEY)}
        clients = [asyncio.create_task(client(), name="client") for _ in range(10)]
        try:
            for _ in range(20):
                with started(tmp_path, listening, env) as process:
                    known = ends.total()
                    await until(lambda known=known: ends.total() >= known + len(clients))  # type: ignore[misc]
                    process.send_signal(signal.SIGTERM)
                    assert await asyncio.to_thread(process.wait, _STOP_TIMEOUT_S) == 0
            with started(tmp_path, listening, env):
                stopping.set()
                await asyncio.gather(*clients)
        finally:
            for task in clients:
                task.cancel()
    report(f"ends over restarts: {dict(ends)}")
    assert set(ends) <= {"whole", "draining"}, ends
    assert ends["whole"] > 20


async def _end_of_one(port: int) -> str:
    """Return `whole`, the code of its error, or how its connection broke."""
    try:
        reply = await ask_as(fresh_address(), port)
    except (EOFError, OSError) as error:
        return type(error).__name__
    if reply.cut or reply.lines[-1] != DONE:
        return "cut"
    return "whole" if reply.error is None else reply.error.partition(":")[0]
