"""What relayd needs of a database: connections, one family of errors, and the SQL that differs.

SQL is written once, in what SQLite and PostgreSQL have in common, with `?` and `:name` for parameters. A
`Dialect` writes the few expressions that differ; `relayd.state.sqlite` and `relayd.state.postgres`
implement the rest.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

import msgspec

from relayd.state.errors import StateDamaged, StateError
from relayd.state.records import DiskUse

Parameters = Sequence[object] | Mapping[str, object]


class Fault(Enum):
    """What is wrong, as far as it decides what the caller does next."""

    DATA = auto()
    """The statement or its values: it would fail again."""
    BUSY = auto()
    """Another transaction is in the way; that passes."""
    FULL = auto()
    """The disk is full or broken for writing, which may pass; the database itself is well."""
    UNREACHABLE = auto()
    """The file can't be opened, or the server does not answer."""
    INTERRUPTED = auto()
    """The query took too long, or its reader was closed."""
    DAMAGED = auto()
    REPLACED = auto()
    """The database is not the one that was opened."""
    UNKNOWN = auto()
    """The connection broke during COMMIT: the transaction may have been committed, or not."""


class EngineError(Exception):
    """The database refused; `str` is its own reason.

    Args:
        reason: in the words of the database.
        fault: what kind of failure this is.
        told: the same as a sentence for the operator.
    """

    def __init__(self, reason: str, fault: Fault, told: StateError) -> None:
        super().__init__(reason)
        self.fault = fault
        self.told = told


@dataclass(frozen=True, slots=True)
class Result:
    """All that a statement returned; `rowcount` is how many rows it changed."""

    rows: list[tuple[Any, ...]]
    rowcount: int

    def fetchone(self) -> Any:
        """Return the first row, or None."""
        return self.rows[0] if self.rows else None

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        return iter(self.rows)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Dialect:
    """The SQL that the engines write differently. All are made of SQL and give SQL, never values."""

    for_update: str
    """Ends a SELECT that keeps its rows for this transaction."""
    like: str
    """Matches a pattern; ASCII letters match both cases."""
    differs: str
    """Compares; null differs from everything but null."""
    now_s: str
    """The Unix time by the clock of the database."""
    object_function: str
    """Makes a JSON object of names and values."""
    array_function: str
    """Makes a JSON array."""
    greatest_function: str
    """Returns the greatest of several values."""
    json_list: Callable[[str], str]
    """The aggregate of JSON values as one JSON array, `[]` of no rows."""
    json_map: Callable[[str, str], str]
    """The aggregate of keys and values as one JSON object, `{}` of no rows."""
    as_json: Callable[[str], str]
    """A text that holds JSON as a JSON value."""
    listed: Callable[[str], str]
    """The query for the texts of a parameter that is a JSON array; its column is `value`."""
    rows_of_json: Callable[[str, str, str], str] | None
    """The query for these columns, in a table's types, of a parameter that is a JSON array of objects.

    None if it is slower than a parameter for each value.
    """
    hex: Callable[[str], str]
    """Bytes as lower-case hexadecimal digits."""
    is_in_network: Callable[[str, str], str]
    """Whether a text is an IP address of a network."""

    def json_object(self, fields: Iterable[str], **expressions: str) -> str:
        """Return a JSON object of these columns, some given as other expressions."""
        pairs = (f"'{name}', {expressions.get(name, name)}" for name in fields)
        return f"{self.object_function}({', '.join(pairs)})"

    def json_array(self, *expressions: str) -> str:
        """Return a JSON array of these values."""
        return f"{self.array_function}({', '.join(expressions)})"

    def greatest(self, *expressions: str) -> str:
        """Return the greatest of several values."""
        return f"{self.greatest_function}({', '.join(expressions)})"


