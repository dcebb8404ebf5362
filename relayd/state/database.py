"""The writing connection to the database, and its transactions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from relayd.state.engine import Connection, Engine, EngineError, Fault
from relayd.state.records import LogEvent

OnCommit = Callable[[Sequence[LogEvent]], None]
"""Called on the thread that committed, after each commit, with its events in order; must be quick."""

_log = logging.getLogger(__name__)


class Transaction:
    """One open transaction: its connection, and the events that it will have caused."""

    def __init__(self, connection: Connection, boot_id: str) -> None:
        self.connection = connection
        self.boot_id = boot_id
        self.events: list[LogEvent] = []
        self.after_commit: list[Callable[[], None]] = []
        """Run after the commit, before the events are published."""
        self.is_committed: bool | None = None
        """None while the transaction is open, or its outcome is not known."""
        self._stored_seq: int | None = None
        self._seq = 0

    def lock(self) -> None:
        """Wait for other processes that write to the log or change keys; none does before this one commits.

        A process that holds this lock may wait for other rows; one that has other rows never waits for it.
        """
        if self._stored_seq is None:
            for_update = self.connection.dialect.for_update
            query = f"SELECT value FROM meta WHERE name = 'seq'{for_update}"  # noqa: S608 - own SQL
            self._stored_seq = self._seq = self.connection.execute(query).fetchone()[0]

    def next_seq(self) -> int:
        """Return a new place in the log; it leaves no gap, because it counts only once committed."""
        self.lock()
        self._seq += 1
        return self._seq

    def store_seq(self) -> None:
        """Store the last place that was given away."""
        if self._stored_seq is not None and self._seq != self._stored_seq:
            self.connection.execute("UPDATE meta SET value = ? WHERE name = 'seq'", (self._seq,))


class Database:
    """Owns the writing connection; used by one thread at a time."""

    def __init__(
        self,
        engine: Engine,
        connection: Connection,
        boot_id: str,
        on_commit: OnCommit,
        *,
        is_shared: bool = False,
    ) -> None:
        self.engine = engine
        self.connection = connection
        self.boot_id = boot_id
        self.is_shared = is_shared
        """Whether other processes write to it too."""
        self._on_commit = on_commit
        self._unknown: Transaction | None = None
        """Its COMMIT got no answer; nothing else begins before its outcome is known."""

    @contextmanager
    def transaction(self, *, durable: bool) -> Iterator[Transaction]:
        """Commit what the block does, all or nothing; then publish its events.

        Args:
            durable: the commit survives a power cut, not only the end of the process.

        Raises:
            EngineError: the database refused; nothing changed. But with `Fault.UNKNOWN`, the commit got no
                answer: the next transaction finds out, before it begins, and so does `resolve`.
            Exception: whatever the block raises; nothing changed.
        """
        self._settle_unknown()
        self.connection.rollback()
        transaction = Transaction(self.connection, self.boot_id)
        self.connection.begin(durable=durable)
        try:
            yield transaction
            transaction.store_seq()
            self.connection.commit()
        except BaseException as error:
            if isinstance(error, EngineError) and error.fault is Fault.UNKNOWN:
                self._unknown = transaction
            else:
                self._roll_back(transaction)
            raise
        self._finish(transaction)

    def _settle_unknown(self) -> None:
        if self._unknown is not None:
            is_committed = self.connection.was_committed()
            transaction, self._unknown = self._unknown, None
            if is_committed:
                self._finish(transaction)
            else:
                transaction.is_committed = False

    def resolve(self, transaction: Transaction) -> bool:
        """Return whether a transaction is in force whose commit got no answer (`Fault.UNKNOWN`).

        If it is, what follows a commit is done, once.

        Raises:
            EngineError: it can't be known yet.
        """
        if transaction.is_committed is None:
            self._settle_unknown()
        return transaction.is_committed is True

    def _roll_back(self, transaction: Transaction) -> None:
        transaction.is_committed = False
        try:
            self.connection.rollback()
        except EngineError as error:
            # The next transaction tries again before it begins; the first error is the one to raise.
            _log.warning("A failed transaction could not be rolled back yet: %s", error)

    def _finish(self, transaction: Transaction) -> None:
        transaction.is_committed = True
        for callback in transaction.after_commit:
            callback()
        self._publish(transaction.events)

    def close(self) -> None:
        """Close the connection.

        Raises:
            EngineError: the disk refused.
        """
        self.connection.close()

    def _publish(self, events: list[LogEvent]) -> None:
        if not events:
            return
        try:
            self._on_commit(events)
        except Exception:  # noqa: BLE001 - whatever the listener does wrong
            # They are on disk and can be replayed; a broken listener must not stop the log.
            _log.exception("Publishing %d log events failed", len(events))
