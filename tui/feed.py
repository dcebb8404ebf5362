"""Follows the daemon: connects, takes over what is new, and connects again."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING

import msgspec

from relayd.admin.client import (
    AdminClient,
    AdminClientError,
    Backoff,
    Denied,
    NoDaemon,
    Refused,
    Unreachable,
    VersionMismatch,
)
from relayd.admin.schema import (
    Audited,
    Ended,
    Event,
    Gap,
    Hello,
    KeyInfo,
    Lost,
    Progress,
    Started,
    Status,
    Usage,
    utc_text,
)
from tui.history import PAGE, PAUSE_S, History, Reader
from tui.model.app_state import AppState, Connection
from tui.model.store import Mark, MarkKind
from tui.model.text import printable_struct
from tui.model.units import clock

if TYPE_CHECKING:
    # Loads SQLite, which the first paint does not wait for.
    from relayd.admin.archive import Archive

STATUS_EVERY_S = 2.0
STALE_AFTER_S = 3.0
"""A daemon that says nothing for so long may be stopped, or wait for its disk."""
SILENCE = "It may be stopped, or wait for its disk."
_PUNCTUAL_S = 0.5
"""A timer that is later than this tells that the app was stopped, or busy."""
SKIP_EVENTS = 20_000
"""More missed events than these are not replayed: the newest records are loaded instead."""
_RING_EVERY = 5
_DOWN_AFTER_S = 2.0
_SETTLES_S = 60.0
"""So long after its socket a daemon that stops may still write: until then the database is read again."""
_BUSY_SLICE_S = 0.004
_MINUTE_S = 60


class Feed:
    """The only writer of the app's state.

    Args:
        state: what the app knows.
        client: the daemon.
        changed: called after every change; must return at once.
        backlog_records: how many of the newest records are loaded at the start.
        open_archive: opens the database of the daemon, given its last status, if there is a file.
        stale_after_s: how long the daemon may say nothing.
        silence: what may have happened to a daemon that says nothing, as a sentence.
        other_database: called when the daemon has another database than before; must return at once.
    """

    def __init__(  # noqa: PLR0913 - what the app decides about it, and what it tells the app
        self,
        state: AppState,
        client: AdminClient,
        *,
        changed: Callable[[], None],
        backlog_records: int,
        open_archive: Callable[[Status | None], Archive | None] | None = None,
        stale_after_s: float = STALE_AFTER_S,
        silence: str = SILENCE,
        other_database: Callable[[], None] = lambda: None,
    ) -> None:
        self._silence = silence
        self._other_database = other_database
        self.history = History(state, lambda: self._archive or client, changed)
        self._state = state
        self._client = client
        self._changed = changed
        self._backlog_records = backlog_records
        self._open_archive = open_archive
        self._stale_after_s = stale_after_s
        self._archive: Archive | None = None
        self._down_since_s: float | None = None
        self.clients_in_sight = False
        """Set by the screen that shows the clients, each time it draws them: they are then asked for soon."""
        self.instances_in_sight = False
        """The same for the screen that shows the instances."""
        self._retry = asyncio.Event()
        self._poll_now = asyncio.Event()
        self._ring_asked_at: tuple[object, ...] = ()
        """What had been used when keys and clients were asked for last."""
        self._heard_s: float | None = None
        """When the daemon was last heard, or first asked; None while it is not asked."""
        self._before_silence = (Connection.CONNECTING, "")

    async def run(self) -> None:
        """Follow the daemon until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._watch(), name="tui-watch")
            await self._connect_again_and_again()

    async def _connect_again_and_again(self) -> None:
        backoff = Backoff()
        while True:
            self._retry.clear()
            self._heard_s = time.monotonic()
            error = await self._session()
            self._heard_s = None
            if self._state.connection is Connection.LIVE:
                backoff.reset()
            await self._disconnected(error)
            with suppress(TimeoutError):
                async with asyncio.timeout(backoff.next_s()):
                    await self._retry.wait()

    async def close(self) -> None:
        """Close the database, if it was opened."""
        archive, self._archive = self._archive, None
        self._state.reads_disk = False
        if archive is not None:
            await archive.close()

    def retry_now(self) -> None:
        """Connect now instead of after the backoff."""
        self._client.retry_now()
        self._retry.set()

    def look_soon(self) -> None:
        """Ask for the status now, after a change of it."""
        self._poll_now.set()

    async def refresh_ring(self) -> None:
        """Ask for the keys and the clients.

        Raises:
            AdminClientError: the daemon could not be asked.
        """
        self._state.set_ring(await self._client.keys())
        self._state.set_clients(await self._client.clients())
        self._changed()

    async def refresh_configuration(self) -> None:
        """Ask for the settings in force.

        Raises:
            AdminClientError: the daemon could not be asked.
        """
        self._state.set_configuration(await self._client.configuration())
        self._changed()

    async def find_key(self, digest: str) -> KeyInfo | None:
        """Return the key with this digest, from the daemon, or its database while it is down.

        Raises:
            AdminClientError: neither could be asked.
        """
        found = await (self._archive or self._client).find_key(digest)
        return None if found is None else printable_struct(found)

    async def refresh_alerts(self) -> None:
        """Ask for the alerts that are over; the status has those that hold.

        Raises:
            AdminClientError: the daemon could not be asked.
        """
        alerts = await self._client.alerts()
        self._state.alerts.add_past(map(printable_struct, alerts.past))
        self._changed()

    async def refresh_key_use(self, key_id: str, since_day: str) -> None:
        """Ask who used a key, over the whole log, and how much each day from this one on.

        Raises:
            AdminClientError: neither the daemon nor its database could be asked.
        """
        outdated_s = self._state.evidence.outdated_s(key_id)
        since = None if outdated_s is None else utc_text(outdated_s)
        users = await (self._archive or self._client).key_users(key_id, since=since)
        by_day = await self.usage("day", since=since_day, key=key_id)
        self._state.set_key_use(key_id, users, by_day)
        self._changed()

    async def refresh_usage(self, client: str, since: str) -> None:
        """Ask what a client used each day, from this day on.

        Raises:
            AdminClientError: the daemon could not be asked.
        """
        self._state.set_usage(client, await self._client.usage("day", since=since, client=client))
        self._changed()

    async def usage(
        self,
        by: str,
        *,
        since: str | None = None,
        until: str | None = None,
        client: str | None = None,
        key: str | None = None,
        model: str | None = None,
    ) -> Usage:
        """Return what was used, from the daemon, or its database while it is down; names are as they came.

        Raises:
            AdminClientError: neither could be asked.
        """
        reader = self._archive or self._client
        return await reader.usage(by, since=since, until=until, client=client, key=key, model=model)

    def _set_connection(self, connection: Connection, problem: str = "") -> None:
        self._state.set_connection(connection, problem)
        self._changed()

    # Silence.

    async def _watch(self) -> None:
        """Call the daemon stale when it is asked and says nothing."""
        while True:
            heard_s = self._heard_s
            if heard_s is None or self._state.connection is Connection.STALE:
                await asyncio.sleep(_PUNCTUAL_S)
                continue
            due_s = heard_s + self._stale_after_s
            await asyncio.sleep(due_s - time.monotonic())
            now_s = time.monotonic()
            if self._heard_s != heard_s:
                continue
            if now_s - due_s > _PUNCTUAL_S:
                # What the daemon said meanwhile is not read yet.
                self._heard_s = now_s
                continue
            self._before_silence = (self._state.connection, self._state.problem)
            self._state.silent_since_s = time.time() - (now_s - heard_s)
            since = clock(self._state.silent_since_s)
            self._set_connection(
                Connection.STALE, f"The daemon has said nothing since {since}. {self._silence}"
            )

    def _heard(self) -> None:
        self._heard_s = time.monotonic()
        if self._state.connection is Connection.STALE:
            self._set_connection(*self._before_silence)

    # No connection.

    async def _disconnected(self, error: AdminClientError) -> None:
        """Say why there is no connection, and read history from the database meanwhile."""
        is_contact_lost = isinstance(error, Denied | VersionMismatch | NoDaemon | Unreachable)
        if self._state.connection is Connection.STALE and not is_contact_lost:
            # Silent still: the next attempt says more.
            return
        if isinstance(error, Denied):
            self._set_connection(Connection.DENIED, str(error))
        elif isinstance(error, VersionMismatch):
            self._set_connection(Connection.MISMATCH, str(error))
            await self._read_archive()
        elif not isinstance(error, Refused | Unreachable) and self._is_down():
            self._state.open_streams.clear()
            self._set_connection(Connection.DOWN, str(error))
            if isinstance(error, NoDaemon):
                await self._read_archive()
        else:
            self._set_connection(Connection.CONNECTING, str(error))

    def _is_down(self) -> bool:
        """Return whether this is more than a short break, such as a restart makes."""
        now_s = time.monotonic()
        is_first = self._down_since_s is None
        self._down_since_s = now_s if self._down_since_s is None else self._down_since_s
        never_connected = self._state.log_seq is None
        return never_connected or not is_first or now_s - self._down_since_s > _DOWN_AFTER_S

    async def _read_archive(self) -> None:
        if self._archive is None:
            self._archive = self._open_archive(self._state.status) if self._open_archive is not None else None
            self._state.reads_disk = self._archive is not None
        elif self._down_since_s is None or time.monotonic() - self._down_since_s > _SETTLES_S:
            return
        if self._archive is None:
            return
        try:
            await self._load_newest(self._archive)
            self._state.set_ring(await self._archive.keys())
            self._state.set_audit(await self._archive.audit(limit=PAGE))
        except AdminClientError as error:
            self._set_connection(self._state.connection, f"{self._state.problem} {error}")
        self._changed()

    # A connection.

    async def _session(self) -> AdminClientError:
        """Connect and follow; return why that ended."""
        try:
            after = await self._catch_up()
        except AdminClientError as error:
            return error
        await self.close()
        ended = AdminClientError("The daemon closed the connection.")
        async with asyncio.TaskGroup() as helpers:
            tasks = [
                helpers.create_task(self._poll(), name="tui-status"),
                helpers.create_task(self._load_backlog(), name="tui-backlog"),
            ]
            try:
                async with aclosing(self._client.events(after)) as events:
                    await self._follow(events)
            except AdminClientError as error:
                ended = error
            for task in tasks:
                task.cancel()
        return ended

    async def _catch_up(self) -> int:
        """Load what is needed at once; return where events begin."""
        state = self._state
        status = await self._client.status()
        self._heard()
        if await self._is_of_other_database(status):
            self._other_database()
            raise Unreachable("The daemon has another database than before: what is shown is of the old one.")
        state.set_status(status)
        # Which of them lived on tells whether the daemon was restarted.
        with suppress(Refused):
            state.set_instances(await self._client.instances())
        after = state.log_seq
        if after is None:
            state.new_boot(status.boot_id, status.seq, 0)
        if after is None or status.seq - after > SKIP_EVENTS:
            await self._load_newest(self._client)
            after = status.seq
            state.log_seq = max(state.log_seq or 0, after)
        await self.refresh_ring()
        state.set_audit(await self._client.audit(limit=PAGE))
        return after

    async def _is_of_other_database(self, status: Status) -> bool:
        """Return whether the database was replaced, or is an older copy of it.

        Of several instances one may know less of the log than another: then only the keys tell. At the first
        connection nothing is known, and nothing is asked.
        """
        state = self._state
        is_alone = not state.is_shared and status.instances.live <= 1
        if is_alone and state.log_seq is not None and status.seq < state.log_seq:
            return True
        known = {key.id for key in state.ring.keys}
        return bool(known) and known.isdisjoint(key.id for key in (await self._client.keys()).keys)

    async def _load_newest(self, reader: Reader) -> None:
        """Load the newest records; a mark before them says that older ones are missing between.

        Records that are held already are taken again: a crash or an end may have changed them.
        """
        store = self._state.store
        held_to = store.newest_seq
        page = await reader.requests(limit=PAGE)
        self._state.backlog(page.records)
        if held_to is None or page.next_before is None or not page.records:
            return
        first = page.records[-1].seq
        if first > held_to + 1:
            store.put_mark(first, Mark(MarkKind.GAP, 0, held_to + 1, first - 1))

    async def _follow(self, events: AsyncIterator[Event]) -> None:
        slice_started_s = time.monotonic()
        async for event in events:
            self._heard()
            await self._apply(event)
            self._changed()
            if time.monotonic() - slice_started_s > _BUSY_SLICE_S:
                await asyncio.sleep(0)
                slice_started_s = time.monotonic()

    async def _apply(self, event: Event) -> None:
        state = self._state
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
                self._down_since_s = None
                self._set_connection(Connection.LIVE)
                state.new_boot(event.boot_id, (state.log_seq or event.seq) + 1, round(time.time() * 1000))
            case Gap():
                state.gap(event)
            case Lost():
                state.lost(event)

    async def _poll(self) -> None:
        for turn in itertools.count():
            with suppress(TimeoutError):
                async with asyncio.timeout(STATUS_EVERY_S):
                    await self._poll_now.wait()
            self._poll_now.clear()
            # The stream of events says why the daemon can't be asked, and says it once.
            with suppress(AdminClientError):
                status = await self._client.status()
                self._heard()
                before = self._state.status
                self._state.set_status(status)
                # Uses move without an event: closely watched while a key retires, or in sight.
                is_watched = bool(self._state.retiring()) or self.clients_in_sight
                self.clients_in_sight = False
                moved = self._state.is_shared or self._ring_asked_at != _use_mark(status)
                if (is_watched and moved) or turn % _RING_EVERY == 0:
                    self._ring_asked_at = _use_mark(status)
                    await self.refresh_ring()
                if self._state.is_shared or self.instances_in_sight:
                    self.instances_in_sight = False
                    self._state.set_instances(await self._client.instances())
                if before is None or _lasting(before) != _lasting(self._state.status or status):
                    self._changed()

    async def _load_backlog(self) -> None:
        more = True
        while more and len(self._state.store) < self._backlog_records:
            more = await self.history.load_older()
            await asyncio.sleep(PAUSE_S)


def _use_mark(status: Status) -> tuple[object, ...]:
    """Return what moves whenever the use of a key or a client does, or its minute is over."""
    return status.seq, status.today, status.log, status.streams, status.ring, int(time.time()) // _MINUTE_S


def _lasting(status: Status) -> Status:
    """Return the status without what moves by itself, which is drawn each second anyway."""
    engine = msgspec.structs.replace(status.engine, latency_ms=None)
    return msgspec.structs.replace(status, uptime_s=0, disk=None, engine=engine)
