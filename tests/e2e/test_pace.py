"""A stream arrives as it is made; tests/deploy/test_proxies.py has the same behind proxies."""

from __future__ import annotations

import pytest

from tests.e2e.daemon import KEY, Daemon
from tests.wire import Wire, body, post

_WORDS = "The relay passes each delta "


@pytest.mark.parametrize("words", [1, 2, 5])
async def test_no_word_waits_for_the_next(daemon: Daemon, words: int) -> None:
    """So many words come although the model falls silent after them, and no heartbeat pushes them on."""
    async with await Wire.open(daemon.port) as wire:
        wire.send(post(KEY, body(f"demo:text=words,deltas=12,interval_ms=20,fault=stall_mid,after={words}")))
        reply = await wire.head()
        assert reply.status == 200
        while len(reply.lines) < words:
            await wire.first_piece(reply)
        assert reply.text.split() == _WORDS.split()[:words]
        assert all(line["content"] for line in reply.lines)
