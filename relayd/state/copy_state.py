"""Copies a SQLite file into an empty PostgreSQL database: `relayd migrate-state`.

The tables are made first, with one named `unfinished_copy` beside them, which keeps every relayd away. Rows
follow in the order of their keys and are committed in steps, so that an interrupted copy continues where
it was. When both sides have the same rows, it is renamed: the database may then be used. Until a relay
uses it, the copy can be made again.
"""

from __future__ import annotations

import hashlib
import math
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from relayd.state.columns import storable_text
from relayd.state.directory import locked_directory
from relayd.state.engine import as_state_errors
from relayd.state.errors import StateBusy, StateDamaged
from relayd.state.postgres import Postgres, PostgresConnection
from relayd.state.schema import UNFINISHED_COPY, bring_up_to_date
from relayd.state.sqlite import Sqlite

_STEP_ROWS = 10_000
"""How many rows are committed together; at most so many are copied again after an interruption."""
_NOT_COPIED = {"boots", "instances", "commands", "replies"}
"""Tables about processes, none of which runs now."""
_FINISHED_COPY = "finished_copy"
"""What `unfinished_copy` is called once the database may be used."""
_LOCK = 0x636F7079
"""Names the lock of a copy among the advisory locks of a database."""
_LOCK_TIMEOUT_S = 30
"""How long the server may take to notice that an earlier copy was killed."""

_Row = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a step is with a table."""

    step: str
    """What was done with the rows: `read`, `copied` or `verified`."""
    table: str
    rows: int
    of: int
    """How many rows the table has."""


OnProgress = Callable[[Progress], None]


class Copied(msgspec.Struct, frozen=True):
    """A copy that is complete and verified."""

    source: str
    target: str
    is_continued: bool
    """Whether an interrupted copy was completed; or it was complete, and only its end was not heard of."""
    rows: dict[str, int]
    """How many rows each table has."""
    digests: dict[str, str]
    """SHA-256 of each table's rows, the same on both sides."""


@dataclass(frozen=True, slots=True)
class _Table:
    """A table of the source."""

    name: str
    columns: list[str]
    order: list[str]
    """The columns of the primary key."""
    rows: int
    names: list[str] | None
    """Of `meta`, which also has what is the database's own: the rows that the source has."""

    @property
    def selected(self) -> str:
        """Return SQL for the table and the condition of its copied rows."""
        if self.names is None:
            return f'"{self.name}"'
        return f'"{self.name}" WHERE name IN ({", ".join(f"{name!r}" for name in self.names)})'


def copy_state(database: Path, engine: Postgres, on_progress: OnProgress) -> Copied:
    """Copy clients, keys, usage, audit and log, as they are now, and verify the copy. Blocks.

    Args:
        database: the SQLite file; no daemon may use it.
        engine: an empty database, or one with a copy of this file that no relay has used.
        on_progress: called after some thousand rows.

    Raises:
        StateBusy: a daemon uses the file, or another copy into the database is running.
        StateDamaged: the database is not empty, or has other rows than the file after all.
        StateError: the file can't be read, or the server refuses or does not answer.
    """
    with (
        as_state_errors(engine),
        Sqlite(database).reading(lambda: False, math.inf) as reading,
        locked_directory(database.parent),
        _writing(engine) as target,
    ):
        source = reading.raw
        # What an older release may have stored, as this one would store it.
        source.text_factory = lambda text: storable_text(text.decode("utf-8", "replace"))
        source.execute("BEGIN")
        tables = list(_tables(source))
        digests = {
            table.name: _digest(_source_rows(source, table), "read", table, on_progress) for table in tables
        }
        is_continued = _prepare(engine, tables, digests)
        for table in tables:
            _copy(source, target, table, on_progress)
        _finish(target, engine, tables, digests, on_progress)
    rows = {table.name: table.rows for table in tables}
    return Copied(str(database), engine.where, is_continued, rows, digests)


@contextmanager
def _writing(engine: Postgres) -> Iterator[psycopg.Connection]:
    """Connect to the server, alone among the copies into it."""
    try:
        with closing(engine.connect_patiently()) as connection:
            connection.execute(f"SET lock_timeout = '{_LOCK_TIMEOUT_S}s'".encode())
            try:
                connection.execute("SELECT pg_advisory_lock(%s)", (_LOCK,))
            except psycopg.errors.LockNotAvailable as error:
                raise StateBusy(f"Another copy into {engine.where} is running. Wait for its end.") from error
            yield connection
    except psycopg.Error as error:
        raise engine.explain(error) from error


def _tables(source: sqlite3.Connection) -> Iterator[_Table]:
    found = source.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name").fetchall()
    for (name,) in found:
        if name in _NOT_COPIED or name.startswith("sqlite_"):
            continue
        columns = source.execute("SELECT name, pk FROM pragma_table_info(?)", (name,)).fetchall()
        rows = source.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]  # noqa: S608 - own table
        meta = source.execute("SELECT name FROM meta").fetchall() if name == "meta" else None
        yield _Table(
            name,
            [column for column, _ in columns],
            [column for _, column in sorted((place, column) for column, place in columns if place)],
            rows,
            None if meta is None else [row[0] for row in meta],
        )


