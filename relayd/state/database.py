"""One SQLite file: its permissions, its transactions, and what its errors mean for the operator."""

from __future__ import annotations

import logging
import os
import sqlite3
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from relayd.state.errors import StateBusy, StateDamaged, StateError, StateOtherFormat, StateUnreachable
from relayd.state.records import DiskUse, LogEvent
from relayd.state.schema import is_current, migrate

FILE_NAME = "relayd.db"
BUSY_TIMEOUT_S = 2.0
"""How long a statement waits for another process; the old and the new daemon may overlap."""
WAL_LIMIT_BYTES = 16 * 1024 * 1024
CHECKPOINT_BYTES = 4 * 1024 * 1024
_MIN_SQLITE = (3, 35)
"""RETURNING and materialised subqueries."""

Connect = Callable[..., sqlite3.Connection]
"""`sqlite3.connect`, or what a test puts in its place."""
OnCommit = Callable[[Sequence[LogEvent]], None]
"""Called on the writing thread after each commit, with its events in order; must be quick."""

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
        self._has_durable_wal = False

    @contextmanager
    def transaction(self, *, durable: bool) -> Iterator[Transaction]:
        """Commit what the block does, all or nothing; then publish its events.

        Args:
            durable: the commit survives a power cut, not only the end of the process.

        Raises:
            sqlite3.Error: the disk refused; nothing changed.
            Exception: whatever the block raises; nothing changed.
        """
        self._roll_back()
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
        for callback in transaction.after_commit:
            callback()
        self._publish(transaction.events)

    def checkpoint(self) -> None:
        """Copy the WAL into the file if it has grown or holds a durable change; never waits for readers.

        A copy of `relayd.db` alone then has the newest keys.
        """
        if not self._has_durable_wal and _size(wal_path(self.path)) < CHECKPOINT_BYTES:
            return
        _, frames, copied = self.connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        self._has_durable_wal = frames != copied

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


def make_private(state_dir: Path) -> Path:
    """Make the directory (0700) and the file in it (0600) if they are missing; return the file's path.

    Raises:
        StateUnreachable: not possible, or the directory is another user's, or others may write to it.
    """
    path = state_dir / FILE_NAME
    try:
        if not state_dir.is_dir():
            state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = state_dir.stat()
        mode = stat.S_IMODE(info.st_mode)
        if info.st_uid != os.geteuid():
            raise StateUnreachable(
                f"The state directory {state_dir} belongs to another user (uid {info.st_uid}), who could "
                "replace the keys in it. Run relayd as that user, or set state_dir to another directory."
            )
        if mode & stat.S_ISVTX:
            raise StateUnreachable(
                f"{state_dir} is shared by all users (mode {mode:04o}) and can't be the state directory. "
                f"Set state_dir to a directory of its own, such as {state_dir / 'relayd'}"
            )
        if mode & 0o022:
            raise StateUnreachable(
                f"Other users may write to the state directory {state_dir} (mode {mode:04o}). "
                f"Close it first: chmod 700 {state_dir}"
            )
        # Before SQLite opens it: its -wal and -shm files take their mode from this one.
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)
        finally:
            os.close(descriptor)
        for side in (wal_path(path), _shm_path(path)):
            with suppress(FileNotFoundError):
                side.chmod(0o600)
    except OSError as error:
        raise StateUnreachable(
            f"The state directory {state_dir} can't be used: {error.strerror or error}. "
            "relayd needs to own it (mode 0700), or another state_dir."
        ) from error
    return path


def wal_path(path: Path) -> Path:
    """Return the path of a database's write-ahead log."""
    return path.with_name(f"{path.name}-wal")


def _shm_path(path: Path) -> Path:
    return path.with_name(f"{path.name}-shm")


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
        used = sum(map(_size, (path, wal_path(path), _shm_path(path))))
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
        try:
            _prepare(connection, path)
        except BaseException:
            connection.close()
            raise
    return connection


def _prepare(connection: sqlite3.Connection, path: Path) -> None:
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


def open_for_reading(path: Path) -> sqlite3.Connection:
    """Return a read-only connection, also to a file that no daemon has open.

    Raises:
        StateError: the message says what to do.
    """
    if not path.exists():
        raise StateUnreachable(f"There is no database at {path}. Has relayd run with this state_dir?")
    with as_state_errors(path):
        uri = f"{path.absolute().as_uri()}?mode=ro"
        connection = sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT_S, isolation_level=None)
        try:
            is_readable = is_current(connection)
        except BaseException:
            connection.close()
            raise
    if not is_readable:
        connection.close()
        raise StateOtherFormat(
            f"The database {path} has an old format; start this relayd once to bring it up to date."
        )
    return connection


@contextmanager
def as_state_errors(path: Path) -> Iterator[None]:
    """Raise every `sqlite3.Error` of the block as a `StateError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise explain(error, path) from error


def is_disk_refusing(error: sqlite3.Error) -> bool:
    """Return whether the disk is full or broken for writing, which may pass; the database itself is well."""
    return _code(error) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


def _code(error: sqlite3.Error) -> int:
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_IOERR)
    return code & 0xFF


def explain(error: sqlite3.Error, path: Path) -> StateError:
    """Return what an error of SQLite means for the operator."""
    code = _code(error)
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
        return StateDamaged(
            f"The database {path} is damaged ({error}). Stop relayd and keep a copy of the file; then put a "
            "backup in its place, or move it away: relayd starts with an empty log and an empty key ring."
        )
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_AUTH):
        return StateUnreachable(
            f"The database {path} can't be opened ({error}). Check its owner and mode (0600) and those of "
            "the directory (0700)."
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StateBusy(f"Another process holds the database {path} ({error}). Try again in a moment.")
    if code == sqlite3.SQLITE_INTERRUPT:
        return StateBusy("The query took too long and was stopped. Ask for less: a narrower filter.")
    return StateBusy(f"The disk refuses to store the database {path} ({error}). Check its free space.")
