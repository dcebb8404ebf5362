"""`Link` to the simulated daemon."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Callable

from relayd.admin.client import AdminClientError, NoDaemon, Refused
from relayd.admin.schema import (
    AuditPage,
    DiskUse,
    Event,
    Hello,
    Intake,
    KeyChange,
    KeyState,
    LogHealth,
    Rates,
    RequestPage,
    RequestRecord,
    Ring,
    RingSummary,
    Status,
    StreamCounts,
    epoch_s,
    parse_filter,
    utc_text,
)
from tui.demo.daemon import OLD_HISTORY_S, DemoDaemon
from tui.model.stats import is_error

VERSION = "demo"
_TICK_S = 0.1


class DemoLink:
    """Plays the daemon for one app. With a frozen `clock`, only `advance` moves it."""

    def __init__(
        self,
        *,
        seed: int | None = None,
        clock: Callable[[], float] = time.time,
        moves: bool = True,
        history_s: float = OLD_HISTORY_S,
    ) -> None:
        self._clock = clock
        self._moves = moves
        self._offset_s = 0.0
        seed = random.randrange(1 << 16) if seed is None else seed  # noqa: S311 - picks a play, guards nothing
        self.daemon = DemoDaemon(seed, clock(), history_s=history_s)
        self.trouble: AdminClientError | None = None
        """Set by tests: every question fails with it, and open connections end."""
        self._news = asyncio.Condition()
        self._wakes = 0
        self._answers: dict[str, KeyChange] = {}

    def now_s(self) -> float:
        """The simulated daemon's time."""
        return self._clock() + self._offset_s

    def jump(self, seconds: float) -> None:
        """Move a frozen simulation on at once; who follows it learns of it at the next `wake`."""
        self._offset_s += seconds
        self.daemon.advance(self.now_s())

    async def advance(self, seconds: float) -> None:
        """Move a frozen simulation on second by second, and wake who follows it each time."""
        for _ in range(max(1, round(seconds))):
            self.jump(seconds / max(1, round(seconds)))
            await self.wake()

    async def wake(self) -> None:
        """Let followers look again."""
        async with self._news:
            self._wakes += 1
            self._news.notify_all()
        await asyncio.sleep(0)

    async def fail(self, trouble: AdminClientError | None) -> None:
        """Break every connection, or mend it with None."""
        self.trouble = trouble
        await self.wake()

    def _ready(self) -> DemoDaemon:
        if self.trouble is not None:
            raise self.trouble
        self.daemon.advance(self.now_s())
        return self.daemon

    async def status(self) -> Status:
        """The daemon at a glance."""
        daemon = self._ready()
        phases = [plan.progress(daemon.now_s).phase.value for plan in daemon.open.values()]
        keys = daemon.ring.ring().keys
        retiring = sorted(key.expires_at or "" for key in keys if key.state is KeyState.RETIRING)
        return Status(
            version=VERSION,
            boot_id=daemon.boot_id,
            pid=4242,
            started_at=utc_text(daemon.started_s),
            uptime_s=int(daemon.now_s - daemon.started_s),
            intake=daemon.intake,
            address="http://127.0.0.1:3666",
            upstream="http://127.0.0.1:3667/v1",
            demo=True,
            state_dir="(simulated)",
            seq=daemon.seq,
            streams=StreamCounts(**{phase: phases.count(phase) for phase in set(phases)}),
            max_streams=1000,
            drain_timeout_s=30.0,
            rates=self._rates(daemon),
            log=LogHealth(queued=0, lost=0, error=None),
            disk=DiskUse(18_350_080, 41_231_686_041),
            ring=RingSummary(
                generation=daemon.ring.generation,
                active=sum(key.state is KeyState.ACTIVE for key in keys),
                retiring=len(retiring),
                next_expiry_at=retiring[0] if retiring else None,
            ),
        )

    def _rates(self, daemon: DemoDaemon) -> Rates:
        recent = []
        for record in reversed(daemon.records):
            if epoch_s(record.started_at) < daemon.now_s - 300:
                break
            recent.append(record)
        firsts = sorted(r.first_token_ms for r in recent if r.first_token_ms is not None)
        return Rates(
            requests_1m=sum(epoch_s(record.started_at) >= daemon.now_s - 60 for record in recent),
            deltas_per_s=sum(plan.deltas_per_s for plan in daemon.open.values()),
            errors_5m=sum(map(is_error, recent)),
            first_token_p50_ms=firsts[len(firsts) // 2] if firsts else None,
            first_token_p95_ms=firsts[int(len(firsts) * 0.95)] if firsts else None,
        )

    async def requests(
        self, *, where: str = "", after: int | None = None, before: int | None = None, limit: int = 100
    ) -> RequestPage:
        """Records, newest first."""
        daemon = self._ready()
        passes = parse_filter(where).matches
        found: list[RequestRecord] = []
        for record in reversed(daemon.records):
            if before is not None and record.seq >= before:
                continue
            if after is not None and record.seq <= after:
                break
            if passes(record):
                found.append(record)
                if len(found) == limit:
                    return RequestPage(found, record.seq)
        return RequestPage(found, None)

    async def request(self, request_id: str) -> RequestRecord:
        """One record."""
        record = self._ready().find(request_id)
        if record is None:
            raise Refused(404, "not_found", f"There is no request {request_id}.")
        return record

    async def events(self, after: int | None = None) -> AsyncGenerator[Event, None]:
        """Hello, replay, live."""
        daemon = self._ready()
        sent = daemon.seq if after is None else after
        boot_id = daemon.boot_id
        yield Hello(boot_id, VERSION, daemon.seq)
        progress_s = 0.0
        idle = True
        while self.trouble is None and daemon.boot_id == boot_id:
            wakes = self._wakes
            fresh = [event for event in daemon.log[-4000:] if event.seq > sent]
            for event in fresh:
                sent = event.seq
                yield event
            if daemon.now_s - progress_s >= 1 and (daemon.open or not idle):
                progress_s = daemon.now_s
                idle = not daemon.open
                yield daemon.progress()
            await self._wait(wakes)
        if self.trouble is not None:
            raise NoDaemon(str(self.trouble))

    async def _wait(self, wakes: int) -> None:
        if self._moves:
            await asyncio.sleep(_TICK_S)
            self.daemon.advance(self.now_s())
            return
        async with self._news:
            await self._news.wait_for(lambda: self._wakes != wakes)

    async def audit(self, *, before: int | None = None, limit: int = 100) -> AuditPage:
        """What operators did, newest first."""
        entries = [e for e in reversed(self._ready().audit) if before is None or e.seq < before]
        return AuditPage(entries[:limit], entries[limit - 1].seq if len(entries) > limit else None)

    async def keys(self) -> Ring:
        """The ring."""
        return self._ready().ring.ring()

    def _done(self, idempotency_key: str, change: KeyChange) -> KeyChange:
        self._answers[idempotency_key] = KeyChange(
            generation=change.generation, key=change.key, old=change.old, already_done=True, cut=change.cut
        )
        return change

    async def add_key(self, client: str, *, generation: int, idempotency_key: str) -> KeyChange:
        """A first key for a new client."""
        daemon = self._ready()
        if idempotency_key in self._answers:
            return self._answers[idempotency_key]
        key, secret = daemon.ring.add(client, generation, daemon.now_s)
        daemon.note("add", client=client, key_ids=[key.id])
        change = KeyChange(generation=daemon.ring.generation, key=key, secret=secret)
        return self._done(idempotency_key, change)

    async def rotate_key(
        self, key_id: str, *, grace_s: float | None, generation: int, idempotency_key: str
    ) -> KeyChange:
        """A new key; the old one retires."""
        daemon = self._ready()
        if idempotency_key in self._answers:
            return self._answers[idempotency_key]
        grace_s = 3600.0 if grace_s is None else grace_s
        new, old, secret = daemon.ring.rotate(key_id, grace_s, generation, daemon.now_s)
        daemon.hand_over(new.client, new.id)
        daemon.note("rotate", client=new.client, key_ids=[old.id, new.id], detail=f"grace {grace_s:.0f} s")
        change = KeyChange(generation=daemon.ring.generation, key=new, old=old, secret=secret)
        return self._done(idempotency_key, change)

    async def extend_key(
        self, key_id: str, *, by_s: float, generation: int, idempotency_key: str
    ) -> KeyChange:
        """A later end."""
        daemon = self._ready()
        if idempotency_key in self._answers:
            return self._answers[idempotency_key]
        key = daemon.ring.extend(key_id, by_s, generation)
        daemon.note("extend", client=key.client, key_ids=[key.id], detail=f"until {key.expires_at}")
        return self._done(idempotency_key, KeyChange(generation=daemon.ring.generation, key=key))

    async def undo_key(self, key_id: str, *, generation: int, idempotency_key: str) -> KeyChange:
        """The old key again."""
        daemon = self._ready()
        if idempotency_key in self._answers:
            return self._answers[idempotency_key]
        key, revoked = daemon.ring.undo(key_id, generation, daemon.now_s)
        daemon.take_back(key.client, key.id)
        daemon.note("undo", client=key.client, key_ids=[key.id, revoked.id])
        change = KeyChange(generation=daemon.ring.generation, key=key, old=revoked)
        return self._done(idempotency_key, change)

    async def revoke_key(self, key_id: str, *, cut: bool, generation: int, idempotency_key: str) -> KeyChange:
        """The end of a key."""
        daemon = self._ready()
        if idempotency_key in self._answers:
            return self._answers[idempotency_key]
        key = daemon.ring.revoke(key_id, generation, daemon.now_s)
        count = daemon.cut(key_id) if cut else 0
        daemon.note("revoke", client=key.client, key_ids=[key.id], detail=f"{count} streams cut")
        await self.wake()
        return self._done(idempotency_key, KeyChange(generation=daemon.ring.generation, key=key, cut=count))

    async def cancel(self, request_id: str) -> None:
        """End one stream."""
        daemon = self._ready()
        if not daemon.cancel(request_id):
            raise Refused(404, "not_open", "This request has ended already.")
        daemon.note("cancel", detail=request_id)
        await self.wake()

    async def _set_intake(self, intake: Intake, action: str) -> Status:
        daemon = self._ready()
        daemon.intake = intake
        daemon.note(action)
        await self.wake()
        return await self.status()

    async def pause(self) -> Status:
        """No new work."""
        return await self._set_intake(Intake.PAUSED, "pause")

    async def resume(self) -> Status:
        """New work again."""
        return await self._set_intake(Intake.OPEN, "resume")

    async def drain(self) -> Status:
        """Finish and stop; the simulation stays, draining."""
        return await self._set_intake(Intake.DRAINING, "drain")

    async def close(self) -> None:
        """Nothing is held."""
