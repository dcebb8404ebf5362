"""The log, read: pages, single records, replay of events, audit, keys and history.

Everything here blocks on the disk: call it in a worker thread. It needs only the file, so it also
works while the daemon is down.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

from relayd.state import queries
from relayd.state.database import Connect
from relayd.state.events import Gap, LogEvent
from relayd.state.filter import Filter
from relayd.state.history import History, read_history
from relayd.state.pool import ReadPool
from relayd.state.records import AuditEntry, KeyInfo, RequestRecord, utc_text
from relayd.state.ringstore import load_ring
from relayd.state.stored import INT_MAX, storable_text

MAX_ROWS = 10_000
"""The most that one call returns, whatever the caller asks for."""

_record = msgspec.json.Decoder(RequestRecord)
_records = msgspec.json.Decoder(list[RequestRecord])
_entries = msgspec.json.Decoder(list[AuditEntry])
_events = msgspec.json.Decoder(list[LogEvent])


@dataclass(frozen=True, slots=True)
class RecordPage:
    """Records, newest first; `next_before` asks for older ones, None at the end."""

    records: list[RequestRecord]
    next_before: int | None


@dataclass(frozen=True, slots=True)
class AuditRows:
    """Audit entries, newest first; `next_before` asks for older ones, None at the end."""

    entries: list[AuditEntry]
    next_before: int | None


class LogReader:
    """Reads one `relayd.db` over a few read-only connections; every method may run in any thread.

    Every method may raise `StateError`.
    """

    def __init__(
        self,
        path: Path,
        connect: Connect = sqlite3.connect,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.path = path
        self._clock = clock
        self._pool = ReadPool(path, connect)

    def page(
        self,
        where: Filter | None = None,
        *,
        after: int | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> RecordPage:
        """Records with `after < seq < before` that pass the filter, newest first."""
        clause, values = ("1", []) if where is None else where.sql()
        count = _bounded(limit)
        low, high = _place(after, 0), _place(before, INT_MAX)
        text = self._one(queries.page(clause), [low, high, *values, count + 1])
        records = sorted(_records.decode(text), key=lambda record: -record.seq)
        more = len(records) > count
        return RecordPage(records[:count], records[count - 1].seq if more else None)

    def get(self, request_id: str) -> RequestRecord | None:
        """One record."""
        with self._pool.connection() as connection:
            row = connection.execute(queries.ONE, [storable_text(request_id)]).fetchone()
        return None if row is None else _record.decode(row[0])

    def events(self, after: int, limit: int = 1000) -> list[LogEvent | Gap]:
        """What followed `after`, in order; a `Gap` first where retention removed some of it."""
        after = _place(after, 0)
        with self._pool.connection() as connection:
            row = connection.execute(queries.EVENTS, {"after": after, "limit": _bounded(limit)}).fetchone()
        floor: int = row[0]
        events: list[LogEvent] = sorted(_events.decode(row[1]), key=lambda event: event.seq)
        return [Gap(after + 1, floor), *events] if floor > after else [*events]

    def newest_seq(self) -> int:
        """The newest place in the log; 0 when it is empty."""
        with self._pool.connection() as connection:
            newest: int = connection.execute(f"SELECT {queries.NEWEST}").fetchone()[0]
        return newest

    def audit(self, *, before: int | None = None, limit: int = 100) -> AuditRows:
        """What operators did, newest first."""
        count = _bounded(limit)
        text = self._one(queries.AUDIT, [_place(before, INT_MAX), count + 1])
        entries = sorted(_entries.decode(text), key=lambda entry: -entry.seq)
        more = len(entries) > count
        return AuditRows(entries[:count], entries[count - 1].seq if more else None)

    def keys(self) -> tuple[int, list[KeyInfo]]:
        """The generation of the ring and its keys, as they are on disk."""
        with self._pool.connection() as connection:
            ring = load_ring(connection)
        now = utc_text(self._clock())
        return ring.generation, [key.info(now) for key in ring.keys]

    def buckets(self, since: str, bucket_s: int, where: Filter | None = None) -> History:
        """Figures since a UTC time: for each bucket of time, by model and by client."""
        with self._pool.connection() as connection:
            return read_history(connection, since, bucket_s, where)

    def close(self) -> None:
        """Close all connections; a call that is under way finishes."""
        self._pool.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _one(self, query: str, parameters: list[object]) -> str:
        with self._pool.connection() as connection:
            text: str = connection.execute(query, parameters).fetchone()[0]
        return text


def _bounded(limit: int) -> int:
    return max(1, min(limit, MAX_ROWS))


def _place(seq: int | None, default: int) -> int:
    return default if seq is None else max(0, min(seq, INT_MAX))
