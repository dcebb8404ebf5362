"""The daemon as the admin API sees it, and its state at a glance."""

from __future__ import annotations

import asyncio
import os
import resource
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from msgspec.structs import asdict, replace

from relayd import __version__
from relayd.admin.events import EventBus
from relayd.admin.metrics import Metrics
from relayd.admin.schema import (
    ConfigReport,
    Configuration,
    CoolingModel,
    DaemonFacts,
    DiskUse,
    EngineKind,
    EngineStatus,
    InstanceCounts,
    InstanceInfo,
    InstanceList,
    LogContents,
    LogHealth,
    PeriodUse,
    ProcessHealth,
    Progress,
    Rates,
    Reloaded,
    RingSummary,
    RouteState,
    RouteStatus,
    Status,
    StreamCounts,
    StreamProgress,
)
from relayd.alerts.alert import AlertBook
from relayd.alerts.conditions import DEFAULT_THRESHOLDS, Thresholds
from relayd.relay.accepting import Accepting, AcceptState
from relayd.relay.active_streams import ActiveStreams
from relayd.relay.routes import Route
from relayd.relay.stream import RelayStream
from relayd.state.budget import NANO, Use
from relayd.state.errors import StateError
from relayd.state.keyring import KeyRing
from relayd.state.records import Phase, RequestRecord, epoch_s, utc_text
from relayd.state.state import State

_LOG_THREADS = 4

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """Settings that the operator may change while the daemon runs."""

    max_streams: int
    drain_timeout_s: float
    grace_s: float


@dataclass(frozen=True, slots=True)
class AlertOptions:
    """What is worth an alert, and what is run then: settings that may change as well."""

    command: Sequence[str] = ()
    """A program and its arguments; empty: none."""
    thresholds: Thresholds = DEFAULT_THRESHOLDS


class Health(NamedTuple):
    """How log, disk and database are at this instance."""

    disk: DiskUse | None
    """None if the database is another machine's, or its disk does not answer."""
    log: LogHealth
    engine: EngineStatus


class Figures(NamedTuple):
    """What the status of a relay sums up over its instances."""

    streams: StreamCounts
    max_streams: int
    rates: Rates
    log: LogHealth


