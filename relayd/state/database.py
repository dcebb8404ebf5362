"""The writing connection to the database, and its transactions."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from relayd.state.engine import Connection, Engine, EngineError, Fault
from relayd.state.records import LogEvent, Lost, utc_text

OnCommit = Callable[[Sequence[LogEvent]], None]
"""Called on the thread that committed, after each commit, with its events in order; must be quick."""

_log = logging.getLogger(__name__)


class Transaction:
    """One open transaction: its connection, and the events that it will have caused."""

    def __init__(self, connection: Connection, boot_id: str, known_seq: int = 0) -> None:
        self.connection = connection
        self.boot_id = boot_id
        self.events: list[LogEvent] = []
        self.after_commit: list[Callable[[], object]] = []
        """Run after the commit, before the events are published; also once it is known later."""
        self.is_committed: bool | None = None
        """None while the transaction is open, or its outcome is not known."""
        self._known_seq = known_seq
        self._stored_seq: int | None = None
        self._seq = 0

    def lock(self) -> None:
        """Wait for other processes that write to the log or change keys; none does before this one commits.

        A process that holds this lock may wait for other rows; one that has other rows never waits for it.
        """
        if self._stored_seq is None:
            for_update = self.connection.dialect.for_update
            query = f"SELECT value FROM meta WHERE name = 'seq'{for_update}"  # noqa: S608 - own SQL
            stored: int = self.connection.execute(query).fetchone()[0]
            self._stored_seq = self._seq = stored
            if stored < self._known_seq:
                self._go_on_after_loss(self._known_seq - stored)

    def _go_on_after_loss(self, places: int) -> None:
        """Skip places of the log that the database has lost: none is given a second time."""
        _log.error(
            "The database lost the newest %d places of the log, as a standby does that was behind", places
        )
        self._seq = self._known_seq
        self.record_loss(places, utc_text(time.time()), "the database lost the newest part of the log")

    def record_loss(self, count: int, at: str, reason: str) -> None:
        """Store in the log that at most `count` records are lost."""
        row = (self.next_seq(), self.boot_id, at, count, reason)
        self.connection.execute("INSERT INTO lost VALUES (?, ?, ?, ?, ?)", row)
        self.events.append(Lost(*row))

    @property
    def last_seq(self) -> int:
        """Return the last place that was given away, or was found; 0 without the lock."""
        return self._seq

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
        self._known_seq = 0
        """The newest place in the log that was seen in a shared database."""
        self._unknown: Transaction | None = None
        """Its COMMIT got no answer; nothing else begins before its outcome is known."""

    @property
    def is_undecided(self) -> bool:
        """Return whether the outcome of an unanswered commit is still unknown. For any thread."""
        return self._unknown is not None

    def note_seq(self, seq: int) -> None:
        """Note that a shared database had a place of the log: it is not given again. For any thread."""
        self._known_seq = max(self._known_seq, seq)

    @contextmanager
    def transaction(self, *, durable: bool) -> Iterator[Transaction]:
        """Commit what the block does, all or nothing; then publish its events.

        Args:
            durable: the commit survives a power cut, not only the end of the process.

        Raises:
            EngineError: the database refused; nothing changed. But with `Fault.UNKNOWN`, the commit got no
                answer: the next transaction finds out, before it begins, and so does `settle_unknown`.
            Exception: whatever the block raises; nothing changed.
        """
        self.settle_unknown()
        self.connection.rollback()
        transaction = Transaction(self.connection, self.boot_id, self._known_seq)
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

    def settle_unknown(self) -> None:
        """Find out what became of a commit that got no answer; if it is in force, do what follows it, once.

        Raises:
            EngineError: it can't be known yet.
        """
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
            self.settle_unknown()
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
        if self.is_shared:
            self.note_seq(transaction.last_seq)
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
