"""Statistics over windows of time, kept as buckets: no record is read twice.

A request counts in the bucket of its start, once, when it has ended. Deltas per second are the
deltas of the requests that started in a bucket, divided by its width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from relayd.admin.schema import Outcome, RequestRecord
from tui.model.units import unix_s

MAX_NAMES = 40
OTHERS = "others"
NO_NAME = "—"
# The client chose to leave: neither a success nor a fault of relayd.
NOT_ERRORS = frozenset({Outcome.COMPLETED, Outcome.CLIENT_CLOSED})


_GROWTH = math.log(1.1)


def step_of(value_ms: float) -> int:
    """Return which step a duration is in."""
    return int(math.log(value_ms) / _GROWTH) if value_ms > 1 else 0


class Histogram:
    """Durations in milliseconds; a percentile read from it is right within five per cent."""

    __slots__ = ("_counts", "total")

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self.total = 0

    def add_step(self, step: int) -> None:
        """Count one duration by its step."""
        self._counts[step] = self._counts.get(step, 0) + 1
        self.total += 1

    def merge(self, other: Histogram) -> None:
        """Count all that the other counted."""
        for step, count in other._counts.items():
            self._counts[step] = self._counts.get(step, 0) + count
        self.total += other.total

    def percentile(self, part: float) -> float | None:
        """Return the duration that `part` (0 to 1) of all are under; None without samples."""
        if not self.total:
            return None
        wanted = part * self.total
        seen = 0
        step = 0
        for step in sorted(self._counts):
            seen += self._counts[step]
            if seen >= wanted:
                break
        return math.exp((step + 0.5) * _GROWTH)


@dataclass(frozen=True, slots=True)
class Window:
    """A span of time that the Stats screen can show, in buckets of equal width."""

    name: str
    span_s: int
    bucket_s: int

    @property
    def bucket_count(self) -> int:
        """How many buckets the window has."""
        return self.span_s // self.bucket_s


WINDOWS = (
    Window("5 min", 300, 5),
    Window("1 h", 3600, 60),
    Window("24 h", 86_400, 1200),
    Window("7 d", 604_800, 7200),
)


def is_error(record: RequestRecord) -> bool:
    """Return whether an ended request counts as an error."""
    return record.outcome is not None and record.outcome not in NOT_ERRORS


class Sample(NamedTuple):
    """What one ended request adds to every tally; computed once."""

    error: str | None
    deltas: int
    first_step: int | None
    duration_step: int | None
    model: str
    client: str


def _sample(record: RequestRecord) -> Sample:
    first_ms, duration_ms = record.first_token_ms, record.duration_ms
    return Sample(
        error_cause(record) if is_error(record) else None,
        record.deltas,
        None if first_ms is None else step_of(first_ms),
        None if duration_ms is None else step_of(duration_ms),
        record.model or NO_NAME,
        record.client or NO_NAME,
    )


@dataclass(slots=True)
class Tally:
    """Totals of some requests."""

    requests: int = 0
    errors: int = 0
    deltas: int = 0
    first: Histogram = field(default_factory=Histogram)
    duration: Histogram = field(default_factory=Histogram)

    def add(self, sample: Sample) -> None:
        """Count one ended request."""
        self.requests += 1
        self.errors += sample.error is not None
        self.deltas += sample.deltas
        if sample.first_step is not None:
            self.first.add_step(sample.first_step)
        if sample.duration_step is not None:
            self.duration.add_step(sample.duration_step)

    def merge(self, other: Tally) -> None:
        """Count all that the other counted."""
        self.requests += other.requests
        self.errors += other.errors
        self.deltas += other.deltas
        self.first.merge(other.first)
        self.duration.merge(other.duration)


@dataclass(slots=True)
class CauseTally:
    """The failures of some time with one cause. Times are those at which the requests began."""

    count: int = 0
    first_s: float = math.inf
    last_s: float = 0.0
    clients: dict[str, int] = field(default_factory=dict)
    """How many failures each client had."""

    def add(self, client: str, at_s: float) -> None:
        """Count one failure."""
        self._add(1, at_s, at_s, {client: 1})

    def merge(self, other: CauseTally) -> None:
        """Count all that the other counted."""
        self._add(other.count, other.first_s, other.last_s, other.clients)

    def _add(self, count: int, first_s: float, last_s: float, clients: Mapping[str, int]) -> None:
        self.count += count
        self.first_s, self.last_s = min(self.first_s, first_s), max(self.last_s, last_s)
        for client, failures in clients.items():
            name = client if client in self.clients or len(self.clients) < MAX_NAMES else OTHERS
            self.clients[name] = self.clients.get(name, 0) + failures

    @property
    def names(self) -> list[str]:
        """The clients, the most concerned first."""
        return sorted(self.clients, key=lambda name: (-self.clients[name], name))


@dataclass(slots=True)
class Bucket:
    """All requests that started in one span of time, in total and by group."""

    all: Tally = field(default_factory=Tally)
    models: dict[str, Tally] = field(default_factory=dict)
    clients: dict[str, Tally] = field(default_factory=dict)
    causes: dict[str, CauseTally] = field(default_factory=dict)

    def add(self, sample: Sample, started_s: float) -> None:
        """Count one ended request."""
        self.all.add(sample)
        _named(self.models, sample.model).add(sample)
        _named(self.clients, sample.client).add(sample)
        if sample.error is not None:
            self.causes.setdefault(sample.error, CauseTally()).add(sample.client, started_s)


def error_cause(record: RequestRecord) -> str:
    """Return the code that names why a request failed."""
    return record.error.code if record.error is not None else str(record.outcome)


def name_filter(field: str, name: str) -> str:
    """Return the filter of the requests whose field has exactly this value, whatever is in it."""
    escaped = name.replace("\\", r"\\").replace('"', r"\"")
    return f'{field}="{escaped}"'


def cause_filter(cause: str) -> str:
    """Return the filter of the requests that failed for this cause."""
    return f"outcome={cause}" if cause in set(Outcome) else name_filter("error", cause)


def _named(tallies: dict[str, Tally], name: str) -> Tally:
    tally = tallies.get(name)
    if tally is None and len(tallies) >= MAX_NAMES:
        name = OTHERS
        tally = tallies.get(name)
    if tally is None:
        tally = tallies[name] = Tally()
    return tally


_EMPTY = Bucket()
"""What a time without requests has; only read."""


class Series:
    """The buckets of one window; old buckets are dropped as time passes."""

    def __init__(self, window: Window) -> None:
        self.window = window
        self._buckets: dict[int, Bucket] = {}
        self._newest = 0

    def add(self, sample: Sample, started_s: float) -> None:
        """Count one ended request, unless it is so old that the window will never show it."""
        number = int(started_s // self.window.bucket_s)
        bucket = self._buckets.get(number)
        if bucket is None:
            if number <= self._newest - 2 * self.window.bucket_count:
                return
            bucket = self._buckets[number] = Bucket()
            if number > self._newest:
                self._newest = number
                self._forget(number - 2 * self.window.bucket_count)
        bucket.add(sample, started_s)

    def _forget(self, last: int) -> None:
        for number in [number for number in self._buckets if number <= last]:
            del self._buckets[number]

    def buckets(self, now_s: float) -> list[Bucket]:
        """Return the buckets of the window up to now, oldest first, empty ones included."""
        end = int(now_s // self.window.bucket_s) + 1
        return [self._buckets.get(n, _EMPTY) for n in range(end - self.window.bucket_count, end)]


@dataclass(frozen=True, slots=True)
class Summary:
    """One window, ready to show."""

    window: Window
    buckets: list[Bucket]
    all: Tally
    models: list[tuple[str, Tally]]
    clients: list[tuple[str, Tally]]


class Stats:
    """Every window at once. A request is counted once, also when it is seen again."""

    def __init__(self) -> None:
        self._series = {window: Series(window) for window in WINDOWS}
        self.counted_from: int | None = None
        """The `seq` of the oldest record counted; older ones are asked of the daemon."""
        self.oldest_s: float | None = None
        """When that record started."""
        self._open: set[int] = set()
        self._newest = 0

    def add(self, record: RequestRecord) -> None:
        """Count a record: an open one is remembered and counted when it ends."""
        if not self._is_new(record):
            return
        if record.outcome is None:
            self._open.add(record.seq)
            return
        self._open.discard(record.seq)
        sample, started_s = _sample(record), unix_s(record.started_at)
        for series in self._series.values():
            series.add(sample, started_s)

    def _is_new(self, record: RequestRecord) -> bool:
        if record.seq in self._open:
            return True
        if self.counted_from is None:
            self.counted_from = self._newest = record.seq
            self.oldest_s = unix_s(record.started_at)
            return True
        if record.seq > self._newest:
            self._newest = record.seq
            return True
        if record.seq < self.counted_from:
            self.counted_from = record.seq
            self.oldest_s = unix_s(record.started_at)
            return True
        return False

    def buckets(self, window: Window, now_s: float) -> list[Bucket]:
        """Return the buckets of a window up to now, oldest first, empty ones included."""
        return self._series[window].buckets(now_s)

    def causes(self, window: Window, now_s: float) -> list[tuple[str, CauseTally]]:
        """Return the causes of the errors in a window, the most frequent first."""
        causes: dict[str, CauseTally] = {}
        for bucket in self.buckets(window, now_s):
            for cause, tally in bucket.causes.items():
                causes.setdefault(cause, CauseTally()).merge(tally)
        return sorted(causes.items(), key=lambda item: (-item[1].count, item[0]))

    def summary(self, window: Window, now_s: float) -> Summary:
        """Return one window up to now."""
        buckets = self.buckets(window, now_s)
        whole = Tally()
        models: dict[str, Tally] = {}
        clients: dict[str, Tally] = {}
        for bucket in buckets:
            whole.merge(bucket.all)
            _merge(models, bucket.models)
            _merge(clients, bucket.clients)
        return Summary(
            window,
            buckets,
            whole,
            sorted(models.items(), key=_by_requests),
            sorted(clients.items(), key=_by_requests),
        )


def _by_requests(item: tuple[str, Tally]) -> tuple[int, str]:
    return -item[1].requests, item[0]


def _merge(into: dict[str, Tally], tallies: dict[str, Tally]) -> None:
    for name, tally in tallies.items():
        into.setdefault(name, Tally()).merge(tally)
