"""Brings the daemon's news to the state: backlog, live events, reconnecting, and history from disk."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress

from relayd.admin.client import AdminClientError, Denied, NoDaemon, VersionMismatch
from relayd.admin.link import Link
from relayd.admin.schema import (
    Audited,
    Ended,
    Event,
    Gap,
    Hello,
    Lost,
    Progress,
    Started,
)
from tui.history import PAGE, PAUSE_S, History, Reader
from tui.model.app_state import AppState, Connection
from tui.model.store import Mark, MarkKind

STATUS_EVERY_S = 2.0
SKIP_EVENTS = 20_000
_RING_EVERY = 5
_BACKOFF_FIRST_S = 0.25
_BACKOFF_MAX_S = 5.0
_DOWN_AFTER_S = 2.0
_BUSY_SLICE_S = 0.004


class Feed:
    """The only writer of the state. `changed` is called after every change and must return at once."""

    def __init__(
        self,
        state: AppState,
        link: Link,
        *,
        changed: Callable[[], None],
        backlog_records: int,
        open_archive: Callable[[], Reader | None] | None = None,
    ) -> None:
        self.state = state
        self.link = link
        self._changed = changed
        self._backlog_records = backlog_records
        self._open_archive = open_archive
        self._archive: Reader | None = None
        self._down_since_s: float | None = None
        self._wake = asyncio.Event()
        self._look = asyncio.Event()
        self.history = History(state, lambda: self._archive or link, changed)

    async def run(self) -> None:
        """Follow the daemon until cancelled."""
        backoff_s = _BACKOFF_FIRST_S
        while True:
            self._wake.clear()
            try:
                await self._session()
                backoff_s = _BACKOFF_FIRST_S
                self._note(Connection.CONNECTING, "The daemon closed the connection.")
            except AdminClientError as error:
                if self.state.connection is Connection.LIVE:
                    backoff_s = _BACKOFF_FIRST_S
                await self._troubled(error)
            wait_s = backoff_s * random.uniform(0.75, 1.25)  # noqa: S311 - spreads reconnects, guards nothing
            with suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), wait_s)
            backoff_s = min(_BACKOFF_MAX_S, backoff_s * 2)

    async def close(self) -> None:
        """Let go of the database; `run` must have ended."""
        await self._close_archive()

    async def _close_archive(self) -> None:
        archive, self._archive = self._archive, None
        if archive is not None:
            await archive.close()

    def retry_now(self) -> None:
        """Do not wait for the backoff."""
        self._wake.set()

    def look_soon(self) -> None:
        """Ask for the status now, after a change of it."""
        self._look.set()

    def _note(self, contact: Connection, trouble: str = "") -> None:
        self.state.set_connection(contact, trouble)
        self._changed()

    async def _troubled(self, error: AdminClientError) -> None:
        if isinstance(error, Denied):
            self._note(Connection.DENIED, str(error))
        elif isinstance(error, VersionMismatch):
            self._note(Connection.MISMATCH, str(error))
            await self._read_archive()
        else:
            now_s = time.monotonic()
            first = self._down_since_s is None
            self._down_since_s = now_s if self._down_since_s is None else self._down_since_s
            never = self.state.log_seq is None
            down = never or not first or now_s - self._down_since_s > _DOWN_AFTER_S
            if down:
                self.state.open_streams.clear()
            self._note(Connection.DOWN if down else Connection.CONNECTING, str(error))
            if isinstance(error, NoDaemon) and down:
                await self._read_archive()

    async def _read_archive(self) -> None:
        if self._archive is not None or self._open_archive is None:
            return
        self._archive = self._open_archive()
        if self._archive is None:
            return
        try:
            await self._newest_page(self._archive)
            self.state.set_ring(await self._archive.keys())
            self.state.set_audit((await self._archive.audit(limit=PAGE)).entries)
        except AdminClientError as error:
            self._note(self.state.connection, f"{self.state.trouble} {error}")
        self._changed()

    async def _session(self) -> None:
        state, link = self.state, self.link
        status = await link.status()
        state.set_status(status)
        first = state.log_seq is None
        after = state.log_seq if state.log_seq is not None else status.seq
        if first:
            state.new_boot(status.boot_id, status.seq, 0)
            await self._newest_page(link)
            state.log_seq = status.seq
        elif status.seq - after > SKIP_EVENTS:
            await self._newest_page(link)
            after = status.seq
            state.log_seq = max(state.log_seq or 0, after)
        await self.refresh_ring()
        state.set_audit((await link.audit(limit=PAGE)).entries)
        self._down_since_s = None
        await self._close_archive()
        self._note(Connection.LIVE)
        helpers = [asyncio.create_task(self._poll(), name="tui-status")]
        if first:
            helpers.append(asyncio.create_task(self._load_backlog(), name="tui-backlog"))
        try:
            await self._follow(link.events(after))
        finally:
            for task in helpers:
                task.cancel()
            await asyncio.gather(*helpers, return_exceptions=True)

    async def _newest_page(self, reader: Reader) -> None:
        """The newest records; a mark before them where the ones that are held do not reach that far.

        Records that are held already are taken again: a crash or an end may have changed them.
        """
        held_to = self.state.store.newest_seq
        page = await reader.requests(limit=PAGE)
        self.state.backlog(page.records)
        fresh = [record.seq for record in page.records if held_to is not None and record.seq > held_to]
        all_fresh = bool(fresh) and len(fresh) == len(page.records) and page.next_before is not None
        if held_to is not None and all_fresh and fresh[-1] > held_to + 1:
            mark = Mark(MarkKind.GAP, 0, held_to + 1, fresh[-1] - 1)
            self.state.store.put_mark(fresh[-1], mark)

    async def _follow(self, events: AsyncIterator[Event]) -> None:
        slice_started_s = time.monotonic()
        async for event in events:
            await self._apply(event)
            self._changed()
            if time.monotonic() - slice_started_s > _BUSY_SLICE_S:
                await asyncio.sleep(0)
                slice_started_s = time.monotonic()

    async def _apply(self, event: Event) -> None:
        state = self.state
        match event:
            case Started():
                state.started(event)
            case Ended():
                state.ended(event)
            case Progress():
                state.progress(event)
            case Audited():
                state.audited(event)
                await self.refresh_ring()
            case Hello():
                state.new_boot(event.boot_id, (state.log_seq or event.seq) + 1, round(time.time() * 1000))
            case Gap():
                state.gap(event)
            case Lost():
                state.lost(event)

    async def _poll(self) -> None:
        for turn in itertools.count():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._look.wait(), STATUS_EVERY_S)
            self._look.clear()
            try:
                self.state.set_status(await self.link.status())
                # First and last uses move without an event: closely watched while a key retires.
                if self.state.retiring() or turn % _RING_EVERY == 0:
                    await self.refresh_ring()
            except AdminClientError:
                # The stream of events says it better, and says it once.
                continue
            self._changed()

    async def refresh_ring(self) -> None:
        """Look at the keys again."""
        self.state.set_ring(await self.link.keys())
        self._changed()

    async def _load_backlog(self) -> None:
        more = True
        while more and len(self.state.store) < self._backlog_records:
            more = await self.history.load_older()
            await asyncio.sleep(PAUSE_S)
