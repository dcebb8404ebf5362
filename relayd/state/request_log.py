"""The request log: queued on the event loop without waiting, committed in groups by the writer."""

from __future__ import annotations

import copy
import logging
import time
from collections import deque
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from enum import Enum
from functools import partial

import msgspec

from relayd.state.columns import COLUMNS, Row, to_row, upsert_sql, values_sql
from relayd.state.database import Database, Transaction
from relayd.state.engine import Connection, EngineError, Fault
from relayd.state.records import Ended, RequestRecord, Started, utc_text

CAPACITY = 10_000
BATCH_ENTRIES = 512
"""Bounds how long a change of keys can wait behind a batch."""
RETRY_S = 0.25

# Fixed sizes, so that the statements stay prepared. One statement for many rows, because the GIL is
# released and taken again at each step: under load that costs more than the work itself.
_UPSERTS = {size: upsert_sql(values_sql(size)) for size in (32, 8, 1)}

_log = logging.getLogger(__name__)


class EntryKind(Enum):
    """What an entry of the queue says of its request."""

    START = "start"
    END = "end"


Entry = tuple[EntryKind, RequestRecord]


@dataclass(slots=True)
class _Batch:
    """What one transaction writes."""

    entries: Sequence[Entry]
    losses: int
    """How many losses it reports."""
    starts: dict[str, int] = field(default_factory=dict)
    """The places of the starts among them, by request id."""
    late_ends: int = 0
    """Ends of requests that another instance has closed: it took this one for dead."""


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
        self._late = 0
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
        return self._refused + self._unwritable + self._late

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
        entries: Sequence[Entry] = ()
        limit = 1 if self._suspects else BATCH_ENTRIES
        try:
            # First: it may have written some of what waits.
            self._database.settle_unknown()
            entries = [self._waiting[at] for at in range(min(len(self._waiting), limit))]
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
        has_more = len(entries) == limit or self.lost != self._reported
        return 0.0 if has_more else None

    def drain(self, until: float) -> None:
        """Write all that waits, until a monotonic time at the latest."""
        while (delay_s := self.write()) is not None and time.monotonic() < until:
            time.sleep(delay_s)

    def _commit(self, entries: Sequence[Entry]) -> None:
        batch = _Batch(entries, self.lost - self._reported)
        transaction = None
        try:
            with self._database.transaction(durable=False) as transaction:
                self._write_batch(transaction, batch)
        except EngineError as error:
            if transaction is not None and error.fault is Fault.UNKNOWN:
                transaction.after_commit.append(partial(self._note_written, batch))
            raise
        self._note_written(batch)

    def _write_batch(self, transaction: Transaction, batch: _Batch) -> None:
        rows: dict[int, Row] = {}
        starts = batch.starts
        ends = [record for kind, record in batch.entries if kind is EntryKind.END]
        closed, startless = self._changed_elsewhere(transaction, ends)
        for kind, record in batch.entries:
            seq = starts.get(record.id)
            if seq is None and record.id not in startless:
                seq = self._start_seqs.get(record.id)
            if kind is EntryKind.START or seq is None:
                seq = starts[record.id] = record.seq = transaction.next_seq()
                rows[seq] = to_row(record, seq, None)
                shown = record if kind is EntryKind.START else record.as_started()
                transaction.events.append(Started(seq, record.boot_id, shown))
            if kind is EntryKind.END and record.id not in closed:
                record.seq = seq
                end_seq = transaction.next_seq()
                rows[seq] = to_row(record, seq, end_seq)
                transaction.events.append(Ended(end_seq, record.boot_id, record))
        batch.late_ends = len(closed)
        upsert(transaction.connection, list(rows.values()))
        self._settle(transaction, ends)
        if batch.losses:
            transaction.record_loss(batch.losses, utc_text(self._clock()), self._loss_reason)

    def _changed_elsewhere(
        self, transaction: Transaction, ends: Sequence[RequestRecord]
    ) -> tuple[Collection[str], Collection[str]]:
        """Return which of these requests another instance has closed as crashed, which stays their end.

        And those whose start is lost: a standby took over that did not have it.
        """
        if not self._database.is_shared:
            return (), ()
        ids = {record.id for record in ends if record.id in self._start_seqs}
        if not ids:
            return (), ()
        # Before it is asked: whoever closes requests holds the lock too.
        transaction.lock()
        chosen = f"id IN ({transaction.connection.dialect.listed('?')})"
        rows = transaction.connection.execute(
            f"SELECT id, end_seq FROM requests WHERE {chosen}",  # noqa: S608 - a placeholder
            (msgspec.json.encode(sorted(ids)).decode(),),
        )
        found: dict[str, int | None] = dict(rows)
        closed = {request_id for request_id, end_seq in found.items() if end_seq is not None}
        return closed, ids - found.keys()

    def _note_written(self, batch: _Batch) -> None:
        if self._error is not None:
            _log.warning("The request log can be written again; %d requests were lost", self.lost)
            self._error = None
        self._reported += batch.losses
        if batch.late_ends:
            self._late += batch.late_ends
            self._loss_reason = "another instance had closed them: this one was not heard of for too long"
        self._start_seqs |= batch.starts
        for kind, record in batch.entries:
            if kind is EntryKind.END:
                self._start_seqs.pop(record.id, None)
        self._forget(len(batch.entries))

    def _forget(self, entries: int) -> None:
        for _ in range(entries):
            self._waiting.popleft()
        self._suspects = max(0, self._suspects - entries)

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
        self._forget(1)
        if kind is EntryKind.END:
            self._settle_lost(record)


def upsert(connection: Connection, rows: Sequence[Row]) -> None:
    """Insert the rows, or bring those that are there (same `start_seq`) to their end."""
    rows_of_json = connection.dialect.rows_of_json
    if rows_of_json is not None:
        if rows:
            text = msgspec.json.encode([dict(zip(COLUMNS, row, strict=True)) for row in rows]).decode()
            connection.execute(upsert_sql(rows_of_json(", ".join(COLUMNS), "requests", "?")), (text,))
        return
    at = 0
    for size, statement in _UPSERTS.items():
        while len(rows) - at >= size:
            values = [value for row in rows[at : at + size] for value in row]
            connection.execute(statement, values)
            at += size
