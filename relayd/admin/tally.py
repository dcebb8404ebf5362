"""Figures of the running daemon: totals for Prometheus, and the last five minutes for people."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field

from relayd.admin.schema import Rates
from relayd.relay.errors import ErrorCode
from relayd.state.events import Audited, LogEvent
from relayd.state.records import Outcome, RequestRecord

FIRST_TOKEN_BOUNDS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
DURATION_BOUNDS_S = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
KEY_CHANGES = ("fill", "add", "rotate", "extend", "undo", "revoke")

_WINDOW_S = 300
_MINUTE_S = 60
_DELTAS_OVER_S = 5
_SAMPLES_A_SECOND = 32


@dataclass(slots=True)
class Histogram:
    """Counts of durations, by upper bound in seconds; the last count is of those above all."""

    bounds_s: tuple[float, ...]
    counts: list[int] = field(init=False)
    sum_s: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds_s) + 1)

    def add(self, duration_ms: int) -> None:
        """Count one."""
        self.counts[bisect_left(self.bounds_s, duration_ms / 1000)] += 1
        self.sum_s += duration_ms / 1000

    def cumulative(self) -> list[tuple[str, float]]:
        """Pairs of upper bound and how many are not above it, as Prometheus wants them."""
        pairs, total = [], 0
        for bound, count in zip((*map(str, self.bounds_s), "+Inf"), self.counts, strict=True):
            total += count
            pairs.append((bound, float(total)))
        return pairs


@dataclass(slots=True)
class _Second:
    requests: int = 0
    errors: int = 0
    began_s: float = 0.0
    """Monotonic."""
    deltas_before: int = 0
    """Relayed since the start of the daemon when this second began."""
    first_token_ms: list[int] = field(default_factory=list)
    first_tokens: int = 0


class Tally:
    """Counts on the event loop; all labels come from relayd, none from a client.

    Args:
        now_s: the monotonic time of the start.
    """

    def __init__(self, now_s: float) -> None:
        self.requests = dict.fromkeys(Outcome, 0)
        self.errors = dict.fromkeys(ErrorCode, 0)
        self.key_changes = dict.fromkeys(KEY_CHANGES, 0)
        self.dropped_readers = 0
        self.reply_bytes = 0
        self.first_token = Histogram(FIRST_TOKEN_BOUNDS_S)
        self.duration = Histogram(DURATION_BOUNDS_S)
        self._seconds: deque[_Second] = deque([_Second(began_s=now_s)], maxlen=_WINDOW_S)

    def ended(self, record: RequestRecord) -> None:
        """A request ended; its record is complete. For the ledger."""
        if record.outcome is not None:
            self.requests[record.outcome] += 1
        if record.error is not None and record.error.code in self.errors:
            self.errors[ErrorCode(record.error.code)] += 1
        self.reply_bytes += record.bytes_out
        second = self._seconds[-1]
        second.requests += 1
        if record.error is not None or record.outcome is Outcome.CRASHED:
            second.errors += 1
        if record.duration_ms is not None:
            self.duration.add(record.duration_ms)
        if record.first_token_ms is not None:
            self.first_token.add(record.first_token_ms)
            _sample(second, record.first_token_ms)

    def logged(self, event: LogEvent) -> None:
        """Something is in the log; only changes of keys are counted here."""
        if isinstance(event, Audited) and event.entry.result == "done":
            action = event.entry.action
            if action in self.key_changes:
                self.key_changes[action] += 1

    def tick(self, now_s: float, deltas_total: int) -> None:
        """A second begins; `deltas_total` were relayed since the start."""
        self._seconds.append(_Second(began_s=now_s, deltas_before=deltas_total))

    def rates(self, now_s: float, deltas_total: int) -> Rates:
        """The last minutes, up to now (monotonic seconds, as in `tick`)."""
        seconds = list(self._seconds)
        since = seconds[-min(_DELTAS_OVER_S, len(seconds))]
        first_tokens = sorted(ms for second in seconds for ms in second.first_token_ms)
        return Rates(
            requests_1m=sum(second.requests for second in seconds[-_MINUTE_S:]),
            deltas_per_s=round((deltas_total - since.deltas_before) / max(now_s - since.began_s, 1.0), 1),
            errors_5m=sum(second.errors for second in seconds),
            first_token_p50_ms=_percentile(first_tokens, 50),
            first_token_p95_ms=_percentile(first_tokens, 95),
        )


def _sample(second: _Second, first_token_ms: int) -> None:
    """Keep a fair sample of the second's values (Vitter's algorithm R)."""
    second.first_tokens += 1
    if len(second.first_token_ms) < _SAMPLES_A_SECOND:
        second.first_token_ms.append(first_token_ms)
        return
    place = random.randrange(second.first_tokens)  # noqa: S311 - chooses samples, guards nothing
    if place < _SAMPLES_A_SECOND:
        second.first_token_ms[place] = first_token_ms


def _percentile(ordered: list[int], percent: int) -> int | None:
    """The nearest rank."""
    if not ordered:
        return None
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]
