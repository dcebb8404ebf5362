"""Readers of the admin socket that stop reading: what they cost the public side."""

from __future__ import annotations

import asyncio
import statistics
from contextlib import AsyncExitStack
from pathlib import Path

from soaking.row import Row, Seen
from tests.support.siege import Ordinary, Usage, besieged, ordinary, ordinary_during, provider
from tests.wire import Wire

_CLIENTS = 20
_ROUND_S = 60.0
_ROUNDS = 2
_MOST_GROWTH_KIB = 1024
_MOST_RATIO = 1.1


async def frozen_reader(home: Path, size: float) -> Seen:
    """A reader of /events that stops reading, for twice a minute; between times there is none."""
    calm, beside = Ordinary(), Ordinary()
    grown: dict[bool, list[int]] = {False: [], True: []}
    with provider() as base_url, besieged(home, base_url) as daemon:
        # Long enough that caches and buffers have their size.
        await ordinary(daemon.port, _CLIENTS, 20)
        reader = _Frozen(daemon.state_dir / "admin.sock")
        for _ in range(_ROUNDS):
            for seen, watch in ((calm, False), (beside, True)):
                before = Usage.of(daemon.pid).rss_kib
                async with AsyncExitStack() as stack:
                    if watch:
                        await stack.enter_async_context(reader)
                    time_out = asyncio.create_task(asyncio.sleep(_ROUND_S * size), name="round")
                    found = await ordinary_during(daemon.port, _CLIENTS, time_out)
                    seen.first_ms += found.first_ms
                    seen.wrong += found.wrong
                    grown[watch].append(Usage.of(daemon.pid).rss_kib - before)
    p99, was = beside.percentile(99), calm.percentile(99)
    return Seen(
        f"first delta p99 {p99:.1f} ms of {len(beside.first_ms):,}, without it {was:.1f} of"
        f" {len(calm.first_ms):,};"
        f" p50 {beside.percentile(50):.1f} and {calm.percentile(50):.1f};"
        f" memory {_signed(grown[True])} KiB, without it {_signed(grown[False])};"
        f" dropped {reader.dropped} times",
        held=p99 <= was * _MOST_RATIO
        and statistics.median(grown[True]) - statistics.median(grown[False]) < _MOST_GROWTH_KIB
        and not beside.wrong + calm.wrong,
    )


def _signed(kib: list[int]) -> str:
    return " and ".join(f"{value:+,}" for value in kib)


class _Frozen:
    """Asks for the events to come and reads none, until the daemon drops it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.dropped = 0

    async def __aenter__(self) -> None:
        self._wire = await Wire.open_unix(self._path)
        self._wire.pause()
        self._wire.send(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")

    async def __aexit__(self, *exception: object) -> None:
        self.dropped += self._wire.lost()
        await self._wire.__aexit__(None, None, None)


ROWS: tuple[Row, ...] = (frozen_reader,)
