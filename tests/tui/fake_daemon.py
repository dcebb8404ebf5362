"""A daemon whose time stands still until a test moves it: what it holds is always the same.

It stands in for `AdminClient` where a screen is compared as a whole. Requests come every three seconds from
the callers below by turns, and end by a fixed pattern; one rotation of the client `web` is under way.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from pathlib import Path

import msgspec

from relayd.admin.client import AdminClient, AdminClientError, NoDaemon
from relayd.admin.schema import (
    AuditEntry,
    AuditPage,
    DiskUse,
    Ended,
    Event,
    Hello,
    Intake,
    KeyInfo,
    KeyState,
    LogEvent,
    LogHealth,
    Outcome,
    Phase,
    Progress,
    Rates,
    RecordedError,
    RequestPage,
    RequestRecord,
    Ring,
    RingSummary,
    Started,
    Status,
    StreamCounts,
    StreamProgress,
    parse_filter,
    utc_text,
)
from tests.tui.samples import NOON_S, a_key, an_open

ARRIVAL_S = 3
MODELS = ("gpt-4o-mini", "gpt-4o", "gpt-5-mini")
# Client and address; the last two of `web` still have its old key.
CALLERS = (
    ("web", "198.51.100.21"),
    ("laptop", "192.0.2.14"),
    ("web", "203.0.113.9"),
    ("ci", "10.0.0.30"),
    ("support-bot", "203.0.113.77"),
    ("web", "10.0.0.4"),
    ("phone", "198.51.100.140"),
)
_FAILED = RecordedError("upstream_failed", "The provider answered 503.")
_LIMITED = RecordedError("upstream_limited", "Rate limit reached for gpt-4o.")
_ENDINGS = {
    4: {"status": 502, "outcome": Outcome.UPSTREAM_ERROR, "error": _FAILED},
    9: {"status": 429, "outcome": Outcome.UPSTREAM_ERROR, "error": _LIMITED},
    14: {"status": 200, "outcome": Outcome.CLIENT_CLOSED},
}


@dataclass
class OpenRequest:
    """A request that runs."""

    record: RequestRecord
    start_s: float
    end_s: float

    def progress(self, now_s: float) -> StreamProgress:
        """Where it is: the first token comes after a second, then 40 deltas a second."""
        age_ms, record = round((now_s - self.start_s) * 1000), self.record
        deltas = max(0, (age_ms - 1000) // 25)
        return StreamProgress(
            id=record.id,
            client=record.client,
            key_id=record.key_id,
            ip=record.ip,
            model=record.model,
            phase=Phase.STREAMING if deltas else Phase.WAITING,
            waiting_for="upstream",
            age_ms=age_ms,
            deltas=deltas,
            bytes_out=deltas * 61,
            stalled_ms=0,
            last_delta_ms=20 if deltas else None,
        )


def _ring() -> list[KeyInfo]:
    def days_ago(days: float) -> str:
        return utc_text(NOON_S - days * 86_400)

    old = a_key("oldWeb01", created_at=days_ago(32), state=KeyState.RETIRING)
    return [
        msgspec.structs.replace(old, expires_at=utc_text(NOON_S + 870), replaced_by="newWeb02"),
        a_key("newWeb02", created_at=utc_text(NOON_S - 2700)),
        a_key("laptop01", client="laptop", created_at=days_ago(60)),
        a_key("ciCiCi01", client="ci", created_at=days_ago(11)),
        a_key("botBot01", client="support-bot", created_at=days_ago(4)),
        a_key("phone001", client="phone", created_at=days_ago(19)),
    ]


_ROTATION = AuditEntry(
    seq=1,
    boot_id="boot-1",
    at=utc_text(NOON_S - 2700),
    action="rotate",
    result="done",
    uid=1000,
    pid=4242,
    login="ada",
    client="web",
    key_ids=("oldWeb01", "newWeb02"),
    generation=12,
    detail="grace 3600 s",
)


class FakeDaemon(AdminClient):
    """Answers what the app asks.

    Args:
        history_s: how far back its log goes.
    """

    def __init__(self, history_s: float) -> None:
        super().__init__(Path("/nowhere"))
        self.problem: AdminClientError | None = None
        """Every question fails with it, and open connections end."""
        self.seq = 0
        self.records: list[RequestRecord] = []
        self.open: dict[str, OpenRequest] = {}
        self.ring = {key.id: key for key in _ring()}
        self.holders = {
            (client, ip): next(key.id for key in reversed(_ring()) if key.client == client)
            for client, ip in CALLERS
        } | {("web", "203.0.113.9"): "oldWeb01", ("web", "10.0.0.4"): "oldWeb01"}
        self._log: list[LogEvent] = []
        self._news = asyncio.Condition()
        self._wakes = 0
        self._next_arrival_s = NOON_S - history_s
        self.advance_to(NOON_S)
        self._log.clear()

    def now_s(self) -> float:
        """Its time."""
        return self.time_s

    # Time.

    def advance_to(self, now_s: float) -> None:
        """Let everything happen that happens up to this time."""
        while True:
            first_end = min(self.open.values(), key=lambda request: request.end_s, default=None)
            if first_end is not None and first_end.end_s <= min(self._next_arrival_s, now_s):
                self.time_s = first_end.end_s
                self.end(first_end, _ENDINGS.get(int(first_end.record.id[3:]) % 20, {}))
            elif self._next_arrival_s <= now_s:
                self.time_s = self._next_arrival_s
                self._next_arrival_s += ARRIVAL_S
                self._start()
            else:
                self.time_s = now_s
                return

    def _start(self) -> None:
        number = len(self.records)
        client, ip = CALLERS[number % len(CALLERS)]
        key_id = self.holders[client, ip]
        self.seq += 1
        record = an_open(
            self.seq,
            id=f"req{number:06d}",
            boot_id="boot-1",
            started_at=utc_text(self.time_s),
            client=client,
            key_id=key_id,
            ip=ip,
            model=MODELS[number % 3],
        )
        self.records.append(record)
        self._log.append(Started(self.seq, "boot-1", msgspec.structs.replace(record)))
        self.open[record.id] = OpenRequest(record, self.time_s, self.time_s + 2 + number % 9)
        self.ring[key_id] = msgspec.structs.replace(
            self.ring[key_id], last_used_at=record.started_at, last_used_ip=ip
        )

    def end(self, request: OpenRequest, ending: dict[str, object]) -> None:
        """End a request: completed, or as `ending` has it."""
        started = self.open.pop(request.record.id).record
        progress = request.progress(self.time_s)
        ended = msgspec.structs.replace(
            started,
            **{
                "phase": Phase.DONE,
                "status": 200,
                "outcome": Outcome.COMPLETED,
                "first_token_ms": 1000 if progress.deltas else None,
                "duration_ms": progress.age_ms,
                "deltas": progress.deltas,
                "bytes_out": progress.bytes_out,
                "completion_tokens": progress.deltas,
                **ending,
            },
        )
        self.records[self.records.index(started)] = ended
        self.seq += 1
        self._log.append(Ended(self.seq, "boot-1", msgspec.structs.replace(ended)))

    async def advance(self, seconds: float) -> None:
        """Move its time on second by second, and wake its followers each time."""
        for _ in range(max(1, round(seconds))):
            self.advance_to(self.time_s + seconds / max(1, round(seconds)))
            await self.wake()

    async def wake(self) -> None:
        """Let followers look again."""
        async with self._news:
            self._wakes += 1
            self._news.notify_all()
        await asyncio.sleep(0)

    async def fail(self, problem: AdminClientError) -> None:
        """Break every connection."""
        self.problem = problem
        await self.wake()

    # What the app asks.

    def _ready(self) -> None:
        if self.problem is not None:
            raise self.problem

    async def status(self) -> Status:
        """The daemon at a glance."""
        self._ready()
        return Status(
            version="1.0",
            boot_id="boot-1",
            pid=4242,
            started_at=utc_text(NOON_S),
            uptime_s=60,
            intake=Intake.OPEN,
            address="http://127.0.0.1:3666",
            upstream="http://127.0.0.1:3667/v1",
            demo=True,
            state_dir="/nowhere",
            seq=self.seq,
            streams=StreamCounts(),
            max_streams=1000,
            drain_timeout_s=30.0,
            rates=Rates(
                requests_1m=20,
                deltas_per_s=80.0,
                errors_5m=7,
                first_token_p50_ms=620,
                first_token_p95_ms=1800,
            ),
            log=LogHealth(queued=0, lost=0, error=None),
            disk=DiskUse(18_350_080, 41_231_686_041),
            ring=RingSummary(generation=12, active=5, retiring=1, next_expiry_at=None),
        )

    async def requests(
        self, *, where: str = "", after: int | None = None, before: int | None = None, limit: int = 100
    ) -> RequestPage:
        """Records, newest first."""
        self._ready()
        passes = parse_filter(where).matches
        low, high = after or 0, before or self.seq + 1
        found = [r for r in reversed(self.records) if low < r.seq < high and passes(r)]
        return RequestPage(found[:limit], found[limit - 1].seq if len(found) > limit else None)

    async def request(self, request_id: str) -> RequestRecord:
        """One record."""
        self._ready()
        return next(record for record in self.records if record.id == request_id)

    async def events(self, after: int | None = None) -> AsyncGenerator[Event, None]:
        """Hello, replay, live."""
        self._ready()
        sent, told_s = self.seq if after is None else after, 0.0
        yield Hello("boot-1", "1.0", self.seq)
        while self.problem is None:
            wakes = self._wakes
            for event in [event for event in self._log if event.seq > sent]:
                sent = event.seq
                yield event
            if self.time_s - told_s >= 1:
                told_s = self.time_s
                yield Progress(utc_text(told_s), [r.progress(told_s) for r in self.open.values()])
            async with self._news:
                await self._news.wait_for(lambda: self._wakes != wakes)  # noqa: B023 - waited for in this turn
        if self.problem is not None:
            raise NoDaemon(str(self.problem))

    async def audit(self, *, before: int | None = None, limit: int = 100) -> AuditPage:  # noqa: ARG002 - one page holds all
        """What operators did, newest first."""
        self._ready()
        return AuditPage([_ROTATION], None)

    async def keys(self) -> Ring:
        """The ring."""
        self._ready()
        return Ring(12, list(self.ring.values()))

    async def cancel(self, request_id: str) -> None:
        """End one stream."""
        self.end(self.open[request_id], {"outcome": Outcome.CANCELLED})
        await self.wake()
