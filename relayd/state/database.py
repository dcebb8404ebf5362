"""One SQLite file: its transactions, and what its errors mean for the operator."""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import msgspec

from relayd.state.errors import (
    StateBusy,
    StateDamaged,
    StateError,
    StateOtherFormat,
    StateReplaced,
    StateUnreachable,
)
from relayd.state.records import DiskUse, LogEvent
from relayd.state.schema import check_version, is_current, migrate

BUSY_TIMEOUT_S = 2.0
"""How long a statement waits for another process; the old and the new daemon may overlap."""
WAL_LIMIT_BYTES = 16 * 1024 * 1024
CHECKPOINT_BYTES = 4 * 1024 * 1024
_CHECKED = ("meta", "clients", "keys", "ring", "idempotency", "audit", "lost")
"""Tables without which keys can't be changed. The log itself may be large, and keys work without it."""
_MIN_SQLITE = (3, 35)
"""RETURNING and materialised subqueries."""

Connect = Callable[..., sqlite3.Connection]
"""`sqlite3.connect`, or what a test puts in its place."""
OnCommit = Callable[[Sequence[LogEvent]], None]
"""Called on the thread that committed, after each commit, with its events in order; must be quick."""

_log = logging.getLogger(__name__)


class Transaction:
    """One open transaction: its connection, and the events that it will have caused."""

    def __init__(self, connection: sqlite3.Connection, boot_id: str) -> None:
        self.connection = connection
        self.boot_id = boot_id
        self.events: list[LogEvent] = []
        self.after_commit: list[Callable[[], None]] = []
        """Run after the commit, before the events are published."""
        self._seq: int | None = None

    def next_seq(self) -> int:
        """Return a new place in the log; it leaves no gap, because it counts only once committed."""
        if self._seq is None:
            self._seq = self.connection.execute("SELECT value FROM meta WHERE name = 'seq'").fetchone()[0]
        self._seq += 1
        return self._seq

    def store_seq(self) -> None:
        """Store the last place that was given away."""
        if self._seq is not None:
            self.connection.execute("UPDATE meta SET value = ? WHERE name = 'seq'", (self._seq,))


class Database:
    """The writing connection to one file; used by one thread at a time."""

    def __init__(self, path: Path, connection: sqlite3.Connection, boot_id: str, on_commit: OnCommit) -> None:
        self.path = path
        self.connection = connection
        self.boot_id = boot_id
        self._on_commit = on_commit
        self._synchronous = ""
        # A WAL that a crash left may hold anything.
        self._has_durable_wal = self._has_wal = True
        self._is_idle = False
        self._files = _identify(path)

    @contextmanager
    def transaction(self, *, durable: bool) -> Iterator[Transaction]:
        """Commit what the block does, all or nothing; then publish its events.

        Args:
            durable: the commit survives a power cut, not only the end of the process.

        Raises:
            sqlite3.Error: the disk refused, or the file is not the one at the path; nothing changed.
            Exception: whatever the block raises; nothing changed.
        """
        self._roll_back()
        self.check_in_place()
        self._set_synchronous("FULL" if durable else "NORMAL")
        transaction = Transaction(self.connection, self.boot_id)
        self.connection.execute("BEGIN IMMEDIATE")
        try:
            yield transaction
            transaction.store_seq()
            self.connection.execute("COMMIT")
        except BaseException:
            try:
                self._roll_back()
            except sqlite3.Error as error:
                # The next transaction tries again before it begins; the first error is the one to raise.
                _log.warning("A failed transaction could not be rolled back yet: %s", error)
            raise
        self._has_durable_wal |= durable
        self._has_wal, self._is_idle = True, False
        for callback in transaction.after_commit:
            callback()
        self._publish(transaction.events)

    def check_in_place(self) -> None:
        """Do nothing if the open files are those at the path; any thread may ask.

        What is written to files that were deleted or replaced is gone after a restart. This asks for names
        only: to open and close a file of the database would drop the locks that SQLite has on it
        (https://www.sqlite.org/howtocorrupt.html, section 2.2).

        Raises:
            sqlite3.OperationalError: they are not; its code is SQLITE_READONLY_DBMOVED.
        """
        if _identify(self.path) != self._files:
            error = sqlite3.OperationalError("its files were moved, deleted or replaced")
            error.sqlite_errorcode = sqlite3.SQLITE_READONLY_DBMOVED
            raise error

    def checkpoint(self) -> None:
        """Copy the WAL into the file; never waits for readers.

        That is done if it has grown, or holds a durable change (so that a copy of `relayd.db` alone has the
        newest keys), or if nothing was committed since the last call.
        """
        was_idle, self._is_idle = self._is_idle, True
        is_due = self._has_durable_wal or was_idle or _size(wal_path(self.path)) >= CHECKPOINT_BYTES
        if self._has_wal and is_due:
            _, frames, copied = self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            self._has_durable_wal = self._has_wal = frames != copied

    def close(self) -> None:
        """Close the connection.

        SQLite leaves the WAL of a database that was moved as it is, and would later replay it over the file
        that took its place: copy it into the moved file, and empty it.

        Raises:
            sqlite3.Error: the disk refused.
        """
        try:
            self.check_in_place()
        except sqlite3.Error:
            self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        finally:
            self.connection.close()

    def _roll_back(self) -> None:
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


def wal_path(path: Path) -> Path:
    """Return the path of a database's write-ahead log."""
    return path.with_name(f"{path.name}-wal")