@dataclass(frozen=True, slots=True)
class AdminContext:
    """What the handlers of the admin API work with."""

    facts: DaemonFacts
    limits: Callable[[], Limits]
    state: State
    streams: ActiveStreams
    accepting: Accepting
    metrics: Metrics
    event_bus: EventBus
    stop: Callable[[], None]
    """Begin to drain, as a signal would."""
    reload: Callable[[], Awaitable[Reloaded]]
    """Read the configuration again, as a signal would."""
    config: Callable[[], Awaitable[ConfigReport]]
    """Return the settings in force, and what their sources say now."""
    first_key: Callable[[], str | None]
    """Return where the first key waits in plain text; None if it does not."""
    routes: Callable[[], Sequence[Route]] = tuple
    """Return the ways to the provider, if there are several."""
    alert_options: Callable[[], AlertOptions] = AlertOptions
    alerts: AlertBook = field(default_factory=AlertBook)
    """What is wrong, as this instance sees it."""
    event_write_timeout_s: float = 10.0
    """How long a reader of events may stand still before it is dropped."""
    _log_threads: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(_LOG_THREADS, thread_name_prefix="admin-log")
    )
    # The status has a thread of its own: it is also asked while long queries take the others.
    _use_thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="admin-use")
    )

    async def read_log(self, query: Callable[[], T]) -> T:
        """Run a blocking query of the log in one of four threads of its own.

        The loop's default executor also resolves the provider's name, which must not wait behind a long
        query. What waits here is bounded by the connections to the admin socket: each asks one question
        at a time.
        """
        return await asyncio.get_running_loop().run_in_executor(self._log_threads, query)

    async def close(self) -> None:
        """Wait for the threads; the queries of a closed reader end at once."""
        for threads in (self._log_threads, self._use_thread):
            await asyncio.to_thread(threads.shutdown)

    async def status(self) -> Status:
        """Return all figures as they are now; usage is read, and the disk is examined, in threads."""
        loop = asyncio.get_running_loop()
        status = await self._status_without_use()
        today, month = await loop.run_in_executor(self._use_thread, _use, self.state)
        return replace(status, today=today, month=month)

    async def _status_without_use(self) -> Status:
        figures, limits, instances = self.figures(), self.limits(), self.instances().instances
        disk, disk_error = await asyncio.to_thread(_disk, self.state)
        return Status(
            **asdict(self.facts),
            version=__version__,
            pid=os.getpid(),
            uptime_s=self._uptime_s(),
            intake=self.accepting.state,
            seq=self.event_bus.newest_seq,
            streams=figures.streams,
            max_streams=figures.max_streams,
            drain_timeout_s=limits.drain_timeout_s,
            grace_s=limits.grace_s,
            rates=figures.rates,
            log=replace(figures.log, error=figures.log.error or disk_error),
            disk=disk,
            ring=_ring_summary(self.state.ring),
            routes=[_route_status(route) for route in self.routes()],
            first_key=self.first_key(),
            engine=self._engine(disk_error),
            instances=InstanceCounts(len(instances), sum(instance.has_ring for instance in instances)),
            alerts=self.alerts.alerts.alerts,
        )

    async def health(self) -> Health:
        """Return how log, disk and database are; the disk is examined in a thread."""
        disk, disk_error = await asyncio.to_thread(_disk, self.state)
        known_disk = disk if disk_error is None else None
        return Health(known_disk, self.figures().log, self._engine(disk_error))

    async def configuration(self) -> Configuration:
        """Return the settings in force with their sources, and what log and process hold."""
        report = await self.config()
        log = await self.read_log(self._log_contents)
        process = await asyncio.to_thread(self._process)
        return Configuration(**asdict(report), log=log, process=process)

    def _process(self) -> ProcessHealth:
        """Return this process, and what it takes as proc(5) says."""
        resident_pages = int(Path("/proc/self/statm").read_text().split()[1])
        most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return ProcessHealth(
            instance=self.facts.instance,
            boot_id=self.facts.boot_id,
            version=__version__,
            pid=os.getpid(),
            uptime_s=self._uptime_s(),
            memory_bytes=resident_pages * resource.getpagesize(),
            open_files=sum(1 for _ in Path("/proc/self/fd").iterdir()),
            max_open_files=None if most == resource.RLIM_INFINITY else most,
        )

    def _uptime_s(self) -> int:
        return max(0, int(time.time() - epoch_s(self.facts.started_at)))

    def _log_contents(self) -> LogContents | None:
        try:
            return self.state.reader.contents()
        except StateError:
            # The status says why.
            return None

    def figures(self) -> Figures:
        """Return what this instance adds to the status of the relay."""
        log = self.state.log
        return Figures(
            streams=_stream_counts(self.streams),
            max_streams=self.limits().max_streams,
            rates=self.metrics.recent.rates(self.streams.deltas),
            log=LogHealth(queued=log.queued, lost=log.lost, error=log.error),
        )

    async def metrics_text(self) -> str:
        """Return the metrics of this instance in Prometheus' text format, version 0.0.4."""
        return self.metrics.render(await self._status_without_use(), self.streams.deltas)

    def drain(self) -> None:
        """Accept nothing more and begin to stop, unless this instance does so already."""
        if self.accepting.state is not AcceptState.DRAINING:
            self.accepting.drain()
            self.state.instances.announce()
            self.stop()

    def instances(self) -> InstanceList:
        """Return the live processes that serve this relay, by name."""
        live = self.state.instances.live()
        generation = max(instance.generation for instance in live)
        return InstanceList(
            generation,
            [
                InstanceInfo(
                    **asdict(instance),
                    has_ring=instance.generation == generation >= 0,
                    is_self=instance.boot_id == self.facts.boot_id,
                )
                for instance in live
            ],
        )

    def _engine(self, disk_error: str | None) -> EngineStatus:
        state = self.state
        follower_error, latency_s = (
            (None, None) if state.follower is None else (state.follower.error, state.follower.latency_s)
        )
        error = state.engine.error or disk_error or follower_error or state.ring.error
        return EngineStatus(
            kind=EngineKind(state.engine.kind),
            where=state.engine.where,
            ok=error is None,
            error=error,
            latency_ms=None if latency_s is None or error is not None else round(latency_s * 1000, 1),
        )

    def as_of_now(self, record: RequestRecord) -> RequestRecord:
        """Return a record as it is now: of an open stream, the disk has only the beginning."""
        stream = self.streams.find(record.id)
        if stream is None or record.outcome is not None:
            return record
        return replace(stream.record, seq=record.seq, stalled_ms=round(stream.stalled_s * 1000))

    def progress(self) -> Progress:
        """Return where all open streams are now, oldest first."""
        now_s = asyncio.get_running_loop().time()
        return Progress(
            utc_text(time.time()),
            [_stream_progress(stream, now_s, self.facts.instance) for stream in self.streams],
        )


