"""Transactions on the one writing connection; what they put into the log is published after commit."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from relayd.state.events import Audited, LogEvent
from relayd.state.records import AuditEntry
from relayd.state.stored import storable_text

T = TypeVar("T")
OnCommit = Callable[[Sequence[LogEvent]], None]
"""Called on the writer thread after each commit, with its events in order; must be quick."""

_log = logging.getLogger(__name__)


class Tx:
    """One open transaction: its connection, and the events that it will have caused."""

    def __init__(self, connection: sqlite3.Connection, boot_id: str) -> None:
        self.connection = connection
        self.boot_id = boot_id
        self.events: list[LogEvent] = []
        self._seq: int | None = None

    def next_seq(self) -> int:
        """A new place in the log; without a gap, because it counts only once the commit has it."""
        if self._seq is None:
            self._seq = self.connection.execute("SELECT value FROM meta WHERE name = 'seq'").fetchone()[0]
        self._seq += 1
        return self._seq

    def store_seq(self) -> None:
        """Move the counter in the file to the last place that was given away."""
        if self._seq is not None:
            self.connection.execute("UPDATE meta SET value = ? WHERE name = 'seq'", (self._seq,))

    def audit(self, entry: AuditEntry) -> AuditEntry:
        """Put an audit row into the log; the entry with its `seq` and `boot_id`."""
        entry = msgspec.structs.replace(
            entry,
            seq=self.next_seq(),
            boot_id=self.boot_id,
            detail=None if entry.detail is None else storable_text(entry.detail),
            client=None if entry.client is None else storable_text(entry.client),
        )
        self.connection.execute(
            "INSERT INTO audit (seq, boot_id, at, action, result, uid, pid, login, client, key_ids,"
            " generation, detail) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (
                *(entry.seq, entry.boot_id, entry.at, entry.action, entry.result),
                *(entry.uid, entry.pid, entry.login, entry.client),
                *(msgspec.json.encode(entry.key_ids).decode(), entry.generation, entry.detail),
            ),
        )
        self.events.append(Audited(entry.seq, entry.boot_id, entry))
        return entry


class Transactor:
    """Runs work in transactions on one connection; used by one thread at a time."""

    def __init__(self, connection: sqlite3.Connection, boot_id: str, on_commit: OnCommit) -> None:
        self.connection = connection
        self.boot_id = boot_id
        self._on_commit = on_commit
        self._synchronous = ""

    def run(
        self,
        work: Callable[[Tx], T],
        *,
        durable: bool,
        after: Callable[[T], None] | None = None,
    ) -> T:
        """Commit what `work` does, all or nothing; then `after(result)`, then the events go out.

        Durable: the commit survives a power cut, not only the end of the process.

        Raises:
            sqlite3.Error: the disk refused; nothing changed.
            Exception: whatever `work` raises; nothing changed.
        """
        self._clear()
        self._set_synchronous("FULL" if durable else "NORMAL")
        tx = Tx(self.connection, self.boot_id)
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            result = work(tx)
            tx.store_seq()
            self.connection.execute("COMMIT")
        except BaseException:
            try:
                self._clear()
            except sqlite3.Error as error:
                # The next transaction tries again before it begins; the first error is the one to tell.
                _log.warning("A failed transaction could not be rolled back yet: %s", error)
            raise
        if after is not None:
            after(result)
        self._publish(tx.events)
        return result

    def _clear(self) -> None:
        if self.connection.in_transaction:
            self.connection.execute("ROLLBACK")

    def _set_synchronous(self, level: str) -> None:
        if level != self._synchronous:
            self.connection.execute(f"PRAGMA synchronous = {level}")
            self._synchronous = level

    def _publish(self, events: list[LogEvent]) -> None:
        if not events:
            return
        try:
            self._on_commit(events)
        except Exception:  # noqa: BLE001 - whatever the listener does wrong
            # They are on disk and can be replayed; a broken listener must not stop the log.
            _log.exception("Publishing %d log events failed", len(events))
