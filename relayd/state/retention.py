"""Retention: old records go in small pieces, and the file stays within its bound."""

from __future__ import annotations

from collections.abc import Callable

from relayd.state.database import Database
from relayd.state.engine import Connection
from relayd.state.records import utc_text

CHUNK_ROWS = 500
AUDIT_DAYS = 365
"""Audit rows are few and outlive the records."""
IDEMPOTENCY_HOURS = 48
_DAY_S = 86_400
_FULL_PERCENT = 95


class Retention:
    """Bounds the log by age and by size. Tasks of the writer; each call removes one small piece."""

    def __init__(
        self, database: Database, *, keep_days: int, max_mib: int, clock: Callable[[], float]
    ) -> None:
        self._database = database
        self._clock = clock
        self.set_limits(keep_days=keep_days, max_mib=max_mib)

    def set_limits(self, *, keep_days: int, max_mib: int) -> None:
        """Set how much is kept from now on. Safe in any thread."""
        self._keep_days = keep_days
        self._max_bytes = max_mib * 1024 * 1024

    def prune_requests(self) -> float | None:
        """Remove requests that are too old or too much; return 0 if more wait, else None.

        Raises:
            EngineError: nothing is removed.
        """
        connection = self._database.connection
        is_too_big = connection.used_bytes() * 100 > self._max_bytes * _FULL_PERCENT
        before = None if is_too_big else self._ago(self._keep_days * _DAY_S)
        with self._database.transaction(durable=False) as transaction:
            transaction.lock()
            removed = _remove_requests(connection, before)
        has_more_pages = connection.give_back_space()
        return 0.0 if removed == CHUNK_ROWS or (is_too_big and removed) or has_more_pages else None

    def prune_audit(self) -> float | None:
        """Remove old audit rows and idempotency keys; return 0 if more wait, else None.

        Raises:
            EngineError: nothing is removed.
        """
        connection = self._database.connection
        with self._database.transaction(durable=False) as transaction:
            transaction.lock()
            keys = connection.execute(
                "DELETE FROM idempotency WHERE key IN"
                " (SELECT key FROM idempotency WHERE created_at < ? LIMIT ?)",
                (self._ago(IDEMPOTENCY_HOURS * 3600), CHUNK_ROWS),
            ).rowcount
            entries = _remove_audit(connection, self._ago(max(AUDIT_DAYS, self._keep_days) * _DAY_S))
        return 0.0 if CHUNK_ROWS in (keys, entries) else None

    def _ago(self, seconds: float) -> str:
        return utc_text(self._clock() - seconds)


def _remove_requests(connection: Connection, before: str | None) -> int:
    """Remove up to 500 of the requests that ended first; with `before`, only those that started earlier.

    Requests are removed in the order of their ends, and `floor_seq` rises to the last end removed: the
    log has one beginning, and every event after it is still there. Open requests stay.
    """
    floor = connection.execute(
        "WITH head AS (SELECT end_seq, started_at FROM requests WHERE end_seq IS NOT NULL"
        " ORDER BY end_seq LIMIT :chunk)"
        " SELECT max(end_seq) FROM head WHERE :before IS NULL OR end_seq <"
        " coalesce((SELECT min(end_seq) FROM head WHERE started_at >= :before), 9223372036854775807)",
        {"chunk": CHUNK_ROWS, "before": before},
    ).fetchone()[0]
    if floor is None:
        return 0
    removed = connection.execute("DELETE FROM requests WHERE end_seq <= ?", (floor,)).rowcount
    connection.execute("DELETE FROM lost WHERE seq <= ?", (floor,))
    _raise_floor(connection, floor)
    return removed


def _remove_audit(connection: Connection, before: str) -> int:
    """Remove up to 500 audit rows from before a UTC time."""
    newest = connection.execute(
        "SELECT max(seq) FROM (SELECT seq FROM audit WHERE at < ? ORDER BY seq LIMIT ?) AS oldest",
        (before, CHUNK_ROWS),
    ).fetchone()[0]
    if newest is None:
        return 0
    removed = connection.execute("DELETE FROM audit WHERE seq <= ? AND at < ?", (newest, before)).rowcount
    _raise_floor(connection, newest)
    return removed


def _raise_floor(connection: Connection, floor: int) -> None:
    connection.execute("UPDATE meta SET value = ? WHERE name = 'floor_seq' AND value < ?", (floor, floor))
