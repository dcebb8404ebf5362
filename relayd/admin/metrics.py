"""Figures for Prometheus, in its text format. Every label value comes from relayd itself."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from relayd.admin.schema import Intake, Status
from relayd.admin.tally import Histogram, Tally


@dataclass(frozen=True, slots=True)
class Totals:
    """What is not in a status."""

    tally: Tally
    deltas: int
    event_readers: int


def metrics_text(status: Status, totals: Totals) -> bytes:
    """The whole answer to a scrape."""
    registry = CollectorRegistry()
    registry.register(_Figures(status, totals))
    ProcessCollector(registry=registry)
    return generate_latest(registry)


class _Figures(Collector):
    def __init__(self, status: Status, totals: Totals) -> None:
        self._status = status
        self._totals = totals

    def collect(self) -> Iterable[Metric]:
        """Every figure of relayd's own."""
        status, totals = self._status, self._totals
        tally = totals.tally
        yield InfoMetricFamily("relayd_build", "The version that runs.", value={"version": status.version})
        yield _gauge("relayd_uptime_seconds", "Since the start of the daemon.", status.uptime_s)
        yield _counter_by("relayd_requests", "Requests that ended.", "outcome", tally.requests.items())
        yield _counter_by(
            "relayd_request_errors", "Requests that ended with an error.", "code", tally.errors.items()
        )
        yield _gauge_by("relayd_streams_open", "Open streams.", "phase", _phases(status).items())
        yield _gauge("relayd_streams_limit", "The most streams that may be open.", status.max_streams)
        yield _gauge_by(
            "relayd_intake", "1 for what is done with new requests.", "state", _intake(status).items()
        )
        yield _counter("relayd_deltas", "Pieces of text relayed.", totals.deltas)
        yield _counter("relayd_reply_bytes", "Bytes of replies that ended.", tally.reply_bytes)
        yield _histogram("relayd_first_token_seconds", "From request to first text.", tally.first_token)
        yield _histogram("relayd_request_duration_seconds", "From request to end.", tally.duration)
        yield _gauge("relayd_log_queued", "Records that wait for the disk.", status.log.queued)
        yield _counter("relayd_log_lost", "Records that were never written.", status.log.lost)
        yield _gauge("relayd_log_failing", "1 while the disk refuses.", status.log.error is not None)
        yield _gauge("relayd_database_bytes", "Size of the database.", status.disk.database_bytes)
        yield _gauge("relayd_disk_free_bytes", "Free space beside it.", status.disk.free_bytes)
        yield _gauge("relayd_ring_generation", "Changes of the key ring.", status.ring.generation)
        yield _gauge_by("relayd_keys", "Keys that work.", "state", _keys(status).items())
        yield _counter_by("relayd_key_changes", "Changes of keys.", "action", tally.key_changes.items())
        yield _gauge("relayd_event_readers", "Readers of the event stream.", totals.event_readers)
        yield _counter("relayd_event_readers_dropped", "Readers that stood still.", tally.dropped_readers)


def _phases(status: Status) -> dict[str, float]:
    streams = status.streams
    return {"connecting": streams.connecting, "waiting": streams.waiting, "streaming": streams.streaming}


def _intake(status: Status) -> dict[str, float]:
    return {state.value: float(state is status.intake) for state in Intake}


def _keys(status: Status) -> dict[str, float]:
    return {"active": status.ring.active, "retiring": status.ring.retiring}


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _gauge_by(name: str, text: str, label: str, values: Iterable[tuple[str, float]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for value, number in values:
        family.add_metric([str(value)], number)
    return family


def _counter_by(name: str, text: str, label: str, values: Iterable[tuple[str, float]]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for value, number in values:
        family.add_metric([str(value)], number)
    return family


def _histogram(name: str, text: str, histogram: Histogram) -> Metric:
    return HistogramMetricFamily(name, text, buckets=histogram.cumulative(), sum_value=histogram.sum_s)