def shm_path(path: Path) -> Path:
    """Return the path of the index of a database's write-ahead log."""
    return path.with_name(f"{path.name}-shm")


def _identify(path: Path) -> list[tuple[int, int] | None]:
    """Return device and inode of the database, its WAL and its index; None for what is not there."""
    found: list[tuple[int, int] | None] = []
    for file in (path, wal_path(path), shm_path(path)):
        try:
            info = file.stat()
        except OSError:
            found.append(None)
        else:
            found.append((info.st_dev, info.st_ino))
    return found


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def disk_use(path: Path) -> DiskUse:
    """Return what a database takes of the disk, and what is left. A few quick system calls.

    Raises:
        StateBusy: the file system does not answer.
    """
    try:
        used = sum(map(_size, (path, wal_path(path), shm_path(path))))
        disk = os.statvfs(path.parent)
    except OSError as error:
        raise StateBusy(f"The disk of {path} can't be examined: {error.strerror}.") from error
    return DiskUse(used, disk.f_bavail * disk.f_frsize)


def open_for_writing(path: Path, connect: Connect = sqlite3.connect) -> sqlite3.Connection:
    """Return a connection in WAL mode, in autocommit (transactions are explicit), on the newest schema.

    Raises:
        StateError: the message says what to do.
    """
    if sqlite3.sqlite_version_info < _MIN_SQLITE:
        raise StateUnreachable(f"SQLite 3.35 or newer is needed; this Python has {sqlite3.sqlite_version}.")
    with as_state_errors(path):
        connection = connect(str(path), timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        with ExitStack() as undo:
            undo.enter_context(closing(connection))
            _prepare(connection, path)
            undo.pop_all()
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
    # First: nothing is changed in what is not ours.
    check_version(connection)
    if connection.execute("PRAGMA page_count").fetchone() == (0,):
        # Has to come before the first table; lets retention give space back.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise StateUnreachable(
            f"The file system of {path} can't share memory, which SQLite's WAL needs (journal mode {mode}). "
            "Put state_dir on a local disk."
        )
    # `Database.checkpoint` does it, when nothing waits for the writer.
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT_BYTES}")
    connection.execute("PRAGMA trusted_schema = OFF")
    migrate(connection)
    for table in _CHECKED:
        found: str = connection.execute(f"PRAGMA integrity_check({table})").fetchone()[0]
        if found != "ok":
            raise _damaged(path, found)


def open_for_reading(path: Path) -> sqlite3.Connection:
    """Return a read-only connection, also to a file that no daemon has open.

    Raises:
        StateError: the message says what to do.
    """
    with ExitStack() as undo, as_state_errors(path):
        connection = undo.enter_context(closing(open_read_only(path)))
        if not is_current(connection):
            raise StateOtherFormat(
                f"The database {path} has an old format; start this relayd once to bring it up to date."
            )
        undo.pop_all()
    return connection


def open_read_only(path: Path) -> sqlite3.Connection:
    """Return a read-only connection to a file of any format.

    Raises:
        StateUnreachable: there is no such file.
        sqlite3.Error: it can't be opened.
    """
    if not path.exists():
        raise StateUnreachable(
            f"There is no database at {path}. Set RELAYD_STATE_DIR to the daemon's directory."
        )
    uri = f"{path.absolute().as_uri()}?mode=ro"
    return sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)


@contextmanager
def as_state_errors(path: Path) -> Iterator[None]:
    """Raise every `sqlite3.Error` of the block, and what makes no sense, as a `StateError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise explain(error, path) from error
    except msgspec.MsgspecError as error:
        raise _damaged(path, error) from error


def is_disk_refusing(error: sqlite3.Error) -> bool:
    """Return whether the disk is full or broken for writing, which may pass; the database itself is well."""
    return _code(error) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


def _code(error: sqlite3.Error) -> int:
    return _extended_code(error) & 0xFF


def _extended_code(error: sqlite3.Error) -> int:
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_IOERR)
    return code


def _damaged(path: Path, error: object) -> StateDamaged:
    return StateDamaged(f"The database {path} is damaged ({error}). To go on, {how_to_restore(path)}")


def how_to_restore(path: Path) -> str:
    """Return the end of a sentence: how to put a backup in place of a database."""
    return (
        f"stop relayd, move all files {path}* away (an old {path.name}-wal would damage a backup), and put a "
        f"backup at {path}; without one, relayd starts with an empty log and an empty key ring."
    )


def explain(error: sqlite3.Error, path: Path) -> StateError:
    """Return what an error of SQLite means for the operator."""
    code = _code(error)
    if _extended_code(error) == sqlite3.SQLITE_READONLY_DBMOVED:
        return StateReplaced(
            f"The database {path} was moved, deleted or replaced while relayd runs, so nothing is stored any "
            f"more. Put its files back, or {how_to_restore(path)}"
        )
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
        return _damaged(path, error)
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_AUTH):
        return StateUnreachable(
            f"The database {path} can't be opened ({error}). Check its owner and mode (0600) and those of "
            "the directory (0700)."
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StateBusy(f"Another process is using the database {path} ({error}). Try again in a moment.")
    if code == sqlite3.SQLITE_INTERRUPT:
        return StateBusy("The query took too long and was stopped. Ask for less: a narrower filter.")
    return StateBusy(f"The database {path} cannot be written ({error}). Check the free space of its disk.")
