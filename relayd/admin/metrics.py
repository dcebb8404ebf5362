"""Metrics: for Prometheus since the start of the daemon, and rates of the last minutes for people."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from relayd.admin.schema import AcceptState, Rates, RouteState, Status
from relayd.relay.errors import ErrorCode
from relayd.state.records import Audited, LogEvent, Outcome, RequestRecord

_FIRST_TOKEN_BUCKETS_S = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_DURATION_BUCKETS_S = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0)
_KEY_CHANGES = (
    *("fill", "add", "import", "rotate", "extend", "undo", "revoke"),
    *("add_client", "set_client", "remove_client"),
)

_WINDOW_S = 300
_MINUTE_S = 60
_DELTAS_OVER_S = 5
_MAX_FIRST_TOKENS = 1000
_MAX_CLIENT_LABELS = 200
_OTHER_CLIENTS = "(other)"
"""No client has this name."""

_COMMENT = re.compile(r"# (HELP|TYPE) (\S+)")
_SAMPLE = re.compile(r"([A-Za-z_:][A-Za-z0-9_:]*)(\{?)")

# The time at which each counter was made says nothing that the start of the process does not.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library has no annotation here


class Metrics:
    """Counts what happens, on the event loop. Every label value comes from relayd or its operator."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = _counters("relayd_requests", "Requests that ended.", "outcome", Outcome, registry)
        self._errors = _counters(
            "relayd_request_errors", "Requests that ended with an error.", "code", ErrorCode, registry
        )
        self._key_changes = _counters(
            "relayd_key_changes", "Changes of keys and clients.", "action", _KEY_CHANGES, registry
        )
        self._by_client = _ByClient(registry)
        self._reply_bytes = Counter("relayd_reply_bytes", "Bytes of replies that ended.", registry=registry)
        self._first_token = Histogram(
            "relayd_first_token_seconds",
            "Time from the request to the first text.",
            buckets=_FIRST_TOKEN_BUCKETS_S,
            registry=registry,
        )
        self._duration = Histogram(
            "relayd_request_duration_seconds",
            "Time from the request to its end.",
            buckets=_DURATION_BUCKETS_S,
            registry=registry,
        )
        self.event_readers = Gauge("relayd_event_readers", "Readers of the event stream.", registry=registry)
        self.event_readers_dropped = Counter(
            "relayd_event_readers_dropped",
            "Readers that were disconnected because they read nothing.",
            registry=registry,
        )
        self.recent = RecentRates()

    def request_ended(self, record: RequestRecord) -> None:
        """Count a request; its record is complete."""
        if record.outcome is not None:
            self._requests[record.outcome].inc()
        if record.error is not None and record.error.code in self._errors:
            self._errors[record.error.code].inc()
        self._reply_bytes.inc(record.bytes_out)
        self._by_client.request_ended(record)
        if record.duration_ms is not None:
            self._duration.observe(record.duration_ms / 1000)
        if record.first_token_ms is not None:
            self._first_token.observe(record.first_token_ms / 1000)
        self.recent.request_ended(record)

    def event_logged(self, event: LogEvent) -> None:
        """Count an event of the log if it is a change of a key or a client."""
        if isinstance(event, Audited) and event.entry.result == "done":
            counter = self._key_changes.get(event.entry.action)
            if counter is not None:
                counter.inc()

    def render(self, status: Status, deltas: int) -> str:
        """Return all metrics in Prometheus' text format, version 0.0.4."""
        current = CollectorRegistry()
        current.register(_StatusCollector(status, deltas))
        return (generate_latest(self._registry) + generate_latest(current)).decode()


def merged(texts: Mapping[str, str]) -> str:
    """Return one text with the metrics of several instances, each sample labelled with its instance.

    The format wants all samples of a metric in one group, below its comments.

    Args:
        texts: what `render` returned at each instance, by the instance's name.
    """
    comments: dict[str, dict[str, str]] = {}
    """By metric and kind of comment; of instances with different words, the last."""
    samples: dict[str, list[str]] = {}
    for instance, text in texts.items():
        escaped = instance.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
        label = f'instance="{escaped}"'
        metric = ""
        for line in text.split("\n"):
            if comment := _COMMENT.match(line):
                metric = comment[2]
                comments.setdefault(metric, {})[comment[1]] = line
            elif sample := _SAMPLE.match(line):
                rest = line[sample.end() :]
                labelled = f"{sample[1]}{{{label},{rest}" if sample[2] else f"{sample[1]}{{{label}}}{rest}"
                samples.setdefault(metric, []).append(labelled)
    lines = (line for metric in comments for line in [*comments[metric].values(), *samples.get(metric, ())])
    return "".join(f"{line}\n" for line in lines)


class _ByClient:
    """Tokens and money by client. Beyond 200 clients, the others share one label."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._tokens = Counter("relayd_tokens", "Tokens used.", ["client", "kind"], registry=registry)
        self._cost = Counter("relayd_cost_usd", "US dollars used.", ["client"], registry=registry)
        self._named: set[str] = set()

    def request_ended(self, record: RequestRecord) -> None:
        """Count what a request used; cached tokens are part of the prompt's."""
        if record.usage_source is None or record.client is None:
            return
        name = record.client
        if name not in self._named:
            if len(self._named) >= _MAX_CLIENT_LABELS:
                name = _OTHER_CLIENTS
            else:
                self._named.add(name)
        for kind, count in (
            ("prompt", record.prompt_tokens),
            ("cached", record.cached_tokens),
            ("completion", record.completion_tokens),
        ):
            if count:
                self._tokens.labels(name, kind).inc(count)
        if record.cost_usd:
            self._cost.labels(name).inc(record.cost_usd)


