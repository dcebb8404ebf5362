"""Two relays behind HAProxy and Caddy, with the files of docs/deploy/postgresql."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest

from tests.deploy.proxies import NAME, Front, front
from tests.e2e.daemon import KEY, Daemon, closed_port
from tests.support.programs import require
from tests.wire import DONE, HOST, PATIENCE_S, Wire, body, post, until

_CLIENTS = 4
_QUESTION = body("demo:deltas=5,interval_ms=5")
_SEEN = {
    # Neither sends to the other relay what this one refuses: `cancelled` is a 503 as well.
    "haproxy": {"200", "503 draining"},
    # Nor does this one send again what meets a connection being closed.
    "caddy": {"200", "503 draining", "502"},
}


@pytest.mark.usefixtures("only_large")
@pytest.mark.parametrize("kind", _SEEN)
async def test_a_restart_of_one_after_the_other_breaks_no_answer(kind: str, tmp_path: Path) -> None:
    """Every answer that begins is complete; a request that is refused gets the code that says so."""
    require(kind)
    homes = [tmp_path / name for name in ("one", "two", "front")]
    for home in homes:
        home.mkdir()
    one, two = (Daemon(home, settings={"server.port": closed_port()}) for home in homes[:2])
    with one, two, front(kind, homes[2], one.port, two.port) as proxy:
        seen: Counter[str] = Counter()
        is_over = asyncio.Event()
        async with asyncio.TaskGroup() as clients:
            for _ in range(_CLIENTS):
                clients.create_task(_ask_until(is_over, proxy, seen))
            for daemon in (one, two):
                assert await asyncio.to_thread(daemon.stop) == 0
                known = len(daemon.records())
                await asyncio.to_thread(daemon.start)
                await _until_it_serves(daemon, known)
            is_over.set()
    assert "200" in seen
    assert set(seen) <= _SEEN[kind]


async def _until_it_serves(daemon: Daemon, known: int) -> None:
    """Wait for a new record: before, the proxy may know of no relay that serves when the other one stops."""
    await until(lambda: len(daemon.records()) > known)


async def _ask_until(is_over: asyncio.Event, proxy: Front, seen: Counter[str]) -> None:
    """Ask one request after the other, and count how they ended."""
    while not is_over.is_set():
        streams = await asyncio.open_connection(
            HOST, proxy.port, ssl=proxy.tls("http/1.1"), server_hostname=NAME
        )
        async with asyncio.timeout(PATIENCE_S), Wire(*streams) as wire:
            wire.send(post(KEY, _QUESTION).replace(b"Host: relay\r\n", f"Host: {NAME}\r\n".encode()))
            reply = await wire.reply()
        if reply.status == 200:
            assert reply.error is None, reply
            assert reply.lines[-1] == DONE
        refused = reply.header("X-Relayd-Error")
        seen[f"{reply.status} {refused}" if refused else str(reply.status)] += 1
