"""A relayd whose log is always the same: the real admin API, on a clock that only a test moves.

Requests came every three seconds from the callers below by turns, and ended by a fixed pattern; the last
three are open. One rotation of the client `web` is under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relayd.admin.context import AlertOptions
from relayd.admin.schema import (
    Outcome,
    Phase,
    Progress,
    RecordedError,
    RequestRecord,
    StreamProgress,
    UsageSource,
    utc_text,
)
from relayd.alerts.conditions import Thresholds
from relayd.state.keyring import Caller
from relayd.state.records import Peer
from tests.admin.harness import AdminHarness, admin_api
from tests.tui.samples import NOON_S, a_record, an_open
from tests.wire import until

PAST_S = 1500
_EVERY_S = 3
_OPEN = 3
_DAY_S = 86_400
_ROTATED_AGO_S = 2700
_ADA = Caller(Peer(1000, 4242, "ada"))
_PATHS = ("/chat", "/v1/chat/completions", "/chat", "/chat", "/v1/responses")
_MODELS = ("gpt-4o-mini", "gpt-4o", "gpt-5-mini")
# Client and address; the last two of `web` still have its old key.
_CALLERS = (
    ("web", "198.51.100.21"),
    ("laptop", "192.0.2.14"),
    ("web", "203.0.113.9"),
    ("ci", "10.0.0.30"),
    ("support-bot", "203.0.113.77"),
    ("web", "10.0.0.4"),
    ("phone", "198.51.100.140"),
)
_STRAGGLERS = ("203.0.113.9", "10.0.0.4")
_BOUNDS: dict[str, dict[str, object]] = {
    "web": {
        "note": "the chat page",
        "usd_per_month": 5,
        "max_streams": 20,
        "models": ["gpt-4o*", "gpt-5-mini"],
    },
    "laptop": {"note": "Ada", "usd_per_month": 0.15},
    "ci": {"tokens_per_day": 15_000, "expires_at": utc_text(NOON_S + 3 * _DAY_S)},
}
QUIET = AlertOptions(thresholds=Thresholds(error_percent=100, bound_percent=10_000, disk_free_mib=0))
"""No alert comes between what a test looks at, but those that it brings about itself."""
_FAILED = RecordedError("upstream_failed", "The provider answered 503.")
_LIMITED = RecordedError("upstream_limited", "Rate limit reached for gpt-4o.")
_ENDINGS: dict[int, dict[str, Any]] = {
    4: {"status": 502, "outcome": Outcome.UPSTREAM_ERROR, "error": _FAILED, "finish_reason": None},
    9: {"status": 429, "outcome": Outcome.UPSTREAM_ERROR, "error": _LIMITED, "finish_reason": None},
    14: {"outcome": Outcome.CLIENT_CLOSED, "finish_reason": None},
}


@dataclass
class Past:
    """What is in the log, and the hands that write more into it."""

    api: AdminHarness
    now_s: float = NOON_S
    alert_options: AlertOptions = QUIET
    keys: dict[str, str] = field(default_factory=dict)
    """The id of each client's key, that of the stragglers under `old`."""
    records: list[RequestRecord] = field(default_factory=list)

    def begin(self, **fields: Any) -> RequestRecord:
        """Let a request come now; it stays open."""
        number = len(self.records)
        client, ip = _CALLERS[number % len(_CALLERS)]
        key_id = self.keys["old" if ip in _STRAGGLERS else client]
        given = {
            "id": f"req{number:06d}",
            "boot_id": "boot",
            "started_at": utc_text(self.now_s),
            "client": client,
            "key_id": key_id,
            "ip": ip,
            "path": _PATHS[number % 5],
            "model": _MODELS[number % 3],
        }
        record = an_open(0, **{**given, **fields})
        self.api.state.ring.record_use(key_id, ip)
        self.api.state.log.started(record)
        self.records.append(record)
        return record

    def end(self, record: RequestRecord, **fields: Any) -> None:
        """End a request: completed after 2 to 10 s, or as the fields say."""
        number = int(record.id[3:])
        seconds = 2 + number % 9
        ended = a_record(0, duration_ms=1000 * seconds, deltas=40 * (seconds - 1), first_token_ms=1000)
        ended.bytes_out, ended.completion_tokens = 61 * ended.deltas, ended.deltas
        for name in ("phase", "status", "outcome", "duration_ms", "deltas", "first_token_ms", "bytes_out"):
            setattr(record, name, getattr(ended, name))
        record.completion_tokens, record.finish_reason = ended.deltas, "stop"
        record.cost_usd, record.usage_source = ended.deltas * 1e-5, UsageSource.PROVIDER
        for name, value in {**_ENDINGS.get(number % 20, {}), **fields}.items():
            setattr(record, name, value)
        self.api.state.log.ended(record)

    def more(self, count: int) -> None:
        """Let requests come, one every three seconds, and end."""
        for _ in range(count):
            self.now_s += _EVERY_S
            self.end(self.begin())

    async def logged(self) -> None:
        """Wait until all is on disk, and the admin API knows it."""
        await until(lambda: not self.api.state.log.queued)
        newest = await asyncio.to_thread(self.api.state.reader.newest_seq)
        await self.api.logged(newest)

    def tell_progress(self, age_s: float) -> None:
        """Tell where the open requests are: the first token came after a second, then 40 a second."""
        deltas = round(40 * (age_s - 1))
        streams = [
            StreamProgress(
                **{name: getattr(record, name) for name in ("id", "client", "key_id", "ip", "model")},
                phase=Phase.STREAMING,
                waiting_for="upstream",
                age_ms=round(1000 * age_s),
                deltas=deltas,
                bytes_out=61 * deltas,
                stalled_ms=0,
                last_delta_ms=20,
                first_token_ms=1000,
                instance=self.api.state.instances.identity.name,
            )
            for record in self.records
            if record.outcome is None
        ]
        self.api.event_bus.publish_progress(Progress(utc_text(self.now_s), streams))

    async def write(self, past_s: float) -> None:
        """Write keys and requests, the oldest first, up to now."""
        ring, noon_s = self.api.state.ring, self.now_s
        for client, days in (("laptop", 60), ("web", 32), ("phone", 19), ("ci", 11), ("support-bot", 4)):
            self.now_s = noon_s - days * _DAY_S
            self.keys[client] = (await ring.add(client, caller=_ADA)).key.id
        self.keys["old"] = self.keys["web"]
        self.now_s = noon_s - _ROTATED_AGO_S
        self.keys["web"] = (await ring.rotate(self.keys["old"], grace_s=3600, caller=_ADA)).key.id
        for client, bounds in _BOUNDS.items():
            await ring.set_client(client, bounds, caller=_ADA)
        self.now_s = noon_s - past_s
        self.more(round(past_s / _EVERY_S) - _OPEN)
        for _ in range(_OPEN):
            self.now_s += _EVERY_S
            self.begin()
        await self.logged()


@asynccontextmanager
async def running_past(home: Path, past_s: float = PAST_S) -> AsyncIterator[Past]:
    """Serve the admin API on this past."""
    clock: list[Past] = []
    async with admin_api(
        home,
        clock=lambda: clock[0].now_s if clock else NOON_S - 200 * _DAY_S,
        alert_options=lambda: clock[0].alert_options if clock else QUIET,
    ) as api:
        clock.append(past := Past(api))
        await past.write(past_s)
        yield past