class Connection(ABC):
    """One connection, in autocommit outside of `begin` and `commit`. Every method may raise `EngineError`."""

    dialect: Dialect
    where: str
    """Names the database for people; without secrets."""

    @abstractmethod
    def execute(self, sql: str, parameters: Parameters = ()) -> Result:
        """Run one statement."""

    @abstractmethod
    def executemany(self, sql: str, rows: Sequence[Parameters]) -> None:
        """Run one statement for each row of parameters."""

    @property
    @abstractmethod
    def in_transaction(self) -> bool:
        """Return whether a transaction is open."""

    @abstractmethod
    def begin(self, *, durable: bool) -> None:
        """Begin to write. A durable transaction survives a power cut, not only the end of the process."""

    @abstractmethod
    def commit(self) -> None:
        """End the transaction; it is in force.

        Raises:
            EngineError: nothing has changed; but with `Fault.UNKNOWN`, only `was_committed` tells.
        """

    @abstractmethod
    def was_committed(self) -> bool:
        """Return whether the last transaction is in force, whose commit ended with `Fault.UNKNOWN`.

        Raises:
            EngineError: it is still under way, or that can't be known yet.
        """

    @abstractmethod
    def rollback(self) -> None:
        """End the transaction, if there is one; nothing has changed."""

    @abstractmethod
    def notify(self) -> None:
        """Let other processes look at the database as soon as this transaction is committed.

        A hint, where the database has such a thing: nothing may rely on it.
        """

    @abstractmethod
    def check_in_place(self) -> None:
        """Raise `EngineError` if this is not the database that was opened; any thread may ask."""

    @abstractmethod
    def checkpoint(self) -> None:
        """Do what keeps the database in order; called each second, never waits for readers."""

    @abstractmethod
    def used_bytes(self) -> int:
        """Return how many bytes of the database hold something."""

    @abstractmethod
    def give_back_space(self) -> bool:
        """Return some free space to the file system; return whether there is more."""

    @abstractmethod
    def version(self) -> int:
        """Return how many migrations the database has seen.

        Raises:
            StateOtherFormat: it has a part of a copy.
            StateDamaged: it is the database of some other program.
        """

    @abstractmethod
    def oldest_reader(self) -> int:
        """Return how many migrations a relayd has to know to use the database as it is."""

    @abstractmethod
    def set_version(self, version: int, oldest_reader: int) -> None:
        """Store how many migrations the database has seen, and how many its users have to know."""

    @abstractmethod
    def begin_migration(self) -> None:
        """Begin to change the schema, alone among all processes."""

    @abstractmethod
    def end_migration(self) -> None:
        """Commit the new schema."""

    @abstractmethod
    def columns(self, table: str) -> set[str]:
        """Return the names of a table's columns; none if there is no such table."""

    @abstractmethod
    def define(self, statement: str) -> None:
        """Run a statement that defines a table or an index, written for SQLite."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""


class Watch(ABC):
    """A connection of its own for one thread that looks at the database again and again."""

    @property
    @abstractmethod
    def connection(self) -> Connection:
        """Return the connection, which only reads; each statement has two seconds.

        Raises:
            EngineError, StateError: there is none.
        """

    @abstractmethod
    def wait(self, timeout_s: float) -> None:
        """Return at the next notification, at `wake`, or when the time is over."""

    @abstractmethod
    def wake(self) -> None:
        """Let `wait` return. For any thread."""

    @abstractmethod
    def close(self) -> None:
        """Close the connection."""


class Engine(ABC):
    """One database; makes connections to it."""

    kind: str
    """`sqlite` or `postgresql`."""
    where: str
    """Names the database for people; without secrets."""
    dialect: Dialect
    is_shared: bool
    """Whether other machines may use the same database."""

    @abstractmethod
    def open(self) -> Connection:
        """Return the writing connection, on the newest schema.

        Raises:
            EngineError, StateError: the message says what to do.
        """

    @abstractmethod
    def reading(
        self, is_cancelled: Callable[[], bool], timeout_s: float
    ) -> AbstractContextManager[Connection]:
        """Return a connection that only reads, for any thread, also beside a daemon.

        Args:
            is_cancelled: asked while a query runs; true ends it, as the timeout does.
            timeout_s: how long all queries of the connection may take together.

        Raises:
            EngineError, StateError: the message says what to do.
        """

    @abstractmethod
    def watch(self) -> Watch:
        """Return a connection for one thread, which is made when it is used first."""

    @property
    def error(self) -> str | None:
        """Why the database does not answer, as a sentence; None while it does. Cheap, for any thread."""
        return None

    @abstractmethod
    def close(self) -> None:
        """Let go of what the engine itself holds; its writing connection is closed already."""

    @abstractmethod
    def disk_use(self) -> DiskUse | None:
        """Return what the database takes of the disk, and what is left; None if it is on no disk of ours.

        Raises:
            StateBusy: the disk does not answer.
        """

    @abstractmethod
    def how_to_restore(self) -> str:
        """Return the end of a sentence: how to put a backup in place of the database."""

    def damaged(self, reason: object) -> StateDamaged:
        """Return the sentence for content that makes no sense."""
        return StateDamaged(
            f"The database {self.where} is damaged ({reason}). To go on, {self.how_to_restore()}"
        )


@contextmanager
def as_state_errors(engine: Engine) -> Iterator[None]:
    """Raise every `EngineError` of the block, and what makes no sense, as a `StateError`."""
    try:
        yield
    except EngineError as error:
        raise error.told from error
    except msgspec.MsgspecError as error:
        raise engine.damaged(error) from error
