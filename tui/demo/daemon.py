"""The simulated daemon: time moves it, operators change it, every event goes into its log."""

from __future__ import annotations

import heapq
import math
import random
from collections import deque
from collections.abc import Iterable

import msgspec

from relayd.admin.schema import (
    Audited,
    AuditEntry,
    Ended,
    Intake,
    LogEvent,
    Outcome,
    Progress,
    RequestRecord,
    Started,
    epoch_s,
    utc_text,
)
from tui.demo.ring import Deed, DemoRing
from tui.demo.traffic import CALLERS, PAUSED, STRANGER, UNAUTHORIZED, Caller, Fate, Plan, Traffic

OLD_HISTORY_S = 7 * 86_400
# The further back, the thinner: enough for every window of the statistics, made in a moment.
_THINNED = ((240, 1), (3600, 4), (12 * 3600, 30), (24 * 3600, 45), (math.inf, 500))
_BAD_SPELLS_MIN = ((18, 22), (170, 200))
_STRAGGLER_IPS = ("203.0.113.9", "10.0.0.4")
_CANCELLED = Fate(Outcome.CANCELLED, 200, "cancelled", "The operator cancelled this request.")
_CUT = Fate(Outcome.CANCELLED, 200, "key_revoked", "The key was revoked.")
_CRASHED = Fate(Outcome.CRASHED, 200, "internal", "The daemon died while this request ran.")
_MAX_REFUSALS = 6


