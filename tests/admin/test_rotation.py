"""Keys are rotated under load: no valid key is refused, no expired key is let in.

`RELAYD_TEST_ROTATIONS=500` runs it at full size, with 200 requests a second; by default it is 20 at
half the rate.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from relayd.admin.client import AdminClient
from relayd.admin.schema import KeyState, epoch_s
from tests.e2e.daemon import KEY, Daemon
from tests.wire import DONE, Reply, Wire, ask, body, post, until

_ROTATIONS = int(os.environ.get("RELAYD_TEST_ROTATIONS", "20"))
_REQUESTS_A_SECOND = 200 if _ROTATIONS > 20 else 100
_MAX_WAITING = 50
"""More than this many unanswered requests say that this machine is busy with other things."""
_GRACE_S = 1.0
_PAUSE_S = 0.03
_LATE_S = 0.1
"""How long after its end an expired key may still be let in."""


@dataclass(slots=True)
class _Key:
    secret: str
    ends_s: float | None = None


@dataclass(slots=True)
class _Tried:
    key: _Key
    sent_s: float
    answered_s: float
    status: int


@dataclass(slots=True)
class _Play:
    """One client that uses all keys, and one operator who changes them."""

    port: int
    admin: AdminClient
    keys: list[_Key] = field(default_factory=lambda: [_Key(KEY)])
    tried: list[_Tried] = field(default_factory=list)
    waiting: int = 0

    async def rotate(self) -> None:
        """As often as asked for; each new key is used from then on."""
        for n in range(_ROTATIONS):
            ring = await self.admin.keys()
            active = next(key for key in ring.keys if key.state is KeyState.ACTIVE)
            change = await self.admin.rotate_key(
                active.id, grace_s=_GRACE_S, generation=ring.generation, idempotency_key=f"rotation-{n}"
            )
            assert change.old is not None
            assert change.old.expires_at is not None
            assert change.secret is not None
            self.keys[-1].ends_s = epoch_s(change.old.expires_at)
            self.keys.append(_Key(change.secret))
            await asyncio.sleep(_PAUSE_S)

    async def load(self, over: asyncio.Event) -> None:
        """So many requests a second, as far as this machine can."""
        dice = random.Random(3)  # noqa: S311 - a fixed play
        async with asyncio.TaskGroup() as group:
            due_s = time.perf_counter()
            while not over.is_set():
                dead = [key for key in self.keys[:-1] if key.ends_s is not None and key.ends_s < time.time()]
                live = self.keys[len(dead) :]
                key = dice.choice(dead[-20:] if dead and dice.random() < 0.3 else [*live[-3:], live[-1]])
                if self.waiting < _MAX_WAITING:
                    group.create_task(self._try(key), name="request")
                due_s += 1 / _REQUESTS_A_SECOND
                await asyncio.sleep(max(0.0, due_s - time.perf_counter()))

    async def _try(self, key: _Key) -> None:
        self.waiting += 1
        sent_s = time.time()
        reply = await ask(self.port, key.secret, body("demo:deltas=2,interval_ms=0"))
        self.waiting -= 1
        self.tried.append(_Tried(key, sent_s, time.time(), reply.status))

    def wrongly_refused(self) -> list[_Tried]:
        """Answered before the key's end, and refused."""
        return [
            tried
            for tried in self.tried
            if (tried.key.ends_s is None or tried.answered_s < tried.key.ends_s) and tried.status != 200
        ]

    def wrongly_admitted(self) -> list[_Tried]:
        """Sent too long after the key's end, and let in."""
        return [
            tried
            for tried in self.tried
            if tried.key.ends_s is not None
            and tried.sent_s > tried.key.ends_s + _LATE_S
            and tried.status != 401
        ]


@pytest.mark.timeout(600)
async def test_rotations_under_load_refuse_no_valid_key_and_admit_no_expired_one(tmp_path: Path) -> None:
    """With a grace of 1 s, with requests under every kind of key; open streams are not disturbed."""
    settings = {"server.max_streams_per_address": 1000}
    with Daemon(tmp_path, settings=settings) as daemon:
        play = _Play(daemon.port, daemon.admin)
        streams = [await _open(daemon.port, deltas=60) for _ in range(5)]
        over = asyncio.Event()
        load = asyncio.create_task(play.load(over), name="load")
        try:
            await play.rotate()
            await until(lambda: any(tried.status == 401 for tried in play.tried))
        finally:
            over.set()
            await load
        for wire, reply in streams:
            await wire.rest(reply)
            wire.finish()
            assert (reply.error, reply.lines[-1]) == (None, DONE)
            assert len([line for line in reply.lines if line["content"] and not line["done"]]) == 60
    by_status = {status: sum(tried.status == status for tried in play.tried) for status in (200, 401)}
    assert play.wrongly_refused() == []
    assert play.wrongly_admitted() == []
    assert len(play.keys) == _ROTATIONS + 1
    assert sum(by_status.values()) == len(play.tried)
    assert min(by_status.values()) > 0


async def _open(port: int, deltas: int) -> tuple[Wire, Reply]:
    wire = await Wire.open(port)
    return wire, await wire.begin(post(KEY, body(f"demo:deltas={deltas},interval_ms=50,text=words")))
