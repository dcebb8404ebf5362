"""Line mode: every request as one line of plain text, for screen readers, dumb terminals and pipes."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager, aclosing, suppress
from io import TextIOWrapper
from typing import TextIO

from relayd.admin.client import AdminClient, AdminClientError, follow
from relayd.admin.schema import (
    LIVE_STATES,
    Alert,
    Audited,
    Ended,
    Event,
    Gap,
    Hello,
    KeyInfo,
    KeyState,
    Lost,
    Outcome,
    RequestRecord,
    Ring,
    Status,
    epoch_s,
)
from relayd.pipes import while_read
from relayd.printable import plural
from tui.model.descriptions import cause
from tui.model.glyphs import TERMINAL
from tui.model.instances import still_serving
from tui.model.text import printable_struct, printable_text
from tui.model.units import clock, countdown, duration, rate

_BACKLOG = 10
_WATCH_EVERY_S = 2.0
_FIGURES_EVERY = 30
"""The figures are told at every so many looks, if there was a request since."""
_ERRORS_OF_S = 300
_SILENT_AFTER_S = 3.0


def ended_line(record: RequestRecord) -> str:
    """Return one ended request in words, with the time at which it ended."""
    ended_s = epoch_s(record.started_at) + (record.duration_ms or 0) / 1000
    outcome = record.outcome.value.replace("_", " ") if record.outcome is not None else "running"
    error = f", {record.error.code}" if record.error is not None else ""
    return (
        f"{clock(ended_s)} {outcome}{error}:"
        f" {record.client or 'no client'} at {record.ip}, model {record.model or 'none'},"
        f" status {record.status or 'none'},"
        f" first token {duration(record.first_token_ms)}, took {duration(record.duration_ms)},"
        f" {plural(record.completion_tokens or record.deltas, 'token')}."
        f"{'' if record.outcome is Outcome.COMPLETED else f' {cause(record)}'}"
    )


def figures_line(status: Status, keys: Iterable[KeyInfo], now_s: float) -> str:
    """Return the figures of the app's header in words."""
    rates, streams = status.rates, status.streams
    since = "in 5 minutes" if status.uptime_s >= _ERRORS_OF_S else "since the start"
    first = ""
    if rates.first_token_p50_ms is not None:
        half, most = duration(rates.first_token_p50_ms), duration(rates.first_token_p95_ms)
        first = f" first token after {half} for half of the requests and {most} for 95 %,"
    count = streams.connecting + streams.waiting + streams.streaming
    line = (
        f"{clock(now_s)} now: {plural(count, 'open stream')},"
        f" {rate(rates.deltas_per_s)} tokens a second,{first} {plural(rates.errors_5m, 'error')} {since}."
    )
    for key in keys:
        if key.state is KeyState.RETIRING and key.expires_at:
            line += (
                f" The old key {key.id} of {key.client} ends in {countdown(epoch_s(key.expires_at) - now_s)}."
            )
    return line


def event_line(event: Event) -> str | None:
    """Return one event in words, or None for what line mode leaves out."""
    event = printable_struct(event)
    match event:
        case Ended():
            return ended_line(event.record)
        case Audited():
            entry = event.entry
            between = " in place of " if entry.action in {"rotate", "undo"} else ", "
            keys = f", key {between.join(entry.key_ids)}" if entry.key_ids else ""
            done = f"{entry.action} {entry.client or ''}".rstrip()
            return f"{clock(epoch_s(entry.at))} audit: {entry.login}: {done}, {entry.result}{keys}"
        case Lost():
            return f"{clock(epoch_s(event.at))} lost: {plural(event.count, 'record')}, {event.reason}"
        case Gap():
            return f"gap: events {event.first} to {event.last} are no longer kept"
        case _:
            return None


def run_plain(daemon: AbstractAsyncContextManager[AdminClient], out: TextIO) -> int:
    """Write lines until interrupted; returns 0 then, 1 if the reader of the lines is gone."""
    if isinstance(out, TextIOWrapper):
        out.reconfigure(encoding=TERMINAL.encoding)

    async def run() -> None:
        async with daemon as client:
            await while_read(out, run_lines(client, out))

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        # At exit, Python flushes what is left once more, and a failure of that is exit status 120.
        os.dup2(os.open(os.devnull, os.O_WRONLY), out.fileno())
    return 1


async def run_lines(client: AdminClient, out: TextIO) -> None:
    """Write lines until cancelled."""
    await _LineMode(client, out).run()


