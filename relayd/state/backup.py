"""A copy of the database in one file, made while a daemon uses it or not."""

from __future__ import annotations

import os
import secrets
import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec

from relayd.state.engine import Fault, as_state_errors
from relayd.state.errors import StateDamaged, StateUnreachable
from relayd.state.schema import check_version
from relayd.state.sqlite import Sqlite, SqliteConnection, explain, explained, open_read_only


class Backup(msgspec.Struct, frozen=True):
    """A backup that was made."""

    database: str
    file: str
    bytes: int
    generation: int
    """How often the key ring had changed by then."""


def back_up(database: Path, target: Path) -> Backup:
    """Copy keys, audit and log, as of one moment, into a new file that only its owner may read. Blocks.

    The file has its name only once it is whole, checked and on disk.

    Raises:
        StateUnreachable: the database can't be read, or the target can't be written, or is there already.
        StateError: the database is damaged, or a newer relayd wrote it.
    """
    try:
        _check_free(target)
        part = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
        os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        try:
            generation = _copy(database, part)
            _sync(part)
            _publish(part, target)
        finally:
            part.unlink(missing_ok=True)
        _sync(target.parent)
        return Backup(str(database), str(target), target.stat().st_size, generation)
    except FileExistsError as error:
        raise StateUnreachable(f"{target} is there already. Name another file, or move it away.") from error
    except OSError as error:
        raise StateUnreachable(
            f"The backup {target} can't be written: {error.strerror or error}. Name a file in a directory "
            "that you may write to, on a disk with enough space."
        ) from error


def _copy(database: Path, part: Path) -> int:
    with (
        as_state_errors(Sqlite(database)),
        explained(database),
        closing(open_read_only(database)) as source,
    ):
        check_version(SqliteConnection(database, source))
        with closing(sqlite3.connect(part, isolation_level=None)) as copy:
            try:
                source.backup(copy)
                # A file that any program can read on its own, without a write-ahead log.
                copy.execute("PRAGMA journal_mode = DELETE").fetchone()
            except sqlite3.Error as error:
                if explain(error, database).fault is not Fault.FULL:
                    raise
                # It is the disk of the copy: nothing is written to the source.
                raise OSError(str(error)) from error
            found: str = copy.execute("PRAGMA quick_check(1)").fetchone()[0]
            if found != "ok":
                raise StateDamaged(f"The database {database} is damaged ({found}). Keep older backups.")
            generation: int = copy.execute("SELECT generation FROM ring").fetchone()[0]
    return generation


def _check_free(target: Path) -> None:
    """Raise FileExistsError if something has the name."""
    if os.path.lexists(target):
        raise FileExistsError


def _publish(part: Path, target: Path) -> None:
    """Give the file its name. Raises FileExistsError if something has it."""
    try:
        # Unlike a rename this replaces nothing.
        os.link(part, target)
    except FileExistsError:
        raise
    except OSError:
        # FAT and some network file systems have no links.
        _check_free(target)
        part.rename(target)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
