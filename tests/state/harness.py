"""What the tests of the state share: records, a clock to set, a disk that fails on command."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relayd.files import DATABASE
from relayd.state import postgres, sqlite
from relayd.state.database import Database
from relayd.state.directory import StateDirectory
from relayd.state.engine import Engine, EngineError, Fault, Parameters, Result
from relayd.state.errors import StateBusy
from relayd.state.keyring import Caller
from relayd.state.postgres import Postgres, PostgresConnection
from relayd.state.records import LogEvent, Outcome, Peer, Phase, RecordedError, RequestRecord, utc_text
from relayd.state.sqlite import Sqlite
from relayd.state.state import State
from tests.support.postgres import Postgres as Server
from tests.wire import PATIENCE_S

FIRST_RELEASE = Path(__file__).with_name("first_release.sql")
"""What the first release wrote."""
NOON_S = 1_800_000_000.0
ALICE = Caller(Peer(uid=1000, pid=4242, login="alice"))


class Clock:
    """A clock that stands still until a test moves it."""

    def __init__(self, now_s: float = NOON_S) -> None:
        self.now_s = now_s

    def __call__(self) -> float:
        """Return the Unix time."""
        return self.now_s


class Published:
    """Collects the events that come out of the writer's thread, and waits for them."""

    def __init__(self) -> None:
        self.events: list[LogEvent] = []
        self._news = threading.Condition()

    def __call__(self, events: Sequence[LogEvent]) -> None:
        """Take the events of one commit."""
        with self._news:
            self.events += events
            self._news.notify_all()

    def wait_for(self, count: int, timeout_s: float = 30.0) -> list[LogEvent]:
        """Return the events, once there are so many."""
        with self._news:
            assert self._news.wait_for(lambda: len(self.events) >= count, timeout_s), self.events
            return list(self.events)


class Disk:
    """Makes connections, and fails chosen statements as a full or broken disk would."""

    def __init__(self) -> None:
        self.fails: Callable[[str], bool] = lambda _: False
        self.statements: list[str] = []

    def full(self, *, beginning: tuple[str, ...] = ("INSERT", "UPDATE", "DELETE", "COMMIT")) -> None:
        """Fail statements that begin so from now on."""
        self.fails = lambda sql: sql.startswith(beginning)

    def mended(self) -> None:
        """Take every statement again."""
        self.fails = lambda _: False

    def connect(self, *args: Any, **kwargs: Any) -> sqlite3.Connection:
        """Stand in for `sqlite3.connect`."""
        disk = self

        class Connection(sqlite3.Connection):
            def execute(self, sql: str, parameters: Any = (), /) -> sqlite3.Cursor:
                disk.check(sql)
                return super().execute(sql, parameters)

            def executemany(self, sql: str, parameters: Any, /) -> sqlite3.Cursor:
                disk.check(sql)
                return super().executemany(sql, parameters)

        return sqlite3.connect(*args, factory=Connection, **kwargs)

    def check(self, sql: str) -> None:
        """Note a statement, and fail if it is a chosen one."""
        self.statements.append(sql)
        if self.fails(sql):
            raise sqlite3.OperationalError("database or disk is full")


class PostgresDatabases:
    """A database on one server for each state directory of a test."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._template = server.create_database()
        engine = Postgres(server.url(self._template))
        engine.open().close()
        engine.close()
        self._names: dict[Path, str] = {}

    def url(self, state_dir: Path) -> str:
        """Return the URL of a directory's database, which has the tables of an empty relay."""
        if state_dir not in self._names:
            self._names[state_dir] = self._server.create_database(self._template)
        return patient_url(self._server.url(self._names[state_dir]))

    def drop(self) -> None:
        """Remove all of them."""
        for name in self._names.values():
            self._server.drop_database(name)
        self._names.clear()


def patient_url(url: str) -> str:
    """Return a URL with which a busy machine has time to connect."""
    return f"{url}&connect_timeout={PATIENCE_S:.0f}"


@contextmanager
def patience() -> Iterator[None]:
    """Let the databases take as long as a busy machine needs."""
    usual = postgres.TIMEOUT_S, sqlite.BUSY_TIMEOUT_S
    postgres.TIMEOUT_S = sqlite.BUSY_TIMEOUT_S = PATIENCE_S
    try:
        yield
    finally:
        postgres.TIMEOUT_S, sqlite.BUSY_TIMEOUT_S = usual


_databases: list[PostgresDatabases] = []
"""Not empty while the harness opens PostgreSQL."""


@contextmanager
def on_postgres(databases: PostgresDatabases) -> Iterator[None]:
    """Open PostgreSQL instead of SQLite."""
    _databases.append(databases)
    try:
        with patience():
            yield
    finally:
        _databases.pop()
        databases.drop()


class _FailingConnection(PostgresConnection):
    disk: Disk

    def begin(self, *, durable: bool) -> None:
        self._check("BEGIN")
        super().begin(durable=durable)

    def commit(self) -> None:
        try:
            self._check("COMMIT")
        except EngineError:
            self.rollback()
            raise
        super().commit()

    def rollback(self) -> None:
        if self.in_transaction:
            self._check("ROLLBACK")
        super().rollback()

    def execute(self, sql: str, parameters: Parameters = ()) -> Result:
        self._check(sql)
        return super().execute(sql, parameters)

    def executemany(self, sql: str, rows: Sequence[Parameters]) -> None:
        self._check(sql)
        super().executemany(sql, rows)

    def _check(self, sql: str) -> None:
        try:
            self.disk.check(sql)
        except sqlite3.OperationalError as error:
            told = StateBusy(f"The database cannot be written ({error}). Check the free space of its disk.")
            raise EngineError(str(error), Fault.FULL, told) from error


