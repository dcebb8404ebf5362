"""The relay over all its instances: what each of them does now, and the commands that reach every one.

The others are asked through the database and answer within half a second or so. One that does not answer
within a second is left out, and named.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

import msgspec
from msgspec.structs import replace

from relayd.admin.context import AdminContext, Figures
from relayd.admin.errors import AdminError
from relayd.admin.metrics import merged
from relayd.admin.schema import (
    AcceptState,
    Alerts,
    InstanceInfo,
    InstanceRing,
    LogHealth,
    Progress,
    Rates,
    Reloaded,
    RequestRecord,
    Status,
    StreamCounts,
    StreamProgress,
)
from relayd.alerts.alert import merged as merged_alerts
from relayd.state.instances import Activity

_log = logging.getLogger(__name__)

ANSWER_WITHIN_S = 1.0
_LAST_ANSWER_S = 5.0
"""A drain asks the others, writes the audit and asks for the status."""

Handler = Callable[[Any], Awaitable[object]]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Answers(Generic[T]):
    replies: Mapping[str, T]
    """By boot id."""
    silent: tuple[str, ...]
    """The names of the other instances that gave no answer in time, or could not be asked."""


class AllInstances:
    """Asks and commands all live instances, this one included. Alone, it does not touch the database."""

    def __init__(self, context: AdminContext) -> None:
        self._context = context
        self._instances, self._commands = context.state.instances, context.state.commands
        self._own_id = context.facts.boot_id
        self._streams: dict[str, list[StreamProgress]] = {}
        """What each instance told last, by boot id."""
        self._unanswered = 0
        self._answered = asyncio.Event()
        self._answered.set()
        handlers: dict[str, Handler] = {
            "alerts": self._tell_alerts,
            "figures": self._tell_figures,
            "streams": self._tell_streams,
            "record": self._tell_record,
            "metrics": self._tell_metrics,
            "cancel": self._cancel,
            "cut": self._count_cut,
            "intake": self._set_intake,
            "drain": self._drain,
            "reload": self._reload,
        }
        for kind, handler in handlers.items():
            self._commands.handle(kind, handler)

    def start(self) -> None:
        """Take part: follow what the others change, answer what they ask, end the streams that they cut."""
        context, loop = self._context, asyncio.get_running_loop()

        def cut(key_ids: Sequence[str]) -> None:
            for key_id in key_ids:
                loop.call_soon_threadsafe(context.streams.cut_key, key_id)

        self._instances.address = context.facts.address
        self._instances.activity = lambda: Activity(context.accepting.state, len(context.streams))
        context.state.ring.on_cut = cut
        context.state.follow(context.event_bus.advance, context.drain)
        # Its row is from before it served.
        self._instances.announce()

    async def close(self) -> None:
        """Let a drain be answered; end what the others asked for and is not done."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_ANSWER_S):
                await self._answered.wait()
        await self._commands.close()

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Keep `close` waiting: a worker is stopped by the drain of another that it passes on."""
        self._unanswered += 1
        self._answered.clear()
        try:
            yield
        finally:
            self._unanswered -= 1
            if not self._unanswered:
                self._answered.set()

    async def status(self) -> Status:
        """Return the status, with streams, limits, rates and log of all instances.

        Everything else in it, percentiles and routes too, is of this instance.
        """
        status = await self._context.status()
        if not self._instances.others():
            return status
        answers, (alerts, _) = await asyncio.gather(self._ask("figures", Figures), self.alerts())
        own = Figures(status.streams, status.max_streams, status.rates, status.log)
        others = [each for boot_id, each in answers.replies.items() if boot_id != self._own_id]
        figures = [own, *others]
        return replace(
            status,
            streams=_sum_of_streams([each.streams for each in figures]),
            max_streams=sum(each.max_streams for each in figures),
            rates=_sum_of_rates([each.rates for each in figures]),
            log=_sum_of_logs([each.log for each in figures]),
            silent=answers.silent,
            alerts=alerts.alerts,
        )

    async def alerts(self) -> tuple[Alerts, tuple[str, ...]]:
        """Return the alerts of all instances, and the names of the instances that did not answer."""
        own = self._context.alerts.alerts
        if not self._instances.others():
            return own, ()
        answers = await self._ask("alerts", Alerts)
        others = [each for boot_id, each in answers.replies.items() if boot_id != self._own_id]
        return merged_alerts([own, *others]), answers.silent

    async def progress(self) -> Progress:
        """Return where all open streams are now, oldest first.

        Those of an instance that lives and does not answer are where they were when it did.
        """
        progress = self._context.progress()
        live = {instance.boot_id for instance in self._instances.live()}
        if live == {self._own_id}:
            self._streams.clear()
            return progress
        answers = await self._ask("streams", list[StreamProgress])
        known = {**self._streams, **answers.replies, self._own_id: progress.streams}
        self._streams = {boot_id: streams for boot_id, streams in known.items() if boot_id in live}
        streams = [stream for streams in self._streams.values() for stream in streams]
        return Progress(progress.at, sorted(streams, key=lambda stream: -stream.age_ms))

    async def as_of_now(self, record: RequestRecord) -> RequestRecord:
        """Return a record as it is now, if its stream is open; the disk has only the beginning."""
        if record.outcome is not None or record.boot_id == self._own_id:
            return self._context.as_of_now(record)
        answers = await self._ask("record", RequestRecord, record, record.boot_id)
        return answers.replies.get(record.boot_id, record)

    async def metrics(self) -> str:
        """Return the metrics of all instances; if there may be several, each sample has its instance."""
        if not self._instances.identity.is_shared:
            return await self._context.metrics_text()
        answers = await self._ask("metrics", str)
        return merged({self._label(boot_id): text for boot_id, text in answers.replies.items()})

    async def cancel(self, request_id: str) -> bool:
        """End one open stream, wherever it is; return False if no such stream is open.

        Raises:
            AdminError: the instance that has it may be one that does not answer.
        """
        # At once, if it is here.
        if self._context.streams.cancel(request_id):
            return True
        answers = await self._ask("cancel", bool, request_id)
        if any(answers.replies.values()):
            return True
        if answers.silent:
            raise AdminError(
                HTTPStatus.SERVICE_UNAVAILABLE,
                "no_answer",
                f"No answer came from {_listed(answers.silent)}, and no other instance has this stream. Look "
                "whether it is still open, and try again.",
            )
        return False

    async def count_cut(self, key_ids: Iterable[str]) -> int:
        """Return how many streams ended because these keys were revoked with a cut."""
        return sum((await self._ask("cut", int, list(key_ids))).replies.values())

    async def have(self, generation: int) -> tuple[InstanceRing, ...]:
        """Return which instances have the ring of this generation, when all do or a second has passed."""
        return tuple(await self._instances.with_ring(generation, ANSWER_WITHIN_S))

    async def set_intake(self, action: str) -> tuple[str, ...]:
        """Pause or resume everywhere; return the names of the instances that did not answer.

        Raises:
            AdminError: all of them are stopping.
        """
        answers = await self._ask("intake", AcceptState, action)
        if set(answers.replies.values()) == {AcceptState.DRAINING}:
            raise AdminError(
                HTTPStatus.CONFLICT, "draining", f"The daemon is stopping; it is too late to {action}."
            )
        return answers.silent

    async def drain_others(self, boot_id: str | None) -> tuple[str, ...]:
        """Let the other instances stop, or the one named; return the names of those that did not answer."""
        if boot_id == self._own_id:
            return ()
        return (await self._ask("drain", AcceptState, self._own_id, boot_id)).silent

    async def reload(self) -> Reloaded:
        """Read the configuration again everywhere; return this instance's report, and where it failed."""
        answers = await self._ask("reload", Reloaded)
        report = answers.replies[self._own_id]
        failed = [
            f"{self._label(boot_id)}: {reply.error}"
            for boot_id, reply in answers.replies.items()
            if boot_id != self._own_id and reply.error is not None
        ]
        return replace(report, failed=[*failed, *(f"{name}: no answer yet" for name in answers.silent)])

    def find(self, name: str) -> InstanceInfo:
        """Return the live instance of this name or boot id; for the name of a host, one of its workers.

        Raises:
            AdminError: there is none, or there are several of this name.
        """
        instances = self._context.instances().instances
        found = [one for one in instances if name in (one.name, one.boot_id)] or [
            one for one in instances if one.host == name
        ][:1]
        if len(found) == 1:
            return found[0]
        what = "Several instances have" if found else "No live instance has"
        known = _listed(f"{one.name} (boot {one.boot_id}, {one.address})" for one in instances)
        raise AdminError.not_found(f"{what} the name {name[:40]!r}; name one by its boot id. Live: {known}.")

    async def _ask(
        self, kind: str, reply: type[T], argument: object = None, boot_id: str | None = None
    ) -> _Answers[T]:
        """Ask all instances, or the one with a boot id."""
        before = self._instances.last_known()
        found = await self._commands.ask(kind, argument, instance=boot_id, timeout_s=ANSWER_WITHIN_S)
        replies: dict[str, T] = {}
        for replier, document in found.items():
            try:
                replies[replier] = msgspec.convert(document, reply)
            except msgspec.ValidationError as error:
                _log.warning("The instance %s answered '%s' in another way: %s", replier, kind, error)
        now = self._instances.last_known()
        others = found.others
        if others is None:
            # However long ago the database last told of them: that they ended is not known either.
            others = frozenset(one for one in now if boot_id in (None, one))
        # Not those that have ended meanwhile.
        silent = others - replies.keys() - (before.keys() - now.keys())
        return _Answers(replies, tuple(sorted(now[one].name if one in now else one for one in silent)))

    def _label(self, boot_id: str) -> str:
        """Return the name of an instance; with its address, if another has the same name.

        It has no boot id, so that metrics keep their names after a restart and while the database is down.
        """
        known = {**self._instances.last_known(), self._own_id: self._instances.own}
        one = known.get(boot_id)
        if one is None:
            return boot_id
        namesakes = [other for other in known.values() if other.name == one.name]
        if len(namesakes) == 1:
            return one.name
        if one.address and sum(other.address == one.address for other in namesakes) == 1:
            return f"{one.name} ({urlsplit(one.address).netloc})"
        return f"{one.name} (boot {boot_id})"

    # What this instance does when one of them asks, itself included.

    async def _tell_alerts(self, _argument: object) -> Alerts:
        return self._context.alerts.alerts

    async def _tell_figures(self, _argument: object) -> Figures:
        return self._context.figures()

    async def _tell_streams(self, _argument: object) -> list[StreamProgress]:
        return self._context.progress().streams

    async def _tell_record(self, record: object) -> RequestRecord:
        return self._context.as_of_now(msgspec.convert(record, RequestRecord))

    async def _tell_metrics(self, _argument: object) -> str:
        return await self._context.metrics_text()

    async def _cancel(self, request_id: str) -> bool:
        return self._context.streams.cancel(request_id)

    async def _count_cut(self, key_ids: Sequence[str]) -> int:
        # The change itself has cut them already, or does so in a moment: to cut again changes nothing.
        return sum(map(self._context.streams.cut_key, key_ids))

    async def _set_intake(self, action: str) -> AcceptState:
        accepting = self._context.accepting
        if action == "pause":
            accepting.pause()
        else:
            accepting.resume()
        self._instances.announce()
        return accepting.state

    async def _drain(self, asking: str) -> AcceptState:
        # The instance that is asked by its operator answers first, and stops then by itself.
        if asking != self._own_id:
            self._context.drain()
        return self._context.accepting.state

    async def _reload(self, _argument: object) -> Reloaded:
        # A reload outlives the one who asked for it.
        return await asyncio.shield(self._context.reload())


def _sum_of_streams(counts: Sequence[StreamCounts]) -> StreamCounts:
    return StreamCounts(
        connecting=sum(each.connecting for each in counts),
        waiting=sum(each.waiting for each in counts),
        streaming=sum(each.streaming for each in counts),
    )


def _sum_of_rates(rates: Sequence[Rates]) -> Rates:
    """Add what can be added: percentiles stay those of the first."""
    return replace(
        rates[0],
        requests_1m=sum(each.requests_1m for each in rates),
        deltas_per_s=round(sum(each.deltas_per_s for each in rates), 1),
        errors_5m=sum(each.errors_5m for each in rates),
    )


def _sum_of_logs(logs: Sequence[LogHealth]) -> LogHealth:
    return LogHealth(
        queued=sum(each.queued for each in logs),
        lost=sum(each.lost for each in logs),
        error=next((each.error for each in logs if each.error is not None), None),
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)
