"""Reaching the provider, or saying why not."""

from __future__ import annotations

import asyncio
import socket

import pytest

from relayd.relay.pool import Origin, Pool, Unreachable


async def _refused(pool: Pool) -> str:
    with pytest.raises(Unreachable) as caught:
        await pool.send(b"", b"", lambda: None)
    await pool.close()
    return str(caught.value)


async def test_a_refused_connection_says_so() -> None:
    """The sentence names the refusal."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    assert "refused" in (await _refused(Pool(Origin("127.0.0.1", port, None), connect_timeout_s=5))).lower()


async def test_an_unknown_name_says_so() -> None:
    """A name that cannot exist (RFC 6761) is told as such."""
    assert await _refused(Pool(Origin("nowhere.invalid", 80, None), connect_timeout_s=5))


async def test_a_provider_that_never_accepts_is_given_up_in_time() -> None:
    """A full backlog swallows the attempt; the timeout ends it."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        host, port = sock.getsockname()
        fillers = []
        for _ in range(4):
            filler = socket.socket()
            filler.setblocking(False)  # noqa: FBT003 - the standard library's signature
            filler.connect_ex((host, port))
            fillers.append(filler)
        await asyncio.sleep(0.05)
        said = await _refused(Pool(Origin(host, port, None), connect_timeout_s=0.3))
        assert "within 0.3 s" in said
        for filler in fillers:
            filler.close()
