"""Which client made which stored object of the provider: a response, a conversation, a file."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from relayd.state.database import Database
from relayd.state.engine import Connection
from relayd.state.records import Client, utc_text

_STORED_WITHIN_S = 0.25
"""After an object was made, its owner is in the database: the time of a group and a commit, and some more."""
_KEPT = 2000
"""Owners in memory; most objects are used again within minutes."""
_CAPACITY = 10_000
_BATCH = 512
_MAX_ID_CHARS = 1000
"""No provider's are as long; an index of PostgreSQL could not take a much longer one."""
_RESPONSES_KEPT_S = 60 * 24 * 3600.0
"""OpenAI keeps responses for 30 days; conversations and files until they are deleted."""


class Owner(NamedTuple):
    """Who may use an object, and where it is."""

    client: str
    route: str | None
    """The provider's route that made it; None: there were no routes."""
    kind: str
    """The collection that it is in."""
    created_at: str
    """When the request that made it began."""

    def is_of(self, client: Client) -> bool:
        """Return whether it is this client, and not a removed one of the same name."""
        return self.client == client.name and self.created_at >= client.created_at


class StoredObjects:
    """Takes owners on the event loop and never waits; `write` puts them on disk on the writer's thread.

    An owner is known at once. If the disk refuses for so long that 10,000 wait, later ones are forgotten
    when newer ones come: their clients get 404.

    Args:
        wake: makes the writer call `write` soon.
        on_disk: returns the owner that the disk has; blocks.
        clock: returns the Unix time.
    """

    def __init__(
        self,
        database: Database,
        wake: Callable[[], None],
        on_disk: Callable[[str], Owner | None],
        clock: Callable[[], float],
    ) -> None:
        self._database = database
        self._wake = wake
        self._on_disk = on_disk
        self._clock = clock
        self._recent: OrderedDict[str, Owner] = OrderedDict()
        self._waiting: dict[str, Owner] = {}
        """Added on the event loop, removed by the writer: each step of a dict is atomic."""

    @property
    def is_shared(self) -> bool:
        """Return whether other processes may have made objects that are only in the database."""
        return self._database.is_shared

    def add(self, object_id: str, owner: Owner) -> None:
        """Note who made an object; the first owner of an id keeps it. A far too long id has no owner."""
        if len(object_id) > _MAX_ID_CHARS or self.recent(object_id) is not None:
            return
        self.keep(object_id, owner)
        if len(self._waiting) < _CAPACITY:
            self._waiting[object_id] = owner
            self._wake()

    def keep(self, object_id: str, owner: Owner) -> None:
        """Keep an owner in memory, for the next time."""
        # The writer may remove it between two steps.
        self._recent.pop(object_id, None)
        self._recent[object_id] = owner
        if len(self._recent) > _KEPT:
            self._recent.popitem(last=False)

    def recent(self, object_id: str) -> Owner | None:
        """Return the owner if it is in memory; else `look_up` may find it."""
        return self._waiting.get(object_id) or self._recent.get(object_id)

    async def look_up(self, object_id: str) -> Owner | None:
        """Return the owner that is on disk; None if no client of this relay made the object.

        Raises:
            StateError: it can't be read.
        """
        owner = await asyncio.to_thread(self._on_disk, object_id)
        if owner is None and self.is_shared:
            # Another instance may have made it a moment ago.
            await asyncio.sleep(_STORED_WITHIN_S)
            owner = await asyncio.to_thread(self._on_disk, object_id)
        return owner

    def write(self) -> float | None:
        """Commit what waits; return 0 if more does.

        Raises:
            EngineError: it waits on.
        """
        waiting = list(self._waiting.items())[:_BATCH]
        if waiting:
            with self._database.transaction(durable=False) as transaction:
                taken = [row for row in waiting if not _insert(transaction.connection, *row)]
            for object_id, _ in waiting:
                self._waiting.pop(object_id, None)
            for object_id, _ in taken:
                # From now on the disk is asked, which knows the first owner.
                self._recent.pop(object_id, None)
        return 0.0 if self._waiting else None

    def prune(self) -> None:
        """Remove the owners of responses that the provider no longer has.

        Raises:
            EngineError: nothing is removed.
        """
        oldest = utc_text(self._clock() - _RESPONSES_KEPT_S)
        with self._database.transaction(durable=False) as transaction:
            transaction.connection.execute(
                "DELETE FROM stored_objects WHERE kind = 'responses' AND created_at < ?", (oldest,)
            )


def _insert(connection: Connection, object_id: str, owner: Owner) -> bool:
    """Store an owner; return False if the disk knows one already."""
    row = (object_id, owner.client, owner.route, owner.kind, owner.created_at)
    statement = "INSERT INTO stored_objects VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"
    return connection.execute(statement, row).rowcount > 0