def _counters(
    name: str, text: str, label: str, values: Iterable[str], registry: CollectorRegistry
) -> Mapping[str, Counter]:
    """Return one counter for each value of the label; all are exported from the start, as zero."""
    family = Counter(name, text, [label], registry=registry)
    return {value: family.labels(str(value)) for value in values}


class _StatusCollector(Collector):
    """Exports what a `Status` has at the moment of a scrape."""

    def __init__(self, status: Status, deltas: int) -> None:
        self._status = status
        self._deltas = deltas

    def collect(self) -> Iterable[Metric]:
        """Yield each figure, for prometheus_client."""
        status, ring, disk = self._status, self._status.ring, self._status.disk
        phases = {
            "connecting": status.streams.connecting,
            "waiting": status.streams.waiting,
            "streaming": status.streams.streaming,
        }
        intake = {state.value: float(state is status.intake) for state in AcceptState}
        keys = {"active": ring.active, "retiring": ring.retiring}
        yield InfoMetricFamily("relayd_build", "The version that runs.", value={"version": status.version})
        yield CounterMetricFamily("relayd_deltas", "Pieces of text relayed.", value=self._deltas)
        yield CounterMetricFamily("relayd_log_lost", "Records never written.", value=status.log.lost)
        yield _gauges("relayd_streams_open", "Open streams.", "phase", phases)
        yield _gauges("relayd_intake", "1 for what happens to new requests.", "state", intake)
        yield _gauges("relayd_keys", "Keys that work.", "state", keys)
        for name, text, value in (
            ("relayd_uptime_seconds", "Since the start of the daemon.", status.uptime_s),
            ("relayd_streams_limit", "Limit of open streams.", status.max_streams),
            ("relayd_log_queued", "Records that are not on disk yet.", status.log.queued),
            ("relayd_log_failing", "1 while records cannot be written.", status.log.error is not None),
            ("relayd_ring_generation", "Changes of the key ring.", ring.generation),
            ("relayd_instances", "Live instances of this relay.", status.instances.live),
            ("relayd_instances_current", "Those with the newest keys.", status.instances.have_ring),
            ("relayd_database_failing", "1 while the database does not answer.", not status.engine.ok),
        ):
            yield GaugeMetricFamily(name, text, value=value)
        if disk is not None:
            yield GaugeMetricFamily(
                "relayd_database_bytes", "Size of the database.", value=disk.database_bytes
            )
            yield GaugeMetricFamily(
                "relayd_disk_free_bytes", "Free space on the disk of the database.", value=disk.free_bytes
            )
        requests = CounterMetricFamily("relayd_route_requests", "Requests to each route.", labels=["route"])
        failures = CounterMetricFamily("relayd_route_failures", "Those that failed.", labels=["route"])
        cooling = GaugeMetricFamily("relayd_route_cooling", "1 while it cools down.", labels=["route"])
        models = GaugeMetricFamily("relayd_route_cooling_models", "Models that do.", labels=["route"])
        for route in status.routes:
            requests.add_metric([route.name], route.requests)
            failures.add_metric([route.name], route.failures)
            cooling.add_metric([route.name], route.state is RouteState.COOLING)
            models.add_metric([route.name], len(route.models))
        yield from (requests, failures, cooling, models)


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, number in values.items():
        family.add_metric([value], number)
    return family


@dataclass(slots=True)
class _Second:
    began_s: float
    deltas_before: int = 0
    """Deltas relayed from the start of the daemon to the beginning of this second."""
    requests: int = 0
    errors: int = 0


class RecentRates:
    """Rates of the last minutes, from one slot for each second."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._seconds = deque([_Second(self._loop.time())], maxlen=_WINDOW_S)
        self._first_tokens: deque[tuple[float, int]] = deque(maxlen=_MAX_FIRST_TOKENS)
        """End of the request (loop time) and its first token in ms."""

    def request_ended(self, record: RequestRecord) -> None:
        """Count a request; its record is complete."""
        second = self._seconds[-1]
        second.requests += 1
        second.errors += record.error is not None or record.outcome is Outcome.CRASHED
        if record.first_token_ms is not None:
            self._first_tokens.append((self._loop.time(), record.first_token_ms))

    def begin_second(self, deltas: int) -> None:
        """Begin a new slot; `deltas` were relayed since the start of the daemon. Call it every second."""
        self._seconds.append(_Second(self._loop.time(), deltas))

    def rates(self, deltas: int) -> Rates:
        """Return the rates up to now; percentiles are those of at most the newest 1,000 requests."""
        now_s, seconds = self._loop.time(), list(self._seconds)
        since = seconds[-min(_DELTAS_OVER_S, len(seconds))]
        first_tokens_ms = sorted(ms for ended_s, ms in self._first_tokens if ended_s > now_s - _WINDOW_S)
        return Rates(
            requests_1m=sum(second.requests for second in seconds[-_MINUTE_S:]),
            deltas_per_s=round((deltas - since.deltas_before) / max(now_s - since.began_s, 1.0), 1),
            errors_5m=sum(second.errors for second in seconds),
            first_token_p50_ms=_percentile(first_tokens_ms, 50),
            first_token_p95_ms=_percentile(first_tokens_ms, 95),
        )


def _percentile(ordered: list[int], percent: int) -> int | None:
    """Return the value of the nearest rank; None without values."""
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)] if ordered else None
