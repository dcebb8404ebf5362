"""Clients that never read, never finish their head, or never finish their body."""

from __future__ import annotations

import asyncio
import select
import time
from collections import Counter
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path

import pytest

from tests.e2e.daemon import KEY
from tests.load.harness import Usage, fresh_address, loaded_daemon, ordinary, report, resumed, unread
from tests.wire import Wire, body, post, until

pytestmark = pytest.mark.usefixtures("only_large")

_CUT_TIMEOUT_S = 60
_STUCK = {"X-Forwarded-For": "198.19.0.1"}


@pytest.mark.timeout(seconds=600)
@pytest.mark.parametrize(("delta_bytes", "deltas"), [(200, 1500), (5000, 100)])
async def test_clients_that_do_not_read_cost_little_and_disturb_no_other(
    tmp_path: Path, delta_bytes: int, deltas: int
) -> None:
    """Their memory is bounded, others lose no line, and a client that reads on gets all of it, exactly."""
    stuck = 1000
    request = post(KEY, body(f"demo:text=x{delta_bytes},deltas={deltas},interval_ms=0"), _STUCK)
    with loaded_daemon(tmp_path, {"server.write_timeout_s": 300}) as daemon:
        await ordinary(daemon.port, 10, 2)
        async with AsyncExitStack() as stack:
            before = Usage.of(daemon)
            wires = await unread(stack, daemon.port, [request] * stuck)
            assert (await ordinary(daemon.port, 10, 20)).wrong == 0
            assert (await daemon.admin.status()).streams.streaming == stuck
            grown_kib = Usage.of(daemon).rss_kib - before.rss_kib
            report(f"{stuck} stuck readers, deltas of {delta_bytes} bytes: {grown_kib / 1024:+.0f} MiB")
            # 64 MiB for a thousand, and what an allocator holds back whatever the number.
            assert grown_kib < 64 * 1024 * stuck // 1000 + 6 * 1024
            text = "x" * delta_bytes * deltas
            ends = Counter(await asyncio.gather(*(resumed(wire, text) for wire in wires)))
        assert ends == {"exact": stuck}


async def test_clients_that_never_read_are_given_up(tmp_path: Path) -> None:
    """After the write timeout their connection ends without an orderly end, and their record says why."""
    request = post(KEY, body("demo:text=x200,deltas=1500,interval_ms=0"), _STUCK)
    with loaded_daemon(tmp_path, {"server.write_timeout_s": 1}) as daemon:
        async with AsyncExitStack() as stack:
            wires = await unread(stack, daemon.port, [request] * 10)
            # What the kernel holds for them comes before the connection's end, so only the log tells.
            await until(lambda: [r.outcome for r in daemon.records()] == ["client_stalled"] * 10)
            assert Counter([await resumed(wire, "") for wire in wires]) == {"cut": 10}


@pytest.mark.parametrize(
    ("start", "trickle"),
    [
        (f"POST /chat HTTP/1.1\r\nHost: relay\r\nAuthorization: {KEY}\r\nX-".encode(), b"x"),
        (post(KEY, b"{", length=1000), b" "),
        (post("a-key-that-is-wrong", b"{", length=1000), b" "),
    ],
    ids=["head", "body", "refused body"],
)
async def test_clients_that_take_their_time_are_cut_in_time(
    tmp_path: Path, start: bytes, trickle: bytes
) -> None:
    """A byte now and then buys no time, and others are served meanwhile."""
    settings = {"server.header_timeout_s": 5, "server.body_timeout_s": 5}
    with loaded_daemon(tmp_path, settings) as daemon:
        calm = await ordinary(daemon.port, 10, 3)
        before = Usage.of(daemon)
        async with AsyncExitStack() as stack:
            others = asyncio.create_task(ordinary(daemon.port, 10, 5), name="ordinary clients")
            wires = []
            for _ in range(1000):
                wire = await stack.enter_async_context(await Wire.open(daemon.port, source=fresh_address()))
                wire.send(start)
                wires.append(wire)
            began_s = time.monotonic()
            await _all_cut(wires, trickle)
            report(f"all {len(wires)} gone after {time.monotonic() - began_s:.1f} s")
            beside = await others
            report(f"others: {beside}; before: {calm}")
            assert beside.wrong == 0
        await until(lambda: Usage.of(daemon).descriptors <= before.descriptors)


async def _all_cut(wires: list[Wire], trickle: bytes) -> None:
    """Send a byte now and then until every connection was cut."""
    deadline_s = time.monotonic() + _CUT_TIMEOUT_S
    poll, left = select.poll(), {wire.socket.fileno(): wire for wire in wires}
    for number in left:
        poll.register(number, select.POLLRDHUP)
    for turn in count():
        for number, _ in poll.poll(0):
            poll.unregister(number)
            del left[number]
        if not left:
            return
        assert time.monotonic() < deadline_s, f"{len(left)} of {len(wires)} connections are still open"
        for wire in list(left.values())[turn % 20 :: 20]:
            if not wire.lost():
                wire.send(trickle)
        await asyncio.sleep(0.05)
