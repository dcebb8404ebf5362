"""A daemon at work while it has no descriptor left."""

from __future__ import annotations

import asyncio
import resource
import time
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.daemon import KEY, Daemon
from tests.support.siege import Usage, ask_one, besieged, fresh_address
from tests.wire import Wire, body, post, until

_QUICK = "demo:text=words,deltas=20,interval_ms=0,first_ms=0"
_LONG_DELTAS = 30
_LEFT = 40
_CROWD = 200


@dataclass(frozen=True, slots=True)
class Exhausted:
    """What was seen."""

    spin: float
    """CPU seconds a second while there was none left."""
    whole: bool
    """Whether a stream that was open before went on to its end."""
    served: int
    """The status of a new client's answer meanwhile: silent connections make room for it."""
    recovered_s: float
    """From the crowd's leaving to the whole answer of the next client."""


async def exhausted(home: Path, base_url: str) -> Exhausted:
    """Take all descriptors but a few, and crowd these with silent connections."""
    with besieged(home, base_url, {"log.level": "warning"}) as daemon:
        async with AsyncExitStack() as stack:
            streaming = await stack.enter_async_context(await Wire.open(daemon.port))
            streaming.send(post(KEY, body(f"demo:text=words,deltas={_LONG_DELTAS},interval_ms=100")))
            head = await streaming.head()
            await _crowd(stack, daemon)
            spin = await _cpu_share(daemon.pid)
            served = (await ask_one(daemon.port, _QUICK, fresh_address())).status
            async for _ in streaming.pieces(head):
                pass
            whole = (
                head.error is None and sum(bool(line["content"]) for line in head.lines) == _LONG_DELTAS + 1
            )
        began = time.monotonic()
        await ask_one(daemon.port, _QUICK, fresh_address())
        return Exhausted(spin, whole, served, time.monotonic() - began)


async def _crowd(stack: AsyncExitStack, daemon: Daemon) -> None:
    limit = Usage.of(daemon.pid).descriptors + _LEFT
    resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE, (limit, limit))
    for _ in range(_CROWD):
        await stack.enter_async_context(await Wire.open(daemon.port))
    await until(lambda: "accepting paused" in daemon.stderr)


async def _cpu_share(pid: int) -> float:
    before, began = Usage.of(pid).cpu_s, time.monotonic()
    await asyncio.sleep(1)
    return (Usage.of(pid).cpu_s - before) / (time.monotonic() - began)
