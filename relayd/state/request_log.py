"""The request log: queued on the event loop without waiting, committed in groups by the writer."""

from __future__ import annotations

import copy
import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from enum import Enum

from relayd.state.columns import Row, to_row, upsert_sql
from relayd.state.database import Database, Transaction
from relayd.state.engine import Connection, EngineError, Fault
from relayd.state.records import Ended, Lost, RequestRecord, Started, utc_text

CAPACITY = 10_000
BATCH_ENTRIES = 512
"""Bounds how long a change of keys can wait behind a batch."""
RETRY_S = 0.25

# Fixed sizes, so that the statements stay prepared. One statement for many rows, because the GIL is
# released and taken again at each step: under load that costs more than the work itself.
_UPSERTS = {size: upsert_sql(size) for size in (32, 8, 1)}

_log = logging.getLogger(__name__)


class EntryKind(Enum):
    """What an entry of the queue says of its request."""

    START = "start"
    END = "end"


Entry = tuple[EntryKind, RequestRecord]


class RequestLog:
    """Takes records on the event loop and never waits; `write` puts them on disk on the writer's thread.

    Up to 10,000 entries wait for the disk, and beyond that only the ends of requests whose start was
    queued. A start that finds no room is skipped; its end then stands for the whole request if there is
    room by then, else the request is counted as lost.

    Args:
        wake: makes the writer call `write` soon; called at most once for each `write`.
        settle: charges requests for what they used, in the transaction of their end.
        settle_lost: charges a request whose end is lost.
    """

    def __init__(
        self,
        database: Database,
        wake: Callable[[], None],
        clock: Callable[[], float],
        settle: Callable[[Transaction, Sequence[RequestRecord]], None],
        settle_lost: Callable[[RequestRecord], None],
        capacity: int = CAPACITY,
    ) -> None:
        self._database = database
        self._wake = wake
        self._clock = clock
        self._settle = settle
        self._settle_lost = settle_lost
        self._capacity = capacity
        # Appended on the event loop, taken from the other end by the writer: deque makes both atomic.
        self._waiting: deque[Entry] = deque()
        self._open: set[str] = set()
        self._is_woken = False
        # Each counter has one writing thread.
        self._refused = 0
        self._unwritable = 0
        self._reported = 0
        self._error: str | None = None
        self._loss_reason = "the disk is too slow"
        self._start_seqs: dict[str, int] = {}
        """The place of each open request's start in the log."""
        self._suspects = 0
        """How many of the oldest entries are written one by one: one of them can't be written."""

    def started(self, record: RequestRecord) -> None:
        """Queue the start of a request, admitted or refused; the record is copied."""
        if len(self._waiting) < self._capacity:
            self._open.add(record.id)
            self._append(EntryKind.START, record)

    def ended(self, record: RequestRecord) -> None:
        """Queue the end of a request; the record is copied. Call it once for each start."""
        if record.id in self._open or len(self._waiting) < self._capacity:
            self._open.discard(record.id)
            self._append(EntryKind.END, record)
        else:
            self._refused += 1
            self._settle_lost(record)

    @property
    def queued(self) -> int:
        """Return how many starts and ends wait for the disk."""
        return len(self._waiting)

    @property
    def lost(self) -> int:
        """Return how many requests were lost since this start of the daemon."""
        return self._refused + self._unwritable

    @property
    def error(self) -> str | None:
        """Return why writing fails now, as a sentence; None while it works."""
        return self._error

    def _append(self, kind: EntryKind, record: RequestRecord) -> None:
        self._waiting.append((kind, copy.copy(record)))
        if not self._is_woken:
            self._is_woken = True
            self._wake()

    # All below runs on the writer's thread.

    def write(self) -> float | None:
        """Commit one batch; return the seconds until the next one, or None if nothing waits.

        Raises:
            Exception: a bug; the entries keep waiting.
        """
        # First, so that an entry that comes later wakes the writer again.
        self._is_woken = False
        if not self._waiting and self.lost == self._reported:
            return None
        limit = 1 if self._suspects else BATCH_ENTRIES
        entries = [self._waiting[at] for at in range(min(len(self._waiting), limit))]
        try:
            self._commit(entries)
        except Exception as error:
            if isinstance(error, EngineError) and error.fault is not Fault.DATA:
                return self._wait_for_the_disk(error)
            if not entries:
                raise
            if len(entries) > 1:
                self._suspects = len(entries)
                return 0.0
            self._drop(*entries[0], error)
        for _ in entries:
            self._waiting.popleft()
        self._suspects = max(0, self._suspects - len(entries))
        if self._error is not None:
            _log.warning("The request log can be written again; %d requests were lost", self.lost)
            self._error = None
        has_more = len(entries) == limit or self.lost != self._reported
        return 0.0 if has_more else None

    def drain(self, until: float) -> None:
        """Write all that waits, until a monotonic time at the latest."""
        while (delay_s := self.write()) is not None and time.monotonic() < until:
            time.sleep(delay_s)

    def _commit(self, entries: Sequence[Entry]) -> None:
        rows: dict[int, Row] = {}
        starts: dict[str, int] = {}
        lost = self.lost - self._reported
        with self._database.transaction(durable=False) as transaction:
            for kind, record in entries:
                seq = starts.get(record.id) or self._start_seqs.get(record.id)
                if kind is EntryKind.START or seq is None:
                    seq = starts[record.id] = record.seq = transaction.next_seq()
                    rows[seq] = to_row(record, seq, None)
                    shown = record if kind is EntryKind.START else record.as_started()
                    transaction.events.append(Started(seq, record.boot_id, shown))
                if kind is EntryKind.END:
                    record.seq = seq
                    end_seq = transaction.next_seq()
                    rows[seq] = to_row(record, seq, end_seq)
                    transaction.events.append(Ended(end_seq, record.boot_id, record))
            upsert(transaction.connection, list(rows.values()))
            self._settle(transaction, [record for kind, record in entries if kind is EntryKind.END])
            if lost:
                _record_loss(transaction, lost, utc_text(self._clock()), self._loss_reason)
        self._reported += lost
        self._start_seqs |= starts
        for kind, record in entries:
            if kind is EntryKind.END:
                self._start_seqs.pop(record.id, None)

    def _wait_for_the_disk(self, error: EngineError) -> float:
        sentence = str(error.told)
        if self._error is None:
            _log.error("The request log cannot be written and waits in memory: %s", sentence)
        self._loss_reason = str(error)
        self._error = sentence
        # The retry is scheduled: requests that come before it need not wake the writer.
        self._is_woken = True
        return RETRY_S

    def _drop(self, kind: EntryKind, record: RequestRecord, error: Exception) -> None:
        _log.error("The record of request %r can't be written: %s", record.id, error)
        self._loss_reason = f"a record that can't be written: {error}"
        self._unwritable += 1
        if kind is EntryKind.END:
            self._settle_lost(record)


def upsert(connection: Connection, rows: Sequence[Row]) -> None:
    """Insert the rows, or bring those that are there (same `start_seq`) to their end."""
    at = 0
    for size, statement in _UPSERTS.items():
        while len(rows) - at >= size:
            values = [value for row in rows[at : at + size] for value in row]
            connection.execute(statement, values)
            at += size


def _record_loss(transaction: Transaction, count: int, at: str, reason: str) -> None:
    seq = transaction.next_seq()
    row = (seq, transaction.boot_id, at, count, reason)
    transaction.connection.execute("INSERT INTO lost VALUES (?, ?, ?, ?, ?)", row)
    transaction.events.append(Lost(*row))