class _FailingPostgres(Postgres):
    def __init__(self, url: str, disk: Disk) -> None:
        super().__init__(url)
        self._disk = disk

    def open(self) -> PostgresConnection:
        super().open().close()
        connection = _FailingConnection(self, is_writer=True)
        connection.disk = self._disk
        return connection


def engine_for(state_dir: Path, disk: Disk | None = None) -> Engine:
    """Return the engine that a test's state directory is opened with."""
    if _databases:
        url = _databases[-1].url(state_dir)
        return Postgres(url) if disk is None else _FailingPostgres(url, disk)
    path = state_dir / DATABASE
    return Sqlite(path) if disk is None else Sqlite(path, disk.connect)


def make_database(state_dir: Path) -> Path:
    """Make a state directory with an empty database file; return the file's path."""
    with StateDirectory(state_dir) as directory:
        return directory.database


def file_of(database: Database) -> Path:
    """Return the path of a SQLite database."""
    return Path(database.engine.where)


@contextmanager
def opened(
    state_dir: Path,
    *,
    boot_id: str = "boot-1",
    published: Published | None = None,
    clock: Callable[[], float] = time.time,
    disk: Disk | None = None,
    engine: Engine | None = None,
) -> Iterator[State]:
    """Open a state directory, or a database of its own; close it in good order at the end."""
    engine = engine or engine_for(state_dir, disk)
    state = State.open(
        StateDirectory(state_dir, has_database=not engine.is_shared),
        boot_id=boot_id,
        keep_days=30,
        max_mib=512,
        on_commit=published or Published(),
        clock=clock,
        engine=engine,
    )
    try:
        yield state
    finally:
        state.close()


class BorrowedDirectory(StateDirectory):
    """A locked directory as a process has it that was forked from the one that locked it."""

    def __init__(self, owner: StateDirectory) -> None:
        self.__dict__.update(owner.__dict__)

    def close(self) -> None:
        """Leave the lock to its owner."""


@dataclass(frozen=True, slots=True)
class SharedDatabase:
    """A database that several instances use: the SQLite file of one machine, or PostgreSQL for several."""

    home: Path
    """Has the state directories."""
    url: str | None = None
    """Of PostgreSQL; None: SQLite."""

    def engine(self) -> Engine:
        """Return one process's way to it."""
        return Sqlite(self.home / "state" / DATABASE) if self.url is None else Postgres(self.url)

    @contextmanager
    def opened(self, count: int) -> Iterator[list[State]]:
        """Open it several times, as the instances of one relay do: `boot-1`, `boot-2` and so on."""
        with ExitStack() as stack:
            owner = stack.enter_context(StateDirectory(self.home / "state"))
            states = []
            for number in range(1, count + 1):
                state = self.instance(self.directory(owner, number), number)
                stack.callback(state.close)
                states.append(state)
            yield states

    def instance(
        self, directory: StateDirectory, number: int, *, boot_id: str = "", is_first: bool = False
    ) -> State:
        """Open it as one instance does: `boot-1` for the first, unless it is given another boot id."""
        return State.open(
            directory,
            boot_id=boot_id or f"boot-{number}",
            worker=number,
            is_shared=True,
            is_first=is_first,
            keep_days=30,
            max_mib=512,
            on_commit=Published(),
            engine=self.engine(),
        )

    def directory(self, owner: StateDirectory, number: int) -> StateDirectory:
        """Return the state directory of an instance: that of its machine, or the one that workers share."""
        if self.url is None:
            return BorrowedDirectory(owner)
        return StateDirectory(self.home / f"state-{number}", has_database=False)

    def execute(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        """Do to the database what no relayd does."""
        engine = self.engine()
        with closing(engine), closing(engine.open()) as connection:
            return connection.execute(statement, values).rows


@contextmanager
def opened_database(
    state_dir: Path,
    *,
    boot_id: str = "boot-1",
    published: Published | None = None,
    disk: Disk | None = None,
) -> Iterator[Database]:
    """Open a database for writing, without a thread beside the test."""
    engine = engine_for(state_dir, disk)
    with StateDirectory(state_dir, has_database=not engine.is_shared):
        """Make it."""
    with closing(engine), closing(engine.open()) as connection:
        yield Database(engine, connection, boot_id, published or Published())


def a_record(number: int = 1, boot_id: str = "boot-1", started_s: float = NOON_S) -> RequestRecord:
    """Return a request that has just been admitted."""
    return RequestRecord(
        id=f"req-{number:06d}",
        boot_id=boot_id,
        started_at=utc_text(started_s),
        client="web",
        key_id="abcd1234",
        ip="203.0.113.7",
        origin="https://example.org",
        user_agent="Mozilla/5.0 (X11; Linux x86_64)",
        path="/chat",
        model="gpt-4o-mini",
    )


def as_ended(record: RequestRecord, status: int = 200) -> RequestRecord:
    """Complete the record; a status of 400 or more makes it a failure."""
    record.phase = Phase.DONE
    record.status = status
    record.outcome = Outcome.COMPLETED
    record.connect_ms, record.first_token_ms, record.duration_ms = 12, 120, 800
    record.deltas, record.bytes_out = 20, 2048
    record.cost_usd = 0.0125
    record.finish_reason = "stop"
    if status >= 400:
        record.outcome = Outcome.UPSTREAM_ERROR
        record.error = RecordedError("upstream_failed", "The provider failed.")
        record.finish_reason = None
    return record
