"""SQLite: one file in WAL mode, on a local disk."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from relayd.state.engine import Connection, Dialect, Engine, EngineError, Fault, Parameters, Result, Watch
from relayd.state.errors import (
    StateBusy,
    StateDamaged,
    StateError,
    StateReplaced,
    StateUnreachable,
)
from relayd.state.filter import is_address_in
from relayd.state.records import DiskUse
from relayd.state.schema import check_version, migrate, require_current

BUSY_TIMEOUT_S = 2.0
"""How long a statement waits for another process; the old and the new daemon may overlap."""
WAL_LIMIT_BYTES = 16 * 1024 * 1024
CHECKPOINT_BYTES = 4 * 1024 * 1024
CHUNK_PAGES = 512
SPARE_PAGES = 256
"""Free pages that stay in the file for what comes next."""
_CHECKED = ("meta", "clients", "keys", "ring", "idempotency", "audit", "lost")
"""Tables without which keys can't be changed. The log itself may be large, and keys work without it."""
_MIN_SQLITE = (3, 35)
"""RETURNING and materialised subqueries."""
_STEPS_BETWEEN_CHECKS = 100_000
"""Steps of SQLite's virtual machine, some 5 ms."""
_ABOUT_DATA = (
    sqlite3.IntegrityError,
    sqlite3.DataError,
    sqlite3.InterfaceError,
    sqlite3.ProgrammingError,
)

FileId = tuple[int, int]
"""Device and inode."""
Connect = Callable[..., sqlite3.Connection]
"""`sqlite3.connect`, or what a test puts in its place."""


SQLITE = Dialect(
    for_update="",
    # Three times as fast as instr() over lower().
    like="LIKE",
    differs="IS NOT",
    now_s="((julianday('now') - 2440587.5) * 86400.0)",
    object_function="json_object",
    array_function="json_array",
    greatest_function="max",
    # Faster than json_group_array, which parses each again.
    json_list="'[' || coalesce(group_concat({}, ','), '') || ']'".format,
    json_map="json_group_object({}, {})".format,
    as_json="json({})".format,
    listed="SELECT value FROM json_each({})".format,
    rows_of_json=None,
    hex="lower(hex({}))".format,
    # A function of Python.
    is_in_network="in_network({}, {})".format,
)