class _LineMode:
    """One run of line mode: which start of the daemon it follows, and what it last complained of."""

    def __init__(self, client: AdminClient, out: TextIO) -> None:
        self._client = client
        self._out = out
        self._boot_id = ""
        self._boots: set[str] = set()
        """Of the processes that have served without a moment in which none of them did."""
        self._problem = ""
        self._is_silent = False
        self._alerts: dict[str, Alert] = {}
        """Those that hold, as they were told."""
        self._live: set[str] = set()
        """The ids of the keys that worked when they were last looked at."""
        self._told_seq = -1
        """Up to where the log was when the figures were told last."""

    async def run(self) -> None:
        """Write lines until cancelled."""
        # No task group: a broken pipe must reach the caller as itself.
        watch = asyncio.create_task(self._watch(), name="plain-watch")
        try:
            await self._follow()
        finally:
            watch.cancel()
            with suppress(asyncio.CancelledError):
                await watch

    async def _follow(self) -> None:
        events = follow(self._client.events, on_trouble=self._complain, patient=True)
        async with aclosing(events):
            async for event in events:
                self._problem = ""
                if isinstance(event, Hello):
                    await self._greet(event)
                elif (line := event_line(event)) is not None:
                    self._write(line)

    async def _watch(self) -> None:
        """Tell what no event tells: that a key has ended, and that the daemon is silent."""
        for turn in itertools.count(1):
            await asyncio.sleep(_WATCH_EVERY_S)
            if not self._boot_id:
                continue
            try:
                # Not `wait_for`: it can miss that this task is cancelled (Python's issue 86296).
                async with asyncio.timeout(_SILENT_AFTER_S):
                    ring = await self._client.keys()
                    await self._note_boots()
                    status = await self._client.status()
            except TimeoutError:
                if not self._is_silent:
                    self._tell("no answer: the daemon says nothing; it may be stopped, or wait for its disk")
                self._is_silent = True
            except AdminClientError:
                # The stream of events says why the daemon can't be asked, and says it once.
                continue
            else:
                if self._is_silent:
                    self._tell("the daemon answers again")
                self._is_silent = False
                self._tell_ends(ring)
                self._tell_alerts(status)
                if turn % _FIGURES_EVERY == 0 and status.seq != self._told_seq:
                    self._tell_figures(status, ring)

    async def _note_boots(self) -> None:
        """Note which processes serve this relay. Raises AdminClientError."""
        live = {instance.boot_id for instance in (await self._client.instances()).instances}
        self._boots = still_serving(self._boots, live)

    def _tell_ends(self, ring: Ring) -> None:
        """Tell which keys have reached their end; the audit tells of those that were revoked."""
        keys = [printable_struct(key) for key in ring.keys]
        for key in keys:
            if key.id in self._live and key.state is KeyState.EXPIRED and key.expires_at:
                self._write(f"{clock(epoch_s(key.expires_at))} key ended: {key.id} of {key.client}")
        self._live = {key.id for key in keys if key.state in LIVE_STATES}

    def _tell_alerts(self, status: Status) -> None:
        """Tell which alerts have begun, and which are over."""
        alerts = {alert.id: printable_struct(alert) for alert in status.alerts}
        for alert in alerts.values():
            if alert.id not in self._alerts:
                self._write(f"{clock(epoch_s(alert.since))} alert: {alert.sentence}")
        if status.silent:
            # What an instance sees that does not answer may well hold.
            alerts = self._alerts | alerts
        for alert in self._alerts.values():
            if alert.id not in alerts:
                self._tell(f"alert over: {alert.sentence}")
        self._alerts = alerts

    async def _greet(self, hello: Hello) -> None:
        """Write the newest requests at the start; later, that the daemon is another one."""
        if not self._boot_id:
            try:
                status = printable_struct(await self._client.status())
                page = await self._client.requests(before=hello.seq + 1, limit=_BACKLOG)
                ring = await self._client.keys()
                self._tell_ends(ring)
                await self._note_boots()
            except AdminClientError as error:
                self._complain(error)
                return
            self._write(f"relayd {status.version} {status.intake.value} at {status.address}")
            for record in reversed(page.records):
                self._write(ended_line(printable_struct(record)))
            self._tell_figures(status, ring)
        elif hello.boot_id != self._boot_id:
            # The stream of events says it if there is no contact after all.
            with suppress(AdminClientError):
                await self._note_boots()
            if self._boot_id not in self._boots:
                self._tell("daemon restarted: what was open then is lost")
        self._boot_id = hello.boot_id

    def _complain(self, error: AdminClientError) -> None:
        """Say once why there is no contact, until there is contact again."""
        if str(error) != self._problem:
            self._problem = str(error)
            self._tell(f"no contact: {printable_text(self._problem, 500)}")

    def _tell_figures(self, status: Status, ring: Ring) -> None:
        self._told_seq = status.seq
        self._write(figures_line(status, map(printable_struct, ring.keys), time.time()))

    def _tell(self, news: str) -> None:
        """Write what happens now."""
        self._write(f"{clock(time.time())} {news}")

    def _write(self, line: str) -> None:
        self._out.write(TERMINAL.shown(line) + "\n")
        self._out.flush()
