"""A stream arrives as it is made, also behind a proxy that would like to buffer it."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.daemon import KEY, Daemon
from tests.e2e.nginx import nginx, running_nginx
from tests.wire import Wire, body, post

_WORDS = "The relay passes each delta "


@pytest.fixture
def short_path() -> Iterator[Path]:
    """A directory whose path is short enough for a socket in it."""
    with tempfile.TemporaryDirectory(prefix="rly") as name:
        yield Path(name)


async def _check_pace(wire: Wire, words: int) -> None:
    """So many words are there although the model falls silent after them, and no heartbeat pushed them on."""
    wire.send(post(KEY, body(f"demo:text=words,deltas=12,interval_ms=20,fault=stall_mid,after={words}")))
    reply = await wire.head()
    assert reply.status == 200
    while len(reply.lines) < words:
        await wire.first_piece(reply)
    assert reply.text.split() == _WORDS.split()[:words]
    assert all(line["content"] for line in reply.lines)


@pytest.mark.parametrize("words", [1, 2, 5])
async def test_no_word_waits_for_the_next(daemon: Daemon, words: int) -> None:
    """Each is seen before the next one is made."""
    async with await Wire.open(daemon.port) as wire:
        await _check_pace(wire, words)


@pytest.mark.skipif(nginx() is None, reason="nginx is not installed")
@pytest.mark.parametrize("more", ["", "proxy_http_version 1.1;"], ids=["as it is", "HTTP/1.1"])
async def test_no_word_waits_for_the_next_behind_nginx(daemon: Daemon, short_path: Path, more: str) -> None:
    """Its buffering is on, as by default: the reply's own header turns it off."""
    with running_nginx(short_path, daemon.port, more) as proxy:
        for words in (1, 5):
            async with await Wire.open_unix(proxy) as wire:
                await _check_pace(wire, words)


@pytest.mark.skipif(nginx() is None, reason="nginx is not installed")
async def test_a_client_behind_nginx_is_known_by_its_address(daemon: Daemon, short_path: Path) -> None:
    """A trusted proxy's word on whom it serves is believed, and its failures look like any other."""
    more = "proxy_set_header X-Forwarded-For 192.0.2.44;"
    with running_nginx(short_path, daemon.port, more) as proxy:
        async with await Wire.open_unix(proxy) as wire:
            wire.send(post("wrong", body("demo")))
            reply = await wire.reply()
    assert reply.status == 401
    assert len(reply.lines) == 2
    assert (await daemon.record(reply)).ip == "192.0.2.44"
