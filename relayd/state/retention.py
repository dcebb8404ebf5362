"""Forgetting: old records go in small pieces, and the file stays within its bound."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

from relayd.state.database import side_files
from relayd.state.records import utc_text
from relayd.state.transactor import Transactor, Tx

CHUNK_ROWS = 500
CHUNK_PAGES = 512
SPARE_PAGES = 256
"""Free pages that stay in the file for what comes next."""
CHECKPOINT_BYTES = 4 * 1024 * 1024
AUDIT_DAYS = 365
"""Audit rows are few and outlive the records."""
IDEMPOTENCY_HOURS = 48
_DAY_S = 86_400
_FULL_PERCENT = 95


class Retention:
    """Chores that bound the log: by age, by size, and the WAL by checkpoints."""

    def __init__(self, path: Path, *, keep_days: int, max_mib: int, clock: Callable[[], float]) -> None:
        self._wal = side_files(path)[0]
        self._clock = clock
        self.keep(keep_days=keep_days, max_mib=max_mib)

    def keep(self, *, keep_days: int, max_mib: int) -> None:
        """How much is kept from now on. Any thread may say so; the next chore obeys."""
        self._keep_days = keep_days
        self._max_bytes = max_mib * 1024 * 1024

    def prune(self, transactor: Transactor) -> bool:
        """Remove one chunk of what is too old or too much; whether more waits."""
        is_too_big = used_bytes(transactor.connection) * 100 > self._max_bytes * _FULL_PERCENT
        before = None if is_too_big else utc_text(self._clock() - self._keep_days * _DAY_S)
        removed = transactor.run(lambda tx: remove_oldest(tx, before), durable=False)
        given_back = _give_back_pages(transactor.connection)
        return removed == CHUNK_ROWS or (is_too_big and removed > 0) or given_back

    def tidy(self, transactor: Transactor) -> bool:
        """Forget old audit rows and idempotency keys; whether more waits."""
        now_s = self._clock()
        audit_before = utc_text(now_s - max(AUDIT_DAYS, self._keep_days) * _DAY_S)
        replies_before = utc_text(now_s - IDEMPOTENCY_HOURS * 3600)

        def work(tx: Tx) -> bool:
            removed = tx.connection.execute(
                "DELETE FROM idempotency WHERE key IN"
                " (SELECT key FROM idempotency WHERE created_at < ? LIMIT ?)",
                (replies_before, CHUNK_ROWS),
            ).rowcount
            return remove_audit(tx, audit_before) == CHUNK_ROWS or removed == CHUNK_ROWS

        return transactor.run(work, durable=False)

    def checkpoint(self, transactor: Transactor) -> bool:
        """Move a grown WAL into the file, as far as no reader is in the way. Never more to do."""
        try:
            size = self._wal.stat().st_size
        except FileNotFoundError:
            return False
        if size >= CHECKPOINT_BYTES:
            transactor.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        return False


def remove_oldest(tx: Tx, before: str | None) -> int:
    """Remove up to 500 of the requests that ended first; with `before`, only those that started earlier.

    A request goes only when all that ended before it went, and `floor_seq` rises to its end: so the
    log has one beginning, and every event after the floor is still there. Open requests stay.
    """
    floor = tx.connection.execute(
        "WITH head AS (SELECT end_seq, started_at FROM requests WHERE end_seq IS NOT NULL"
        " ORDER BY end_seq LIMIT :chunk)"
        " SELECT max(end_seq) FROM head WHERE :before IS NULL OR end_seq <"
        " coalesce((SELECT min(end_seq) FROM head WHERE started_at >= :before), 9223372036854775807)",
        {"chunk": CHUNK_ROWS, "before": before},
    ).fetchone()[0]
    if floor is None:
        return 0
    removed = tx.connection.execute("DELETE FROM requests WHERE end_seq <= ?", (floor,)).rowcount
    tx.connection.execute("DELETE FROM lost WHERE seq <= ?", (floor,))
    _raise_floor(tx, floor)
    return removed


def remove_audit(tx: Tx, before: str) -> int:
    """Remove up to 500 audit rows from before a UTC time."""
    newest = tx.connection.execute(
        "SELECT max(seq) FROM (SELECT seq FROM audit WHERE at < ? ORDER BY seq LIMIT ?)", (before, CHUNK_ROWS)
    ).fetchone()[0]
    if newest is None:
        return 0
    removed = tx.connection.execute("DELETE FROM audit WHERE seq <= ? AND at < ?", (newest, before)).rowcount
    _raise_floor(tx, newest)
    return removed


def used_bytes(connection: sqlite3.Connection) -> int:
    """Bytes of the file that hold something."""
    pages = _pragma(connection, "page_count") - _pragma(connection, "freelist_count")
    return pages * _pragma(connection, "page_size")


def _raise_floor(tx: Tx, floor: int) -> None:
    tx.connection.execute("UPDATE meta SET value = max(value, ?) WHERE name = 'floor_seq'", (floor,))


def _give_back_pages(connection: sqlite3.Connection) -> bool:
    """Return some free pages to the file system; whether more could be."""
    spare = _pragma(connection, "freelist_count") - SPARE_PAGES
    if spare <= 0:
        return False
    # It gives a row without columns for each page, and execute() stops at the first one.
    connection.executescript(f"PRAGMA incremental_vacuum({min(spare, CHUNK_PAGES)})")
    return spare > CHUNK_PAGES


def _pragma(connection: sqlite3.Connection, name: str) -> int:
    value: int = connection.execute(f"PRAGMA {name}").fetchone()[0]
    return value
