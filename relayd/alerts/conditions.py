"""Which conditions are met: a function of facts and thresholds, without any I/O."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from relayd.alerts.alert import AlertKind, Condition
from relayd.printable import printable
from relayd.state.budget import NANO, Use
from relayd.state.reader import EndedRequests, RefusedKey
from relayd.state.records import Client, KeyInfo, KeyState, epoch_s

ERRORS_WINDOW_S = 300.0
DEAD_KEY_WINDOW_S = 900.0
"""A key that was refused and is not sent again for so long is over."""
KEY_ENDS_WITHIN_S = 120.0
KEY_USED_WITHIN_S = 600.0
_LOST_WINDOW_S = 300.0
_MAX_DEAD_KEYS = 100
_MAX_MODELS = 3
_MIB = 1 << 20

LOGGED = frozenset({AlertKind.DEAD_KEY, AlertKind.ERRORS, AlertKind.BOUND})
"""The kinds that are judged by what is in the database."""


@dataclass(frozen=True, slots=True)
class Thresholds:
    """From where on something is worth an alert; `[alerts]` of the configuration."""

    error_percent: int = 10
    error_min_requests: int = 20
    bound_percent: int = 80
    disk_free_mib: int = 256


DEFAULT_THRESHOLDS = Thresholds()


class RecentRequests:
    """What has ended in the last minutes, from one look to the next."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, EndedRequests]] = deque()
        self._lost: deque[tuple[float, int]] = deque()

    def add(self, now_s: float, ended: EndedRequests) -> None:
        """Add what ended since the last look, and forget what is too old."""
        if ended.by_code or ended.refused:
            self._looks.append((now_s, ended))
        while self._looks and self._looks[0][0] <= now_s - DEAD_KEY_WINDOW_S:
            self._looks.popleft()

    def by_code(self, now_s: float) -> Counter[str]:
        """Return how many requests ended with each code of an error."""
        counts: Counter[str] = Counter()
        for at_s, ended in self._looks:
            if at_s > now_s - ERRORS_WINDOW_S:
                counts.update(ended.by_code)
        return counts

    def refused(self) -> list[RefusedKey]:
        """Return the keys that have ended and were refused, each with all its refusals."""
        found: dict[str, RefusedKey] = {}
        for _, ended in self._looks:
            for key in ended.refused:
                before = found.get(key.key_id)
                count = key.count + (before.count if before else 0)
                found[key.key_id] = RefusedKey(key.key_id, key.client, count, key.last_ip)
        return list(found.values())

    def lost(self, now_s: float, lost: int) -> int:
        """Return how many records were lost lately, given how many were lost since the start."""
        if not self._lost or lost != self._lost[-1][1]:
            self._lost.append((now_s, lost))
        while len(self._lost) > 1 and self._lost[1][0] <= now_s - _LOST_WINDOW_S:
            self._lost.popleft()
        return lost - self._lost[0][1]


@dataclass(frozen=True, slots=True)
class CoolingRoute:
    """A route that is not asked, or not for some models."""

    name: str
    error: str
    models: Sequence[str] = ()
    """Empty: for none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """How things stand, as one instance sees them."""

    now_s: float
    keys: Sequence[KeyInfo] = ()
    clients: Sequence[Client] = ()
    uses: tuple[Mapping[str, Use], Mapping[str, Use]] = field(default_factory=lambda: ({}, {}))
    """What each client used today and this month."""
    by_code: Mapping[str, int] = field(default_factory=dict)
    refused: Sequence[RefusedKey] = ()
    routes: Sequence[CoolingRoute] = ()
    lost: int = 0
    """Records that the log lost lately."""
    log_error: str | None = None
    engine_error: str | None = None
    free_bytes: int | None = None
    """On the disk of the database; None if that is another machine's, or not known."""
    instance: str = ""
    """The name of the instance, if there may be several."""


def conditions(facts: Facts, thresholds: Thresholds) -> Iterator[Condition]:
    """Yield what is wrong."""
    yield from _dead_keys(facts)
    yield from _keys_that_end(facts)
    yield from _errors(facts, thresholds)
    yield from _bounds(facts, thresholds)
    yield from _routes(facts)
    yield from _own_trouble(facts, thresholds)


def _dead_keys(facts: Facts) -> Iterator[Condition]:
    states = {key.id: key for key in facts.keys}
    for refused in facts.refused[:_MAX_DEAD_KEYS]:
        key = states.get(refused.key_id)
        if key is not None and key.state in {KeyState.ACTIVE, KeyState.RETIRING}:
            # An operator has undone what ended it.
            continue
        what = "The revoked key" if key is not None and key.state is KeyState.REVOKED else "The ended key"
        times = "once" if refused.count == 1 else f"{refused.count} times"
        yield Condition(
            kind=AlertKind.DEAD_KEY,
            subject=refused.key_id,
            sentence=(
                f"{what} {refused.key_id} of {refused.client} is still in use: refused {times} in"
                f" {DEAD_KEY_WINDOW_S / 60:.0f} minutes, last from {refused.last_ip}. Tell who has it."
            ),
            client=refused.client,
            key_id=refused.key_id,
        )


