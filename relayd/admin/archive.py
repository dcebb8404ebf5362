"""The daemon's log and keys, read from its database while no daemon answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar

import msgspec

from relayd.admin.client import AdminClientError, Refused
from relayd.admin.schema import (
    AuditPage,
    FilterError,
    KeyInfo,
    KeyUsers,
    RequestPage,
    RequestRecord,
    Ring,
    Usage,
    UsageRow,
    UsageSums,
    parse_filter,
)
from relayd.state.calendar import local_date
from relayd.state.errors import StateError
from relayd.state.reader import LogReader
from relayd.state.sqlite import Sqlite

T = TypeVar("T")


class Archive:
    """The reading methods of `AdminClient`, on the database file. Every method may raise `AdminClientError`.

    Args:
        database: path of `relayd.db`; it is opened at the first question, read-only.
    """

    def __init__(self, database: Path) -> None:
        self.database = database
        self._reader = LogReader(Sqlite(database))
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="archive")

    async def requests(
        self, *, where: str = "", after: int | None = None, before: int | None = None, limit: int = 100
    ) -> RequestPage:
        """Return records with `after < seq < before` that pass the filter, newest first."""
        try:
            chosen = parse_filter(where)
        except FilterError as error:
            raise Refused(HTTPStatus.BAD_REQUEST, "bad_filter", str(error)) from error
        return await self._read(lambda: self._reader.page(chosen, after=after, before=before, limit=limit))

    async def request(self, request_id: str) -> RequestRecord:
        """Return one record."""
        record = await self._read(lambda: self._reader.get(request_id))
        if record is None:
            raise Refused(HTTPStatus.NOT_FOUND, "no_such_request", f"The log has no request {request_id}.")
        return record

    async def audit(self, *, before: int | None = None, limit: int = 100) -> AuditPage:
        """Return what operators did, newest first."""
        return await self._read(lambda: self._reader.audit(before=before, limit=limit))

    async def keys(self) -> Ring:
        """Return the key ring as it was when the daemon stopped."""
        return Ring(*await self._read(self._reader.keys))

    async def find_key(self, digest: str) -> KeyInfo | None:
        """Return the key with this SHA-256 digest (hexadecimal), live or dead; None if there is none."""
        return await self._read(lambda: self._reader.find_key(bytes.fromhex(digest)))

    async def key_users(self, key_id: str, *, since: str | None = None) -> KeyUsers:
        """Return who used a key, the latest first; `since` (UTC) is that of `KeyUser.requests_since`."""
        return await self._read(lambda: self._reader.key_users(key_id, since=since or ""))

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
        """Return usage by `client`, `model`, `day` or `key`, as `AdminClient.usage`."""
        today = local_date(time.time())
        first = today.replace(day=1) if since is None else date.fromisoformat(since)
        last = today if until is None else date.fromisoformat(until)
        rows, total = await self._read(
            lambda: self._reader.usage(by, since=first, until=last, client=client, key=key, model=model)
        )
        return Usage(
            by,
            f"{first}",
            f"{last}",
            msgspec.json.decode(rows, type=list[UsageRow]),
            msgspec.json.decode(total, type=UsageSums),
        )

    async def close(self) -> None:
        """Interrupt the query under way, and release the file."""
        self._reader.close()
        await asyncio.to_thread(self._thread.shutdown)

    async def _read(self, question: Callable[[], T]) -> T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, question)
        except StateError as error:
            raise AdminClientError(str(error)) from error