def _query(table: _Table) -> str:
    """Return the query for all its rows, which both sides give in the same order: that of the bytes."""
    columns, order = (", ".join(f'"{name}"' for name in names) for names in (table.columns, table.order))
    return f"SELECT {columns} FROM {table.selected} ORDER BY {order}"  # noqa: S608 - own names


def _source_rows(source: sqlite3.Connection, table: _Table, skip: int = 0) -> Iterator[_Row]:
    return source.execute(f"{_query(table)} LIMIT -1 OFFSET ?", (skip,))


def _target_rows(target: psycopg.Connection, table: _Table) -> Iterator[_Row]:
    """Return the rows of the copy; memory holds some thousand at a time."""
    with target.cursor(name="copied") as cursor:
        cursor.itersize = _STEP_ROWS
        cursor.execute(_query(table).encode())
        yield from cursor


def _digest(rows: Iterable[_Row], step: str, table: _Table, on_progress: OnProgress) -> str:
    """Return the SHA-256 of rows; a float is the same eight bytes on both sides."""
    digest, encode = hashlib.sha256(), msgspec.msgpack.Encoder().encode
    count = 0
    for count, row in enumerate(rows, 1):
        digest.update(encode(row))
        if count % _STEP_ROWS == 0:
            on_progress(Progress(step, table.name, count, table.rows))
    if count % _STEP_ROWS:
        on_progress(Progress(step, table.name, count, table.rows))
    return digest.hexdigest()


def _prepare(engine: Postgres, tables: list[_Table], digests: dict[str, str]) -> bool:
    """Make the tables, or find them with a part of this copy or all of it; return whether they were there.

    What the file was earlier is removed.
    """
    with closing(PostgresConnection(engine, is_writer=True)) as connection:
        connection.begin_migration()
        if connection.columns(UNFINISHED_COPY):
            pass
        elif connection.columns(_FINISHED_COPY) and not connection.execute("SELECT 1 FROM instances").rows:
            connection.execute(f"ALTER TABLE {_FINISHED_COPY} RENAME TO {UNFINISHED_COPY}")
        else:
            if connection.version():
                raise StateDamaged(
                    f"The database {engine.where} has the state of a relay already. Name an empty one, or "
                    "remove its tables if nothing uses them."
                )
            bring_up_to_date(connection)
            connection.define(
                f'CREATE TABLE {UNFINISHED_COPY} ("table" TEXT PRIMARY KEY, digest TEXT NOT NULL)'
            )
        begun = dict(connection.execute(f"SELECT * FROM {UNFINISHED_COPY}").rows)  # noqa: S608 - own table
        is_continued = begun == digests
        if not is_continued:
            whole = ", ".join(f'"{table.name}"' for table in tables if table.names is None)
            connection.execute(f"TRUNCATE {whole}")
            for table in tables:
                if table.names is not None:
                    connection.execute(f"DELETE FROM {table.selected}")  # noqa: S608 - own table
            connection.execute(f"DELETE FROM {UNFINISHED_COPY}")  # noqa: S608 - own table
            for item in digests.items():
                connection.execute(f"INSERT INTO {UNFINISHED_COPY} VALUES (?, ?)", item)  # noqa: S608 - own table
        connection.end_migration()
    return is_continued


def _count(target: psycopg.Connection, table: _Table) -> int:
    row = target.execute(f"SELECT count(*) FROM {table.selected}".encode()).fetchone()  # noqa: S608 - own table
    return int(row[0]) if row else 0


def _copy(
    source: sqlite3.Connection, target: psycopg.Connection, table: _Table, on_progress: OnProgress
) -> None:
    """Copy the rows that are not there yet."""
    done = _count(target, table)
    rows = _source_rows(source, table, done)
    columns = ", ".join(f'"{name}"' for name in table.columns)
    statement = f'COPY "{table.name}" ({columns}) FROM STDIN'.encode()
    while step := list(islice(rows, _STEP_ROWS)):
        with target.cursor() as cursor, cursor.copy(statement) as copy:
            for row in step:
                copy.write_row(row)
        done += len(step)
        on_progress(Progress("copied", table.name, done, table.rows))


def _finish(
    target: psycopg.Connection,
    engine: Postgres,
    tables: list[_Table],
    digests: dict[str, str],
    on_progress: OnProgress,
) -> None:
    """Compare both sides, and let the database be used."""
    with target.transaction():
        for table in tables:
            if _digest(_target_rows(target, table), "verified", table, on_progress) != digests[table.name]:
                raise StateDamaged(
                    f"The table {table.name} of the database {engine.where} is not the same as in the file "
                    f"({_count(target, table)} rows and {table.rows}): something else has written to it. "
                    "Remove its tables, and copy again."
                )
            target.execute(f'ANALYZE "{table.name}"'.encode())
        target.execute(f"ALTER TABLE {UNFINISHED_COPY} RENAME TO {_FINISHED_COPY}".encode())
