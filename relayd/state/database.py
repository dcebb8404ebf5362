"""One SQLite file: made with the right permissions, opened for writing or reading, its errors in words."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from relayd.state.errors import StateBusy, StateDamaged, StateError, StateOtherFormat, StateUnreachable
from relayd.state.migrations import MIGRATIONS, check_version, migrate

FILE_NAME = "relayd.db"
BUSY_TIMEOUT_S = 2.0
"""How long a statement waits for another process; the old and the new daemon may overlap."""
WAL_LIMIT_BYTES = 16 * 1024 * 1024
_MIN_SQLITE = (3, 35)
"""RETURNING and materialised subqueries."""

Connect = Callable[..., sqlite3.Connection]
"""`sqlite3.connect`, or what a test puts in its place."""


def make_private(state_dir: Path) -> Path:
    """Make the directory (0700) and the file in it (0600) where they are missing; the file's path.

    Raises:
        StateUnreachable: not possible, or the directory is open to writers we do not know.
    """
    path = state_dir / FILE_NAME
    try:
        if not state_dir.is_dir():
            state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        mode = stat.S_IMODE(state_dir.stat().st_mode)
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
        for side in side_files(path):
            with suppress(FileNotFoundError):
                side.chmod(0o600)
    except OSError as error:
        raise StateUnreachable(
            f"The state directory {state_dir} can't be used: {error.strerror or error}. "
            "relayd needs to own it (mode 0700), or another state_dir."
        ) from error
    return path


def side_files(path: Path) -> tuple[Path, Path]:
    """The WAL and its index beside a database."""
    return path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")


def open_for_writing(path: Path, connect: Connect = sqlite3.connect) -> sqlite3.Connection:
    """A connection in WAL mode, in autocommit (transactions are explicit), on the newest schema.

    Raises:
        StateError: in words.
    """
    if sqlite3.sqlite_version_info < _MIN_SQLITE:
        raise StateUnreachable(f"SQLite 3.35 or newer is needed; this Python has {sqlite3.sqlite_version}.")
    with in_words(path):
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
    # The writer checkpoints by itself, when nobody waits for it.
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT_BYTES}")
    connection.execute("PRAGMA trusted_schema = OFF")
    migrate(connection)


def open_for_reading(path: Path, connect: Connect = sqlite3.connect) -> sqlite3.Connection:
    """A read-only connection, also to a file that no daemon has open.

    Raises:
        StateError: in words.
    """
    if not path.exists():
        raise StateUnreachable(f"There is no database at {path}. Has relayd run with this state_dir?")
    with in_words(path):
        try:
            return _connect_read_only(path, "mode=ro", connect)
        except sqlite3.OperationalError:
            if any(side.exists() for side in side_files(path)):
                raise
            # Nothing to recover and no right to make the WAL's index: the file alone is the truth.
            return _connect_read_only(path, "mode=ro&immutable=1", connect)


@contextmanager
def in_words(path: Path) -> Iterator[None]:
    """Raise every `sqlite3.Error` inside as a `StateError`."""
    try:
        yield
    except sqlite3.Error as error:
        raise explain(error, path) from error


def disk_refuses(error: sqlite3.Error) -> bool:
    """Whether the disk is full or broken for writing, which may pass; the database itself is well."""
    return _code(error) in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR)


def _code(error: sqlite3.Error) -> int:
    code: int = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_IOERR)
    return code & 0xFF


def explain(error: sqlite3.Error, path: Path) -> StateError:
    """What an error of SQLite means for the operator."""
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
    return StateBusy(f"The disk refuses to store the database {path} ({error}). Check its free space.")


def _connect_read_only(path: Path, options: str, connect: Connect) -> sqlite3.Connection:
    connection = connect(
        f"{path.absolute().as_uri()}?{options}",
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        check_same_thread=False,
    )
    try:
        version = check_version(connection)
    except BaseException:
        connection.close()
        raise
    if version < len(MIGRATIONS):
        connection.close()
        raise StateOtherFormat(
            f"The database {path} has the old format {version}; start this relayd once to bring it to "
            f"{len(MIGRATIONS)}."
        )
    return connection
