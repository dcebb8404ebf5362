"""Looks every few seconds what is wrong, and has the operator's command run when that changes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from functools import partial

from msgspec.structs import replace

from relayd import __version__
from relayd.admin.all_instances import AllInstances
from relayd.admin.context import AdminContext, Health
from relayd.alerts.alert import Alert, AlertKind, Alerts, Condition
from relayd.alerts.command import AlertCommand, AlertNews, Relay
from relayd.alerts.conditions import (
    LOGGED,
    CoolingRoute,
    Facts,
    RecentRequests,
    Thresholds,
    conditions,
)
from relayd.relay.routes import Route
from relayd.state.budget import Use
from relayd.state.errors import StateError
from relayd.state.records import utc_text

_log = logging.getLogger(__name__)

LOOK_EVERY_S = 5.0


class AlertWatch:
    """Keeps the alerts of one instance up to date. Of several instances, one runs the command.

    Args:
        context: the daemon; its `alerts` are written here alone.
        all_instances: asked what the other instances see.
    """

    def __init__(self, context: AdminContext, all_instances: AllInstances) -> None:
        self._context = context
        self._all_instances = all_instances
        self._recent = RecentRequests()
        self._read_to = 0
        self._command = AlertCommand()
        self._told: dict[str, Alert] = {}
        """The alerts whose beginning the command was run for, here or at the instance that did it before."""
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look from now on; what was logged before is not looked at."""
        self._read_to = self._context.event_bus.newest_seq
        self._task = asyncio.create_task(self._run(), name="alerts")

    async def close(self) -> None:
        """Look no more, and end the command."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._command.close()

    async def _run(self) -> None:
        while True:
            try:
                await self.look()
            except Exception:  # noqa: BLE001 - a bug here must neither be silent nor end the alerts
                _log.exception("The alerts could not be looked at")
            await asyncio.sleep(LOOK_EVERY_S)

    async def look(self) -> None:
        """Look once, and tell what has changed."""
        context = self._context
        now_s, options = context.state.clock(), context.alert_options()
        routes = [found for route in context.routes() if (found := _cooling(route)) is not None]
        judge = partial(self._judge, now_s, options.thresholds, await context.health(), routes)
        met, unknown = await context.read_log(judge)
        context.alerts.update(met, now_s, unknown=unknown)
        await self._tell(options.command, now_s)

    def _judge(
        self, now_s: float, thresholds: Thresholds, health: Health, routes: Sequence[CoolingRoute]
    ) -> tuple[list[Condition], frozenset[AlertKind]]:
        """Return what is wrong, and what could not be judged. Blocks: there may be many keys and clients."""
        state, unknown = self._context.state, frozenset[AlertKind]()
        today: dict[str, Use] = {}
        month: dict[str, Use] = {}
        clients = state.ring.clients()
        try:
            ended = state.reader.ended_since(self._read_to)
            if any(client.has_usage_bound for client in clients):
                _, today, month = state.reader.use_by_client()
        except StateError:
            unknown = LOGGED
        else:
            self._read_to = ended.newest_seq
            self._recent.add(now_s, ended)
        identity, engine_error = state.instances.identity, health.engine.error
        facts = Facts(
            now_s=now_s,
            keys=state.ring.keys(),
            clients=clients,
            uses=(today, month),
            by_code=self._recent.by_code(now_s),
            refused=self._recent.refused(),
            routes=routes,
            lost=self._recent.lost(now_s, health.log.lost),
            # What keeps the log from the disk is the database then.
            log_error=None if engine_error is not None else health.log.error,
            engine_error=engine_error,
            free_bytes=None if health.disk is None else health.disk.free_bytes,
            instance=identity.name if identity.is_shared else "",
        )
        return list(conditions(facts, thresholds)), unknown

    async def _tell(self, command: Sequence[str], now_s: float) -> None:
        """Run the command for what has begun and ended since the last time, if it is this instance's turn."""
        alerts, are_all_known = self._context.alerts.alerts, True
        if command and self._leads():
            alerts, silent = await self._all_instances.alerts()
            are_all_known = not silent
            self._run_command(command, alerts, now_s, are_all_known=are_all_known)
        known = {alert.id: alert for alert in alerts.alerts}
        self._told = known if are_all_known else self._told | known

    def _leads(self) -> bool:
        """Return whether the command is run here: at the instance that has served for the longest time."""
        live = self._context.state.instances.live()
        first = min(live, key=lambda instance: (instance.started_at, instance.boot_id))
        return first.boot_id == self._context.facts.boot_id

    def _run_command(
        self, command: Sequence[str], alerts: Alerts, now_s: float, *, are_all_known: bool
    ) -> None:
        now = {alert.id: alert for alert in alerts.alerts}
        ended = {alert.id: alert for alert in reversed(alerts.past)}
        for alert in now.values():
            if alert.id not in self._told:
                self._command.tell(command, self._news("begin", alert, alert.sentence))
        for alert in self._told.values():
            if alert.id not in now and are_all_known:
                over = ended.get(alert.id, replace(alert, ended_at=utc_text(now_s)))
                self._command.tell(command, self._news("end", over, f"Over: {alert.sentence}"))

    def _news(self, event: str, alert: Alert, text: str) -> AlertNews:
        facts = self._context.facts
        return AlertNews(text, event, alert, Relay(facts.instance, facts.address, __version__))


def _cooling(route: Route) -> CoolingRoute | None:
    """Return what cools down of a route; None if nothing does."""
    if route.cooldown is not None:
        return CoolingRoute(route.name, route.cooldown.error.recorded)
    if not route.model_cooldowns:
        return None
    error = next(iter(route.model_cooldowns.values())).error.recorded
    return CoolingRoute(route.name, error, list(route.model_cooldowns))