def _disk(state: State) -> tuple[DiskUse | None, str | None]:
    """Return the use of the disk; if it does not answer, zeros and the reason."""
    try:
        return state.disk_use(), None
    except StateError as error:
        return DiskUse(0, 0), str(error)


def _use(state: State) -> tuple[PeriodUse | None, PeriodUse | None]:
    """Return what was used today and this month; None if it can't be read now."""
    try:
        today, month = state.reader.use_in_all()
    except StateError:
        return None, None
    return period_use(today), period_use(month)


def period_use(use: Use) -> PeriodUse:
    """Return what was used as the API tells it."""
    return PeriodUse(use.requests, use.tokens, use.nano_usd / NANO)


def _stream_counts(streams: ActiveStreams) -> StreamCounts:
    """Count open streams by phase; a stream that writes its last lines still counts as streaming."""
    phases = Counter(stream.record.phase for stream in streams)
    return StreamCounts(
        connecting=phases[Phase.CONNECTING],
        waiting=phases[Phase.WAITING],
        streaming=phases[Phase.STREAMING] + phases[Phase.DONE],
    )


def _ring_summary(ring: KeyRing) -> RingSummary:
    generation, counts = ring.generation, ring.counts()
    return RingSummary(
        generation=generation,
        active=counts.active,
        retiring=counts.retiring,
        next_expiry_at=None if counts.next_end_s is None else utc_text(counts.next_end_s),
    )


def _route_status(route: Route) -> RouteStatus:
    # A cool-down ends at a time of the loop's clock.
    offset_s = time.time() - asyncio.get_running_loop().time()
    cooldown = route.cooldown
    return RouteStatus(
        name=route.name,
        base_url=route.options.base_url,
        state=RouteState.OK if cooldown is None else RouteState.COOLING,
        until=None if cooldown is None else utc_text(cooldown.until + offset_s),
        error=None if cooldown is None else cooldown.error.recorded,
        models=[
            CoolingModel(model, utc_text(cooldown.until + offset_s))
            for model, cooldown in route.model_cooldowns.items()
        ],
        requests=route.requests,
        failures=route.failures,
    )


def _stream_progress(stream: RelayStream, now_s: float, instance: str) -> StreamProgress:
    record, last_delta_at = stream.record, stream.last_delta_at
    return StreamProgress(
        id=record.id,
        client=record.client,
        key_id=record.key_id,
        ip=record.ip,
        model=record.model,
        phase=record.phase,
        waiting_for="client" if stream.blocked else "upstream",
        age_ms=round(stream.age_s * 1000),
        deltas=record.deltas,
        bytes_out=record.bytes_out,
        stalled_ms=round(stream.stalled_s * 1000),
        last_delta_ms=None if last_delta_at is None else round((now_s - last_delta_at) * 1000),
        first_token_ms=record.first_token_ms,
        instance=instance,
    )
