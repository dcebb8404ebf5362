"""Groups of log entries into the database: one transaction for many requests."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path

from relayd.state.database import explain
from relayd.state.events import Ended, Lost, Started
from relayd.state.records import RequestRecord, utc_text
from relayd.state.requestlog import Entry, Mark, RequestLog
from relayd.state.rows import Row, as_started, to_row, upsert
from relayd.state.transactor import Transactor, Tx

BATCH_ENTRIES = 512
"""Bounds how long a change of the ring can wait behind a batch."""

_log = logging.getLogger(__name__)


class Progress(Enum):
    """What one round of the batch writer came to."""

    DONE = "done"
    MORE = "more"
    """A full batch was written; more may wait."""
    FAILED = "failed"


class BatchWriter:
    """Takes entries from the log and commits them; what the disk refuses goes back and is tried again."""

    def __init__(self, log: RequestLog, path: Path, clock: Callable[[], float]) -> None:
        self._log = log
        self._path = path
        self._clock = clock
        self.first: Callable[[Tx], None] | None = None
        """What the next transaction begins with, because the disk refused it before."""
        self._last_error = "the disk is too slow"
        self._starts: dict[str, int] = {}
        """The place of each open request's start in the log."""

    def write(self, transactor: Transactor) -> Progress:
        """Commit one batch, if anything waits."""
        if not self._log.queued and not self._log.unreported() and self.first is None:
            return Progress.DONE
        entries = self._log.take(BATCH_ENTRIES)
        try:
            self._commit(transactor, entries)
        except sqlite3.Error as error:
            if _is_about_data(error):
                return self._write_singly(transactor, entries)
            return self._refused(entries, error)
        except Exception:  # noqa: BLE001 - a record that breaks our code must not hold up the others
            return self._write_singly(transactor, entries)
        return self._written(len(entries))

    def _write_singly(self, transactor: Transactor, entries: list[Entry]) -> Progress:
        """One of these can't be written at all: find it, drop it, keep the others."""
        for at, entry in enumerate(entries):
            try:
                self._commit(transactor, [entry])
            except sqlite3.Error as error:
                if not _is_about_data(error):
                    return self._refused(entries[at:], error)
                self._drop(entry, error)
            except Exception as error:  # noqa: BLE001 - as above; it is counted and logged
                self._drop(entry, error)
        return self._written(len(entries))

    def _commit(self, transactor: Transactor, entries: Sequence[Entry]) -> None:
        group = _Group(self._starts)
        lost = self._log.unreported()
        first = self.first

        def work(tx: Tx) -> None:
            if first is not None:
                first(tx)
            for mark, record in entries:
                group.add(tx, mark, record)
            upsert(tx.connection, list(group.rows.values()))
            if lost:
                _record_loss(tx, lost, utc_text(self._clock()), self._last_error)

        transactor.run(work, durable=False)
        self.first = None
        self._starts.update(group.started)
        for request_id in group.ended:
            self._starts.pop(request_id, None)
        self._log.reported(lost)

    def _written(self, count: int) -> Progress:
        if self._log.error is not None:
            _log.warning("The request log is written again; %d requests were lost", self._log.lost)
        self._log.written()
        return Progress.MORE if count == BATCH_ENTRIES else Progress.DONE

    def _refused(self, entries: list[Entry], error: sqlite3.Error) -> Progress:
        sentence = str(explain(error, self._path))
        if self._log.error is None:
            _log.error("The request log waits in memory: %s", sentence)
        self._last_error = str(error)
        self._log.put_back(entries, sentence)
        return Progress.FAILED

    def _drop(self, entry: Entry, error: Exception) -> None:
        _log.error("The record of request %r can't be written: %s", entry[1].id, error)
        self._last_error = f"a record that can't be written: {error}"
        self._log.unwritable()


class _Group:
    """The rows and events of one transaction, in the order of the entries."""

    def __init__(self, starts: Mapping[str, int]) -> None:
        self._starts = starts
        self.rows: dict[int, Row] = {}
        self.started: dict[str, int] = {}
        self.ended: list[str] = []

    def add(self, tx: Tx, mark: Mark, record: RequestRecord) -> None:
        known = self.started.get(record.id) or self._starts.get(record.id)
        if mark is Mark.START or known is None:
            known = tx.next_seq()
            record.seq = known
            self.started[record.id] = known
            self.rows[known] = to_row(record, known, None)
            shown = record if mark is Mark.START else as_started(record)
            tx.events.append(Started(known, record.boot_id, shown))
        if mark is not Mark.START:
            record.seq = known
            end = tx.next_seq()
            self.rows[known] = to_row(record, known, end)
            self.ended.append(record.id)
            tx.events.append(Ended(end, record.boot_id, record))


def _is_about_data(error: sqlite3.Error) -> bool:
    return isinstance(
        error, sqlite3.IntegrityError | sqlite3.DataError | sqlite3.InterfaceError | sqlite3.ProgrammingError
    )


def _record_loss(tx: Tx, count: int, at: str, reason: str) -> None:
    seq = tx.next_seq()
    tx.connection.execute("INSERT INTO lost VALUES (?, ?, ?, ?, ?)", (seq, tx.boot_id, at, count, reason))
    tx.events.append(Lost(seq, tx.boot_id, at, count, reason))
