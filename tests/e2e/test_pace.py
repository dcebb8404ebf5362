"""A stream arrives as it is made, also behind a proxy that would like to buffer it."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.cpu import Stopwatch
from tests.e2e.daemon import KEY, Daemon
from tests.e2e.nginx import nginx, running_nginx
from tests.wire import DONE, Wire, body, post

_WORDS = 12
_INTERVAL_S = 0.1
_FIRST_S = 0.3
# Each delta says when it was made, by a clock that all processes of this machine share.
_SCRIPT = f"demo:text=stamp,deltas={_WORDS},interval_ms={_INTERVAL_S * 1000:g}"


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose path is short enough for a socket in it."""
    with tempfile.TemporaryDirectory(prefix="rly") as name:
        yield Path(name)


async def _check_pace(wire: Wire, *pids: int) -> None:
    """Each word comes alone, and before the next one is made."""
    watch = Stopwatch(*pids)
    wire.send(post(KEY, body(_SCRIPT)))
    reply = await wire.head()
    assert reply.status == 200
    late_s: list[float] = []
    async for data in wire.pieces(reply):
        now = time.monotonic()
        assert data.count(b"\n") == 1 or b'"done":true' in data, f"bunched: {data!r}"
        stamp = reply.lines[len(late_s)]["content"]
        if stamp != DONE["content"]:
            waited_s = now - watch.began_at - watch.taken_s(now)
            late_s.append(now - int(stamp) / 1e9 - waited_s)
            watch = Stopwatch(*pids)
    assert len(late_s) == _WORDS
    assert late_s[0] < _FIRST_S
    assert max(late_s) < _INTERVAL_S, f"a word waited for the next one: {late_s}"
    assert reply.lines[-1] == DONE


async def test_words_arrive_one_by_one(daemon: Daemon) -> None:
    """Ten words a second are seen as ten words a second."""
    async with await Wire.open(daemon.port) as wire:
        await _check_pace(wire, daemon.pid)


@pytest.mark.skipif(nginx() is None, reason="nginx is not installed")
@pytest.mark.parametrize("more", ["", "proxy_http_version 1.1;"], ids=["as it is", "HTTP/1.1"])
async def test_words_arrive_one_by_one_behind_nginx(daemon: Daemon, short_path: Path, more: str) -> None:
    """Its buffering is on, as by default: the reply's own header turns it off."""
    with running_nginx(short_path, daemon.port, more) as proxy:
        async with await Wire.open_unix(proxy.socket) as wire:
            await _check_pace(wire, daemon.pid, *proxy.pids)


@pytest.mark.skipif(nginx() is None, reason="nginx is not installed")
async def test_a_client_behind_nginx_is_known_by_its_address(daemon: Daemon, short_path: Path) -> None:
    """A trusted proxy's word on whom it serves is believed, and its failures look like any other."""
    more = "proxy_set_header X-Forwarded-For 192.0.2.44;"
    with running_nginx(short_path, daemon.port, more) as proxy:
        async with await Wire.open_unix(proxy.socket) as wire:
            wire.send(post("wrong", body("demo")))
            reply = await wire.reply()
    assert reply.status == 401
    assert len(reply.lines) == 2
    assert (await daemon.record(reply)).ip == "192.0.2.44"
