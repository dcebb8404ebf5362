"""Brings the daemon's news to the desk: backlog, live events, reconnecting, and history from disk."""

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
from tui.model.desk import Contact, Desk
from tui.model.marks import Mark, MarkKind

STATUS_EVERY_S = 2.0
SKIP_EVENTS = 20_000
_RING_EVERY = 5
_BACKOFF_FIRST_S = 0.25
_BACKOFF_MAX_S = 5.0
_DOWN_AFTER_S = 2.0
_BUSY_SLICE_S = 0.004


class Feed:
    """The only writer of the desk. `changed` is called after every change and must return at once."""

    def __init__(
        self,
        desk: Desk,
        link: Link,
        *,
        changed: Callable[[], None],
        backlog_records: int,
        open_archive: Callable[[], Reader | None] | None = None,
    ) -> None:
        self.desk = desk
        self.link = link
        self._changed = changed
        self._backlog_records = backlog_records
        self._open_archive = open_archive
        self._archive: Reader | None = None
        self._down_since_s: float | None = None
        self._wake = asyncio.Event()
        self._look = asyncio.Event()
        self.history = History(desk, lambda: self._archive or link, changed)

    async def run(self) -> None:
        """Follow the daemon until cancelled."""
        backoff_s = _BACKOFF_FIRST_S
        while True:
            self._wake.clear()
            try:
                await self._session()
                backoff_s = _BACKOFF_FIRST_S
                self._note(Contact.CONNECTING, "The daemon closed the connection.")
            except AdminClientError as error:
                if self.desk.contact is Contact.LIVE:
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

    def _note(self, contact: Contact, trouble: str = "") -> None:
        self.desk.set_contact(contact, trouble)
        self._changed()

    async def _troubled(self, error: AdminClientError) -> None:
        if isinstance(error, Denied):
            self._note(Contact.DENIED, str(error))
        elif isinstance(error, VersionMismatch):
            self._note(Contact.MISMATCH, str(error))
            await self._read_archive()
        else:
            now_s = time.monotonic()
            first = self._down_since_s is None
            self._down_since_s = now_s if self._down_since_s is None else self._down_since_s
            never = self.desk.log_seq is None
            down = never or not first or now_s - self._down_since_s > _DOWN_AFTER_S
            if down:
                self.desk.live.clear()
            self._note(Contact.DOWN if down else Contact.CONNECTING, str(error))
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
            self.desk.set_ring(await self._archive.keys())
            self.desk.set_audit((await self._archive.audit(limit=PAGE)).entries)
        except AdminClientError as error:
            self._note(self.desk.contact, f"{self.desk.trouble} {error}")
        self._changed()

    async def _session(self) -> None:
        desk, link = self.desk, self.link
        status = await link.status()
        desk.set_status(status)
        first = desk.log_seq is None
        after = desk.log_seq if desk.log_seq is not None else status.seq
        if first:
            desk.new_boot(status.boot_id, status.seq, 0)
            await self._newest_page(link)
            desk.log_seq = status.seq
        elif status.seq - after > SKIP_EVENTS:
            await self._newest_page(link)
            after = status.seq
            desk.log_seq = max(desk.log_seq or 0, after)
        await self.refresh_ring()
        desk.set_audit((await link.audit(limit=PAGE)).entries)
        self._down_since_s = None
        await self._close_archive()
        self._note(Contact.LIVE)
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
        held_to = self.desk.store.newest_seq
        page = await reader.requests(limit=PAGE)
        self.desk.backlog(page.records)
        fresh = [record.seq for record in page.records if held_to is not None and record.seq > held_to]
        all_fresh = bool(fresh) and len(fresh) == len(page.records) and page.next_before is not None
        if held_to is not None and all_fresh and fresh[-1] > held_to + 1:
            mark = Mark(MarkKind.GAP, 0, held_to + 1, fresh[-1] - 1)
            self.desk.store.put_mark(fresh[-1], mark)

    async def _follow(self, events: AsyncIterator[Event]) -> None:
        slice_started_s = time.monotonic()
        async for event in events:
            await self._apply(event)
            self._changed()
            if time.monotonic() - slice_started_s > _BUSY_SLICE_S:
                await asyncio.sleep(0)
                slice_started_s = time.monotonic()

    async def _apply(self, event: Event) -> None:
        desk = self.desk
        match event:
            case Started():
                desk.started(event)
            case Ended():
                desk.ended(event)
            case Progress():
                desk.progress(event)
            case Audited():
                desk.audited(event)
                await self.refresh_ring()
            case Hello():
                desk.new_boot(event.boot_id, (desk.log_seq or event.seq) + 1, round(time.time() * 1000))
            case Gap():
                desk.gap(event)
            case Lost():
                desk.lost(event)

    async def _poll(self) -> None:
        for turn in itertools.count():
            with suppress(TimeoutError):
                await asyncio.wait_for(self._look.wait(), STATUS_EVERY_S)
            self._look.clear()
            try:
                self.desk.set_status(await self.link.status())
                # First and last uses move without an event: closely watched while a key retires.
                if self.desk.retiring() or turn % _RING_EVERY == 0:
                    await self.refresh_ring()
            except AdminClientError:
                # The stream of events says it better, and says it once.
                continue
            self._changed()

    async def refresh_ring(self) -> None:
        """Look at the keys again."""
        self.desk.set_ring(await self.link.keys())
        self._changed()

    async def _load_backlog(self) -> None:
        more = True
        while more and len(self.desk.store) < self._backlog_records:
            more = await self.history.load_older()
            await asyncio.sleep(PAUSE_S)