class DemoDaemon:
    """What a daemon holds. `advance` moves it to a time; nothing else makes it move."""

    def __init__(self, seed: int, now_s: float, *, history_s: float = OLD_HISTORY_S) -> None:
        self._traffic = Traffic(seed, f"demo-boot-{seed}-1")
        rng = random.Random(seed + 1)  # noqa: S311 - made-up keys, never let in anywhere
        self._random = rng
        self.ring = DemoRing(rng, now_s)
        self.now_s = self.started_s = now_s
        self.boots = 1
        self.intake = Intake.OPEN
        self.seq = 0
        self.records: list[RequestRecord] = []
        self._by_id: dict[str, int] = {}
        self.log: list[LogEvent] = []
        self.audit: list[AuditEntry] = []
        self.open: dict[str, Plan] = {}
        self._ends: list[tuple[float, str]] = []
        self._holds: dict[tuple[str, str], str] = {}
        self._moves: list[tuple[float, tuple[str, str], str]] = []
        self._refusals: dict[tuple[str, str], int] = {}
        self._hand_out_keys()
        self._make_history(history_s)
        self._next_arrival_s = now_s + 0.2

    @property
    def boot_id(self) -> str:
        """Of this life of the daemon."""
        return self._traffic.boot_id

    def _hand_out_keys(self) -> None:
        for caller in CALLERS:
            keys = [key for key in self.ring.keys.values() if key.client == caller.client]
            old = caller.ip in _STRAGGLER_IPS and len(keys) > 1
            self._holds[caller.client, caller.ip] = keys[-2 if old else -1].id
        self._made_s = {key.id: epoch_s(key.created_at) for key in self.ring.keys.values()}
        self._replaced = [(key.id, key.replaced_by) for key in self.ring.keys.values()]

    def _make_history(self, history_s: float) -> None:
        at_s = self.now_s - history_s
        deeds = deque(enumerate(self.ring.deeds, self.ring.generation - len(self.ring.deeds) + 1))
        while at_s < self.now_s:
            while deeds and deeds[0][1].at_s <= at_s:
                self._remember(*deeds.popleft())
            self._past(at_s)
            ago_s = self.now_s - at_s
            thinned = next(factor for reach_s, factor in _THINNED if ago_s <= reach_s)
            day = 1.25 + math.sin(at_s / 86_400 * math.tau)
            at_s += self._traffic.gap_s(at_s) * thinned / (day if thinned > 1 else 1)
        self.log.clear()

    def _past(self, at_s: float) -> None:
        minutes_ago = (self.now_s - at_s) / 60
        caller = self._traffic.caller()
        fate = self._traffic.fate(incident=any(low < minutes_ago < high for low, high in _BAD_SPELLS_MIN))
        key_id: str | None = self._key_then(caller, at_s)
        if fate is UNAUTHORIZED or key_id is None:
            caller, key_id = STRANGER, None
        else:
            self.ring.used(key_id, caller.ip, at_s)
        plan = self._open(at_s, caller, key_id, fate)
        if plan.end_s < self.now_s:
            self._end(plan, plan.end_s, plan.fate)

    def _key_then(self, caller: Caller, at_s: float) -> str:
        """The key that this caller had at a time in the past."""
        key_id = self._holds[caller.client, caller.ip]
        if self._made_s[key_id] <= at_s:
            return key_id
        return next(
            (old for old, new in self._replaced if new == key_id and self._made_s[old] <= at_s), key_id
        )

    # Time.

    def advance(self, now_s: float) -> None:
        """Let everything happen that happens up to this time."""
        while True:
            end_s = self._ends[0][0] if self._ends else math.inf
            at_s = min(end_s, self._next_arrival_s)
            if at_s > now_s:
                break
            self._settle(at_s)
            if end_s <= self._next_arrival_s:
                _, request_id = heapq.heappop(self._ends)
                plan = self.open.get(request_id)
                if plan is not None:
                    self._end(plan, at_s, plan.fate)
            else:
                self._begin(at_s, incident=at_s % 240 > 215)  # noqa: PLR2004 - a bad spell every four minutes
                self._next_arrival_s = at_s + self._traffic.gap_s(at_s)
        self._settle(now_s)

    def _settle(self, now_s: float) -> None:
        self.now_s = max(self.now_s, now_s)
        self.ring.expire(now_s)
        while self._moves and self._moves[0][0] <= now_s:
            _, who, key_id = heapq.heappop(self._moves)
            if self.ring.works(key_id):
                self._holds[who] = key_id

    def _begin(self, at_s: float, *, incident: bool) -> Plan:
        caller = self._traffic.caller()
        fate = self._traffic.fate(incident=incident)
        key_id: str | None = None
        if fate is UNAUTHORIZED:
            caller = STRANGER
        else:
            key_id, fate = self._key(caller, fate, at_s)
        if self.intake is not Intake.OPEN:
            fate = PAUSED
        return self._open(at_s, caller, key_id, fate)

    def _open(self, at_s: float, caller: Caller, key_id: str | None, fate: Fate) -> Plan:
        self.seq += 1
        plan = self._traffic.draw(self.seq, at_s, caller, key_id, fate)
        self._by_id[plan.id] = len(self.records)
        record = plan.record(at_s)
        self.records.append(record)
        self.log.append(Started(self.seq, self.boot_id, msgspec.structs.replace(record)))
        self.open[plan.id] = plan
        heapq.heappush(self._ends, (plan.end_s, plan.id))
        return plan

    def _key(self, caller: Caller, fate: Fate, at_s: float) -> tuple[str, Fate]:
        who = (caller.client, caller.ip)
        key_id = self._holds[who]
        if self.ring.works(key_id):
            self.ring.used(key_id, caller.ip, at_s)
            return key_id, fate
        self._refusals[who] = self._refusals.get(who, 0) + 1
        newest = self.ring.current(caller.client)
        if self._refusals[who] >= _MAX_REFUSALS and newest is not None:
            self._refusals[who] = 0
            self._holds[who] = newest.id
        return key_id, UNAUTHORIZED

    def _end(self, plan: Plan, at_s: float, fate: Fate) -> None:
        self.open.pop(plan.id, None)
        record = plan.record(at_s, fate)
        self.records[self._by_id[plan.id]] = record
        self.seq += 1
        self.log.append(Ended(self.seq, self.boot_id, msgspec.structs.replace(record)))

    def progress(self) -> Progress:
        """Where every open stream is."""
        streams = [plan.progress(self.now_s) for plan in self.open.values()]
        return Progress(utc_text(self.now_s), streams)

    def find(self, request_id: str) -> RequestRecord | None:
        """One record."""
        index = self._by_id.get(request_id)
        return None if index is None else self.records[index]

    # What operators do.

    def note(
        self,
        action: str,
        *,
        client: str | None = None,
        key_ids: Iterable[str] = (),
        detail: str | None = None,
    ) -> None:
        """An audit row."""
        self._remember(self.ring.generation, Deed(self.now_s, action, client, tuple(key_ids), detail))

    def _remember(self, generation: int, deed: Deed) -> None:
        self.seq += 1
        entry = AuditEntry(
            seq=self.seq,
            boot_id=self.boot_id,
            at=utc_text(deed.at_s),
            action=deed.action,
            result="done",
            uid=1000,
            pid=4242,
            login="ada",
            client=deed.client,
            key_ids=deed.key_ids,
            generation=generation,
            detail=deed.detail,
        )
        self.audit.append(entry)
        self.log.append(Audited(self.seq, self.boot_id, entry))

    def hand_over(self, client: str, new_key_id: str) -> None:
        """After a rotation: all callers but the last one take the new key, one after the other."""
        callers = [caller for caller in CALLERS if caller.client == client]
        for caller in callers[: max(1, len(callers) - 1)]:
            at_s = self.now_s + self._traffic.uniform(4, 45)
            heapq.heappush(self._moves, (at_s, (client, caller.ip), new_key_id))

    def take_back(self, client: str, key_id: str) -> None:
        """After an undo: everybody has the old key again."""
        for who in self._holds:
            if who[0] == client:
                self._holds[who] = key_id

    def cut(self, key_id: str) -> int:
        """End the open streams of a key."""
        plans = [plan for plan in self.open.values() if plan.key_id == key_id]
        for plan in plans:
            self._end(plan, self.now_s, _CUT)
        return len(plans)

    def cancel(self, request_id: str) -> bool:
        """End one open stream."""
        plan = self.open.get(request_id)
        if plan is not None:
            self._end(plan, self.now_s, _CANCELLED)
        return plan is not None

    def restart(self) -> None:
        """Die and come back: what was open is lost."""
        plans = list(self.open.values())
        self.boots += 1
        self.started_s = self.now_s
        self._traffic.boot_id = self.boot_id[:-1] + str(self.boots)
        for plan in plans:
            self._end(plan, self.now_s, _CRASHED)
        self.intake = Intake.OPEN