class SqliteConnection(Connection):
    """One connection to the file at a path."""

    dialect = SQLITE

    def __init__(self, path: Path, raw: sqlite3.Connection) -> None:
        self.path = path
        self.where = str(path)
        self.raw = raw
        raw.create_function("in_network", 2, is_address_in, deterministic=True)
        self._synchronous = ""
        self._is_durable = False
        # A WAL that a crash left may hold anything.
        self._has_durable_wal = self._has_wal = True
        self._is_idle = False
        self._files: list[FileId | None] | None = None
        """Which files are open, once they are all there."""

    def note_files(self) -> None:
        """Take the files at the path for those that are open."""
        self._files = _identify(self.path)

    def execute(self, sql: str, parameters: Parameters = ()) -> Result:
        """Run one statement to its end."""
        try:
            cursor = self.raw.execute(sql, parameters)
            return Result(cursor.fetchall(), cursor.rowcount)
        except sqlite3.Error as error:
            raise explain(error, self.path) from error

    def executemany(self, sql: str, rows: Sequence[Parameters]) -> None:
        """Run one statement for each row of parameters."""
        try:
            self.raw.executemany(sql, rows)
        except sqlite3.Error as error:
            raise explain(error, self.path) from error

    @property
    def in_transaction(self) -> bool:
        """Return whether a transaction is open."""
        return self.raw.in_transaction

    def begin(self, *, durable: bool) -> None:
        """Begin to write, alone: with synchronous=FULL if durable, else with NORMAL."""
        self.check_in_place()
        level = "FULL" if durable else "NORMAL"
        if level != self._synchronous:
            self.execute(f"PRAGMA synchronous = {level}")
            self._synchronous = level
        self.execute("BEGIN IMMEDIATE")
        self._is_durable = durable

    def commit(self) -> None:
        """End the transaction; it is in force."""
        self.execute("COMMIT")
        self._has_durable_wal |= self._is_durable
        self._has_wal, self._is_idle = True, False

    def was_committed(self) -> bool:
        """Return False: a commit that failed did nothing."""
        return False

    def rollback(self) -> None:
        """End the transaction, if there is one; nothing has changed."""
        if self.raw.in_transaction:
            self.execute("ROLLBACK")

    def notify(self) -> None:
        """Do nothing: the others look often enough."""

    def check_in_place(self) -> None:
        """Do nothing if the open files are those at the path; any thread may ask.

        What is written to files that were deleted or replaced is gone after a restart. This asks for names
        only: to open and close a file of the database would drop the locks that SQLite has on it
        (https://www.sqlite.org/howtocorrupt.html, section 2.2).

        Raises:
            EngineError: they are not.
        """
        if self._files is not None and _identify(self.path) != self._files:
            raise _replaced(self.path)

    def checkpoint(self) -> None:
        """Copy the WAL into the file; never waits for readers.

        That is done if it has grown, or holds a durable change (so that a copy of `relayd.db` alone has the
        newest keys), or if nothing was committed since the last call.
        """
        was_idle, self._is_idle = self._is_idle, True
        is_due = self._has_durable_wal or was_idle or _size(wal_path(self.path)) >= CHECKPOINT_BYTES
        if self._has_wal and is_due:
            _, frames, copied = self.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
            self._has_durable_wal = self._has_wal = frames != copied

    def used_bytes(self) -> int:
        """Return how many bytes of the file hold something."""
        pages = self._pragma("page_count") - self._pragma("freelist_count")
        return pages * self._pragma("page_size")

    def give_back_space(self) -> bool:
        """Return some free pages to the file system; return whether more could be."""
        spare = self._pragma("freelist_count") - SPARE_PAGES
        if spare <= 0:
            return False
        with explained(self.path):
            # The pragma yields a row without columns for each page, and execute() stops at the first one.
            self.raw.executescript(f"PRAGMA incremental_vacuum({min(spare, CHUNK_PAGES)})")
        return spare > CHUNK_PAGES

    def version(self) -> int:
        """Return how many migrations the file has seen."""
        version = self._pragma("user_version")
        if version == 0 and self.execute("SELECT 1 FROM sqlite_master LIMIT 1").rows:
            raise StateDamaged(f"{self.path} is a database, but not one of relayd. Choose another state_dir.")
        return version

    def oldest_reader(self) -> int:
        """Return how many migrations a relayd has to know: all."""
        return self.version()

    def set_version(self, version: int, oldest_reader: int) -> None:
        """Store how many migrations the file has seen."""
        del oldest_reader
        self.execute(f"PRAGMA user_version = {version}")

    def begin_migration(self) -> None:
        """Begin to change the schema, alone."""
        self.begin(durable=True)

    def end_migration(self) -> None:
        """Commit the new schema."""
        self.commit()

    def columns(self, table: str) -> set[str]:
        """Return the names of a table's columns."""
        return {name for (name,) in self.execute("SELECT name FROM pragma_table_info(?)", (table,))}

    def define(self, statement: str) -> None:
        """Run a statement that defines a table or an index."""
        self.execute(statement)

    def close(self) -> None:
        """Close the connection.

        SQLite leaves the WAL of a database that was moved as it is, and would later replay it over the file
        that took its place: copy it into the moved file, and empty it.

        Raises:
            EngineError: the disk refused.
        """
        try:
            self.check_in_place()
        except EngineError:
            self.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        finally:
            self.raw.close()

    def _pragma(self, name: str) -> int:
        value: int = self.execute(f"PRAGMA {name}").fetchone()[0]
        return value


