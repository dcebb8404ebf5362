"""Older records: brought from the daemon, or from its database where no daemon answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

from relayd.admin.client import AdminClient, AdminClientError
from relayd.admin.schema import RequestRecord
from tui.model.app_state import AppState
from tui.model.store import Mark, MarkKind
from tui.model.text import printable_struct

if TYPE_CHECKING:
    # Loads SQLite, which the first paint does not wait for.
    from relayd.admin.archive import Archive

Reader: TypeAlias = "AdminClient | Archive"
"""Whatever has the records now: the daemon, or its database while no daemon answers."""
PAGE = 500
_SLICE = 100
PAUSE_S = 0.002
"""Pause between two pages, so that live updates continue."""


class History:
    """Writes older records to the state.

    Args:
        state: where they go.
        reader: who has them now.
        changed: called after every change; must return at once.
    """

    def __init__(self, state: AppState, reader: Callable[[], Reader], changed: Callable[[], None]) -> None:
        self.state = state
        self._reader = reader
        self._changed = changed
        self.exhausted = False
        """True when the disk has no older records than the store."""
        self.counted_all = False
        """True when the statistics have every record on disk."""
        self._loading = asyncio.Lock()

    def reaches_back(self, to_s: float) -> bool:
        """Return whether the statistics have every record from this time on."""
        oldest_s = self.state.stats.oldest_s
        return self.exhausted or self.counted_all or (oldest_s is not None and oldest_s <= to_s)

    async def load_older(self) -> bool:
        """Load one more page of older records; returns False if there are none, or no room."""
        state = self.state
        async with self._loading:
            if self.exhausted or len(state.store) >= state.store.keep:
                return False
            try:
                page = await self._reader().requests(before=state.store.oldest_seq, limit=PAGE)
            except AdminClientError:
                return False
            await self._take(page.records, count=True)
            self.exhausted = page.next_before is None
            self._changed()
            return not self.exhausted

    async def _take(self, records: list[RequestRecord], *, count: bool) -> None:
        """Store a page in slices, so that a key press never waits for all of them."""
        for start in range(0, len(records), _SLICE):
            self.state.backlog(records[start : start + _SLICE], count=count)
            await asyncio.sleep(0)

    async def load_older_matches(self) -> None:
        """Ask for one more page of records older than the store that pass the view's filter.

        Raises:
            AdminClientError: the daemon could not be asked.
        """
        view, store = self.state.view, self.state.store
        asked = view.filter
        if self.exhausted:
            view.asked_all = True
            self._changed()
        if asked is None or view.asked_all:
            return
        before = store.oldest_seq if view.asked_to is None else view.asked_to
        page = await self._reader().requests(where=asked.text, before=before, limit=PAGE)
        if view.filter is asked:
            view.add_older([printable_struct(record) for record in page.records], page.next_before)
            self._changed()

    async def load_older_audit(self) -> None:
        """Load one more page of older audit entries.

        Raises:
            AdminClientError: the daemon could not be asked.
        """
        state = self.state
        if state.audit_complete or not state.audit:
            return
        before = state.audit[-1].seq
        try:
            page = await self._reader().audit(before=before, limit=PAGE)
        except AdminClientError:
            # The next connection tries again.
            state.audit_complete = True
            raise
        # Meanwhile the newest page may have been loaded anew.
        if state.audit and state.audit[-1].seq == before:
            state.add_older_audit(page)
            self._changed()

    async def load_one(self, request_id: str) -> int:
        """Load one record that is older than the store; returns its `seq`.

        Raises:
            AdminClientError: the daemon could not be asked, or has no such record.
        """
        state = self.state
        record = await self._reader().request(request_id)
        oldest = state.store.oldest_seq
        state.backlog([record], count=False)
        if oldest is not None and record.seq + 1 < oldest:
            state.store.put_mark(oldest, Mark(MarkKind.GAP, 0, record.seq + 1, oldest - 1))
        self._changed()
        return record.seq

    async def count_history(self, since_s: float) -> None:
        """Count older records for the statistics, without keeping them, back to a time.

        Raises:
            AdminClientError: the daemon could not be asked.
        """
        stats = self.state.stats
        while not self.counted_all and stats.oldest_s is not None and stats.oldest_s > since_s:
            page = await self._reader().requests(before=stats.counted_from, limit=PAGE)
            for start in range(0, len(page.records), _SLICE):
                for record in page.records[start : start + _SLICE]:
                    stats.add(printable_struct(record))
                await asyncio.sleep(0)
            self.counted_all = page.next_before is None
            self._changed()
            await asyncio.sleep(PAUSE_S)

    async def fill_gap(self, key: int, mark: Mark) -> int:
        """Load what a gap hides, newest first; returns the number of records.

        Raises:
            AdminClientError: the daemon could not be asked; the gap stays.
        """
        before: int | None = mark.last + 1
        came = 0
        while before is not None:
            page = await self._reader().requests(after=mark.first - 1, before=before, limit=PAGE)
            await self._take(page.records, count=False)
            came += len(page.records)
            before = page.next_before
            self._changed()
        self.state.store.remove_mark(key)
        self._changed()
        return came