def _keys_that_end(facts: Facts) -> Iterator[Condition]:
    made = {key.id: key.created_at for key in facts.keys}
    for key in facts.keys:
        if key.state is not KeyState.RETIRING or key.expires_at is None or key.last_used_at is None:
            continue
        left_s = epoch_s(key.expires_at) - facts.now_s
        is_near = 0 < left_s <= KEY_ENDS_WITHIN_S
        unused_s = facts.now_s - epoch_s(key.last_used_at)
        replaced_at = made.get(key.replaced_by or "", key.created_at)
        if is_near and unused_s <= KEY_USED_WITHIN_S and key.last_used_at >= replaced_at:
            yield Condition(
                kind=AlertKind.KEY_ENDS,
                subject=key.id,
                sentence=(
                    f"The old key {key.id} of {key.client} ends within two minutes and is in use, last from"
                    f" {key.last_used_ip}. Give it more time: relayd keys extend {key.id} 1h"
                ),
                client=key.client,
                key_id=key.id,
            )


def _errors(facts: Facts, thresholds: Thresholds) -> Iterator[Condition]:
    counts = {code: count for code, count in facts.by_code.items() if code}
    requests, errors = sum(facts.by_code.values()), sum(counts.values())
    if requests < thresholds.error_min_requests or errors * 100 <= requests * thresholds.error_percent:
        return
    most = max(counts, key=lambda code: counts[code])
    yield Condition(
        kind=AlertKind.ERRORS,
        subject="",
        sentence=(
            f"{errors} of {requests} requests failed in {ERRORS_WINDOW_S / 60:.0f} minutes"
            f" ({100 * errors // requests} %), {counts[most]} of them with {most}."
        ),
    )


def _bounds(facts: Facts, thresholds: Thresholds) -> Iterator[Condition]:
    today, month = facts.uses
    for client in facts.clients:
        if client.removed_at is not None:
            continue
        day, whole = today.get(client.name, Use()), month.get(client.name, Use())
        for name, label, used, bound in (
            ("tokens_per_day", "tokens of today", day.tokens, client.tokens_per_day),
            ("usd_per_day", "US$ of today", day.nano_usd / NANO, client.usd_per_day),
            ("tokens_per_month", "tokens of this month", whole.tokens, client.tokens_per_month),
            ("usd_per_month", "US$ of this month", whole.nano_usd / NANO, client.usd_per_month),
        ):
            if bound is None or used * 100 < bound * thresholds.bound_percent:
                continue
            amounts = f"{used:.2f} of {bound:.2f}" if "US$" in label else f"{used:,} of {bound:,}"
            yield Condition(
                kind=AlertKind.BOUND,
                subject=f"{client.name}:{name}",
                sentence=(
                    f"{client.name} has used {100 * used / bound:.0f} % of its {label}: {amounts}."
                    " At 100 % it is refused."
                ),
                client=client.name,
            )


def _routes(facts: Facts) -> Iterator[Condition]:
    for route in facts.routes:
        shown = ", ".join(map(printable, route.models[:_MAX_MODELS]))
        more = f" and {len(route.models) - _MAX_MODELS} more" if len(route.models) > _MAX_MODELS else ""
        models = f" for {shown}{more}" if shown else ""
        yield Condition(
            kind=AlertKind.ROUTE,
            subject=route.name,
            sentence=f"The route {route.name} cools down{models}: {printable(route.error)}",
            route=route.name,
            instance=facts.instance,
        )


def _own_trouble(facts: Facts, thresholds: Thresholds) -> Iterator[Condition]:
    if facts.lost or facts.log_error:
        lost = (
            f"{facts.lost} {'record' if facts.lost == 1 else 'records'} lost lately. " if facts.lost else ""
        )
        yield Condition(
            kind=AlertKind.LOG,
            subject="",
            sentence=f"The request log: {lost}{facts.log_error or ''}".rstrip(),
            instance=facts.instance,
        )
    if facts.free_bytes is not None and facts.free_bytes < thresholds.disk_free_mib * _MIB:
        yield Condition(
            kind=AlertKind.DISK,
            subject="",
            sentence=(
                f"Only {facts.free_bytes // _MIB:,} MiB are free on the disk of the database. Free some"
                " space: when it is full, no key can be changed and the log loses records."
            ),
            instance=facts.instance,
        )
    if facts.engine_error is not None:
        yield Condition(
            kind=AlertKind.ENGINE,
            subject="",
            sentence=f"The database: {facts.engine_error}",
            instance=facts.instance,
        )