class SqliteWatch(Watch):
    """Looks when it is told to, or after a while: SQLite does not notify."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection: SqliteConnection | None = None
        self._news = threading.Event()

    @property
    def connection(self) -> SqliteConnection:
        """Return the connection."""
        if self._connection is None:
            with explained(self._path):
                self._connection = SqliteConnection(self._path, open_read_only(self._path))
        return self._connection

    def wait(self, timeout_s: float) -> None:
        """Return at `wake`, or when the time is over."""
        self._news.wait(timeout_s)
        self._news.clear()

    def wake(self) -> None:
        """Let `wait` return."""
        self._news.set()

    def close(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.raw.close()


class Sqlite(Engine):
    """The database in the file at a path."""

    kind = "sqlite"
    is_shared = False
    dialect = SQLITE

    def __init__(self, path: Path, connect: Connect = sqlite3.connect) -> None:
        self.path = path
        self.where = str(path)
        self._connect = connect

    def open(self) -> SqliteConnection:
        """Return a connection in WAL mode, in autocommit (transactions are explicit), on the newest schema.

        Raises:
            EngineError, StateError: the message says what to do.
        """
        if sqlite3.sqlite_version_info < _MIN_SQLITE:
            raise StateUnreachable(
                f"SQLite 3.35 or newer is needed; this Python has {sqlite3.sqlite_version}."
            )
        with ExitStack() as undo, explained(self.path):
            raw = self._connect(
                str(self.path), timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False
            )
            undo.enter_context(closing(raw))
            connection = SqliteConnection(self.path, raw)
            self._prepare(connection)
            connection.note_files()
            undo.pop_all()
        return connection

    def _prepare(self, connection: Connection) -> None:
        # First: nothing is changed in what is not ours.
        check_version(connection)
        if connection.execute("PRAGMA page_count").fetchone() == (0,):
            # Has to come before the first table; lets retention give space back.
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise StateUnreachable(
                f"The file system of {self.path} can't share memory, which SQLite's WAL needs (journal mode "
                f"{mode}). Put state_dir on a local disk."
            )
        # `checkpoint` does it, when nothing waits for the writer.
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT_BYTES}")
        connection.execute("PRAGMA trusted_schema = OFF")
        migrate(connection)
        for table in _CHECKED:
            found: str = connection.execute(f"PRAGMA integrity_check({table})").fetchone()[0]
            if found != "ok":
                raise self.damaged(found)

    @contextmanager
    def reading(self, is_cancelled: Callable[[], bool], timeout_s: float) -> Iterator[SqliteConnection]:
        """Return a read-only connection, also to a file that no daemon has open.

        Raises:
            EngineError, StateError: the message says what to do.
        """
        end_s = time.monotonic() + timeout_s
        with explained(self.path), closing(open_read_only(self.path)) as raw:
            connection = SqliteConnection(self.path, raw)
            require_current(connection)
            raw.set_progress_handler(
                lambda: is_cancelled() or time.monotonic() > end_s, _STEPS_BETWEEN_CHECKS
            )
            yield connection

    def disk_use(self) -> DiskUse:
        """Return what the file and its WAL take of the disk, and what is left. A few quick system calls.

        Raises:
            StateBusy: the file system does not answer.
        """
        try:
            wal_bytes = _size(wal_path(self.path))
            used = wal_bytes + _size(self.path) + _size(shm_path(self.path))
            disk = os.statvfs(self.path.parent)
        except OSError as error:
            raise StateBusy(f"The disk of {self.path} can't be examined: {error.strerror}.") from error
        return DiskUse(used, disk.f_bavail * disk.f_frsize, wal_bytes)

    def watch(self) -> SqliteWatch:
        """Return a connection for one thread."""
        return SqliteWatch(self.path)

    def close(self) -> None:
        """Do nothing: readers close their own connections."""

    def how_to_restore(self) -> str:
        """Return the end of a sentence: how to put a backup in place of the database."""
        return how_to_restore(self.path)


def wal_path(path: Path) -> Path:
    """Return the path of a database's write-ahead log."""
    return path.with_name(f"{path.name}-wal")


def shm_path(path: Path) -> Path:
    """Return the path of the index of a database's write-ahead log."""
    return path.with_name(f"{path.name}-shm")


def file_id(info: os.stat_result) -> FileId:
    """Return what tells a file from one that is put in its place."""
    return info.st_dev, info.st_ino


def require_in_place(path: Path, known: FileId) -> None:
    """Do nothing if the database at a path is still the one that was there.

    Raises:
        EngineError: it is not.
    """
    if _id_at(path) != known:
        raise _replaced(path)


def _replaced(path: Path) -> EngineError:
    return EngineError(
        "its files were moved, deleted or replaced",
        Fault.REPLACED,
        StateReplaced(
            f"The database {path} was moved, deleted or replaced while relayd runs, so nothing is stored any "
            f"more. Put its files back, or {how_to_restore(path)}"
        ),
    )


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


def how_to_restore(path: Path) -> str:
    """Return the end of a sentence: how to put a backup in place of a database."""
    return (
        f"stop relayd, move all files {path}* away (an old {path.name}-wal would damage a backup), and put a "
        f"backup at {path}; without one, relayd starts with an empty log and an empty key ring."
    )


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise every `sqlite3.Error` of the block as an `EngineError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise explain(error, path) from error


def explain(error: sqlite3.Error, path: Path) -> EngineError:
    """Return what an error of SQLite means."""
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_IOERR) & 0xFF
    fault, told = _explain(error, code, path)
    return EngineError(str(error), Fault.DATA if isinstance(error, _ABOUT_DATA) else fault, told)


def _explain(error: sqlite3.Error, code: int, path: Path) -> tuple[Fault, StateError]:
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR):
        return Fault.DAMAGED, Sqlite(path).damaged(error)
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_AUTH):
        return Fault.UNREACHABLE, StateUnreachable(
            f"The database {path} can't be opened ({error}). Check its owner and mode (0600) and those of "
            "the directory (0700)."
        )
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return Fault.BUSY, StateBusy(
            f"Another process is using the database {path} ({error}). Try again in a moment."
        )
    if code == sqlite3.SQLITE_INTERRUPT:
        return Fault.INTERRUPTED, StateBusy(
            "The query took too long and was stopped. Ask for less: a narrower filter."
        )
    return Fault.FULL, StateBusy(
        f"The database {path} cannot be written ({error}). Check the free space of its disk."
    )


def _identify(path: Path) -> list[FileId | None]:
    """Return which files are the database, its WAL and its index; None for what is not there."""
    return [_id_at(file) for file in (path, wal_path(path), shm_path(path))]


def _id_at(file: Path) -> FileId | None:
    try:
        return file_id(file.stat())
    except OSError:
        return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
