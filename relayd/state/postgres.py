"""PostgreSQL: one database that several machines share, through psycopg.

Every wait for the server ends on this side: a stopped one still acknowledges TCP, and a statement_timeout
needs one that runs. Once it does not answer, everything fails at once until a probe reaches it again. Only
the look-up of its name takes as long as the resolver likes; others then fail before it ends.
"""

from __future__ import annotations

import logging
import math
import re
import secrets
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any

import msgspec
import psycopg
from psycopg.abc import RV, PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.rows import tuple_row
from psycopg.types.string import TextLoader

from relayd.state.engine import (
    Connection,
    Dialect,
    Engine,
    EngineError,
    Fault,
    Parameters,
    Result,
    Watch,
)
from relayd.state.errors import StateBusy, StateDamaged, StateError, StateOtherFormat, StateUnreachable
from relayd.state.records import DiskUse
from relayd.state.schema import TABLES, UNFINISHED_COPY, migrate, require_current

TIMEOUT_S = 2.0
"""How long one statement may take, and one attempt to connect to one host; the least that libpq knows."""
MIGRATION_TIMEOUT_S = 120.0
PROBE_S = 1.0
MIN_VERSION = 13
MAX_READERS = 8
"""How many connections read at once, beside the one that writes."""
_MAX_IDLE = 4
_CHECK_S = 0.1
"""How often a wait looks whether it should end."""
_READ_TIMEOUT_S = 15
"""After which the server ends a query, whose reader has gone before."""
_IN_TRANSACTION_TIMEOUT_S = 10
"""After which the server undoes a transaction of a machine that went away."""
_MARKERS_KEPT = timedelta(days=90)
_BATCH = 100
_LATE = "no answer in time"
_SCHEMA_LOCK = 0x72656C617964
"""Names relayd's advisory lock: the bytes of its name."""
_TOKEN = re.compile(r"""'(?:[^']|'')*'|"[^"]*"|\?|(?<![:\w]):([a-z_]+)|%""")
_TYPE = re.compile(r"""'(?:[^']|'')*'|\b(TEXT|INTEGER|REAL|BLOB)\b|\s*\bWITHOUT ROWID\b""")
_TYPES = {"TEXT": 'TEXT COLLATE "C"', "INTEGER": "BIGINT", "REAL": "DOUBLE PRECISION", "BLOB": "BYTEA"}
"""PostgreSQL's names of SQLite's types. "C" sorts by bytes and folds ASCII alone, as SQLite does."""
_NOW = (
    "strftime('%Y-%m-%dT%H:%M:%fZ', 'now')",
    ("""to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')"""),
)
_IN_NETWORK = """CREATE OR REPLACE FUNCTION relayd_in_network(address text, network text) RETURNS boolean
    LANGUAGE plpgsql IMMUTABLE AS $$
BEGIN
    -- What a proxy forwarded may be any text; leading zeros are ambiguous.
    RETURN address !~ '(^|\\.)0[0-9]|/' AND address::inet <<= network::inet;
EXCEPTION WHEN data_exception THEN
    RETURN false;
END $$"""
_DEFAULTS = {
    "application_name": "relayd",
    "connect_timeout": "2",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "2",
    "tcp_user_timeout": "4000",
    # Behind several hosts, the one that is not a standby.
    "target_session_attrs": "read-write",
}

_log = logging.getLogger(__name__)


POSTGRES = Dialect(
    for_update=" FOR UPDATE",
    like="ILIKE",
    differs="IS DISTINCT FROM",
    now_s="CAST(extract(epoch FROM clock_timestamp()) AS DOUBLE PRECISION)",
    object_function="json_build_object",
    array_function="json_build_array",
    greatest_function="greatest",
    json_list="coalesce(json_agg({}), '[]')".format,
    json_map="coalesce(json_object_agg({}, {}), '{{}}')".format,
    as_json="CAST({} AS json)".format,
    listed="SELECT value FROM json_array_elements_text(CAST({} AS json)) AS listed (value)".format,
    # With a parameter for each value, psycopg takes four times as long.
    rows_of_json="SELECT {} FROM json_populate_recordset(CAST(NULL AS {}), CAST({} AS json))".format,
    hex="encode({}, 'hex')".format,
    # A function that the schema has.
    is_in_network="relayd_in_network({}, {})".format,
)


class _TooLate(psycopg.OperationalError):
    """The server did not answer in time, or the answer is not needed any more."""


@dataclass(frozen=True, slots=True)
class _Limit:
    """When the waits of a connection end."""

    end_s: float
    """Monotonic."""
    is_cancelled: Callable[[], bool] | None = None

    def is_reached(self) -> bool:
        return time.monotonic() >= self.end_s or (self.is_cancelled is not None and self.is_cancelled())


class _Raw(psycopg.Connection[tuple[Any, ...]]):
    """A connection whose waits end: at its limit it closes itself, and the wait raises."""

    limit = _Limit(math.inf)

    def wait(self, gen: PQGen[RV], interval: float = _CHECK_S, timeout: float | None = None) -> RV:
        return super().wait(self._until_limit(gen), min(interval, _CHECK_S), timeout)

    def _until_limit(self, gen: PQGen[RV]) -> PQGen[RV]:
        try:
            wanted = next(gen)
            while True:
                ready = yield wanted
                if not ready and self.limit.is_reached():
                    gen.close()
                    self.close()
                    raise _TooLate(_LATE)
                wanted = gen.send(ready)
        except StopIteration as ended:
            result: RV = ended.value
            return result


def _interrupted(reason: str) -> EngineError:
    told = StateBusy("The query took too long and was stopped. Ask for less: a narrower filter.")
    return EngineError(reason, Fault.INTERRUPTED, told)


class PostgresConnection(Connection):
    """A connection that is made anew when it broke, but never within a transaction."""

    dialect = POSTGRES

    def __init__(self, engine: Postgres, *, is_writer: bool, raw: _Raw | None = None) -> None:
        self.where = engine.where
        self._engine = engine
        self._is_writer = is_writer
        self._is_needed = is_writer
        self._raw = raw
        self._in_transaction = False
        self._timeout_s = TIMEOUT_S
        self.limit: _Limit | None = None
        """Of all statements together; None: each has its own time."""
        self._marker = f"commit {datetime.now(UTC):%Y-%m-%d} {secrets.token_hex(8)}"
        """The name of the row of `meta` that tells whether the last transaction was committed."""
        self._commits = 0
        """How many transactions began: the value of that row, if the last one was committed."""

    @property
    def is_broken(self) -> bool:
        """Return whether the next statement has to connect again."""
        return self._raw is None

    def execute(self, sql: str, parameters: Parameters = ()) -> Result:
        """Run one statement."""
        return self._run(_translate(sql), parameters)

    def executemany(self, sql: str, rows: Sequence[Parameters]) -> None:
        """Run one statement for each row of parameters, many in one round trip."""
        if not rows:
            return
        query = _translate(sql)
        cursor = psycopg.ClientCursor(self._connected())
        for at in range(0, len(rows), _BATCH):
            try:
                statements = [cursor.mogrify(query, row) for row in rows[at : at + _BATCH]]
            except psycopg.Error as error:
                raise self._explain(error) from error
            self._run("; ".join(statements).encode())

    @property
    def in_transaction(self) -> bool:
        """Return whether a transaction is open."""
        return self._in_transaction

    def begin(self, *, durable: bool) -> None:
        """Begin to write; whether commits survive a power cut is the server's `synchronous_commit`.

        The row that tells the outcome is written first: as long as the server has this transaction, it has
        the row's lock, also before it reads the COMMIT.
        """
        del durable
        self._commits += 1
        try:
            self._run(b"BEGIN; " + _translate(_MARK), (self._marker, self._commits))
        except EngineError:
            if not self.is_broken:
                with suppress(EngineError):
                    self._run(b"ROLLBACK")
            raise
        self._in_transaction = True

    def commit(self) -> None:
        """End the transaction; it is in force.

        Raises:
            EngineError: nothing has changed; but with `Fault.UNKNOWN` the connection broke before the answer
                came, and `was_committed` tells once the server can be reached.
        """
        try:
            self._run(b"COMMIT")
        except EngineError as error:
            self._in_transaction = False
            if not self.is_broken:
                with suppress(EngineError):
                    self._run(b"ROLLBACK")
                raise
            try:
                if self.was_committed():
                    return
            except EngineError:
                told = StateUnreachable(
                    f"The connection to the database {self.where} broke while a change was committed: "
                    "whether it is in force is known once the database answers. Look before you repeat it."
                )
                raise EngineError(str(error), Fault.UNKNOWN, told) from error
            raise
        self._in_transaction = False

    def was_committed(self) -> bool:
        """Return whether the last transaction was committed, although its answer was lost.

        An attempt to write its row waits for the old connection's transaction, if the server still has it,
        and ends with an error if that takes too long.
        """
        (found,) = self._run(_translate(_ASK), (self._marker,)).rows[0]
        return bool(found == self._commits)

    def rollback(self) -> None:
        """End the transaction, if there is one; nothing has changed."""
        if self._in_transaction:
            self._in_transaction = False
            if not self.is_broken:
                self._run(b"ROLLBACK")

    def notify(self) -> None:
        """Wake the watches of all processes when the transaction is committed.

        The commit takes a lock of the whole server for it: not for what happens with each request.
        """
        self._run(_NOTIFY)

    def check_in_place(self) -> None:
        """Do nothing: the server looks after its files."""

    def checkpoint(self) -> None:
        """Do nothing: the server does it."""

    def used_bytes(self) -> int:
        """Return about how many bytes the request log takes: its rows, of the size of the newest.

        Each has two places of the log. The size of its files would not do: they never shrink, whatever is
        removed. Nor would the server's statistics, which may have counted rows twice or not at all.
        """
        (used,) = self.execute(
            "SELECT (SELECT sum(CASE name WHEN 'seq' THEN value ELSE -value END) / 2 FROM meta"
            " WHERE name IN ('seq', 'floor_seq'))"
            " * (SELECT coalesce(avg(pg_column_size(newest.*)), 0) + 200 FROM"
            " (SELECT * FROM requests ORDER BY start_seq DESC LIMIT 100) AS newest)"
        ).rows[0]
        return int(used)

    def give_back_space(self) -> bool:
        """Do nothing: autovacuum makes the space usable again."""
        return False

    def version(self) -> int:
        """Return how many migrations the database has seen.

        Raises:
            StateOtherFormat: `relayd migrate-state` has not finished.
            StateDamaged: it is the database of some other program.
        """
        if self.columns(UNFINISHED_COPY):
            raise StateOtherFormat(
                f"The database {self.where} has a part of a copy: run relayd migrate-state again to complete "
                "it."
            )
        return self._meta("version")

    def oldest_reader(self) -> int:
        """Return how many migrations a relayd has to know to use the database as it is."""
        return self._meta("oldest_reader")

    def _meta(self, name: str) -> int:
        if self.execute("SELECT to_regclass('meta') IS NULL").rows == [(True,)]:
            taken = self.execute(
                "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'f')"  # noqa: S608 - own SQL
                " AND pg_table_is_visible(oid)"
                f" AND relname IN ({POSTGRES.listed('?')}) LIMIT 1",
                (msgspec.json.encode(TABLES).decode(),),
            ).rows
            if taken:
                raise StateDamaged(
                    f"The database {self.where} has a table '{taken[0][0]}' of another program. Give relayd "
                    "a database of its own."
                )
            return 0
        found = self.execute("SELECT value FROM meta WHERE name = ?", (name,)).rows
        if not found:
            raise StateDamaged(
                f"The database {self.where} has a table 'meta', but not relayd's. Give relayd a database of "
                "its own."
            )
        return int(found[0][0])

    def set_version(self, version: int, oldest_reader: int) -> None:
        """Store how many migrations the database has seen, and how many its users have to know."""
        for name, value in (("version", version), ("oldest_reader", oldest_reader)):
            self.execute(_MARK, (name, value))

    def columns(self, table: str) -> set[str]:
        """Return the names of a table's columns."""
        query = (
            "SELECT attname FROM pg_attribute"
            " WHERE attrelid = to_regclass(?) AND attnum > 0 AND NOT attisdropped"
        )
        return {name for (name,) in self.execute(query, (table,))}

    def begin_migration(self) -> None:
        """Begin to change the schema, alone among all processes."""
        # Without the row that tells the outcome: `meta` may not be there.
        self._run(b"BEGIN")
        self._in_transaction = True
        self._timeout_s = MIGRATION_TIMEOUT_S
        self.execute(f"SET LOCAL statement_timeout = '{MIGRATION_TIMEOUT_S:.0f}s'")
        self.execute(f"SET LOCAL lock_timeout = '{MIGRATION_TIMEOUT_S:.0f}s'")
        self.execute("SELECT pg_advisory_xact_lock(?)", (_SCHEMA_LOCK,))
        self.execute(_IN_NETWORK)

    def end_migration(self) -> None:
        """Commit the new schema."""
        self.execute("COMMIT")
        self._in_transaction = False
        self._timeout_s = TIMEOUT_S

    def define(self, statement: str) -> None:
        """Run a statement that defines a table or an index, in PostgreSQL's types."""
        own = _TYPE.sub(_translate_type, statement.replace(*_NOW))
        self._run(own.encode())

    def close(self) -> None:
        """Close the connection, and remove its row of `meta`."""
        raw = self._raw
        if raw is None:
            return
        if self._commits:
            with suppress(EngineError):
                self.execute("DELETE FROM meta WHERE name = ?", (self._marker,))
        raw.close()
        self._raw = None

    def _connected(self) -> _Raw:
        if self._raw is None:
            if self._in_transaction:
                raise self._engine.unreachable("the connection broke")
            self._raw = self._engine.connect(is_writer=self._is_writer, is_needed=self._is_needed)
        return self._raw

    def _run(self, query: bytes, parameters: Parameters | None = None) -> Result:
        is_new = self.is_broken
        try:
            return self._run_once(query, parameters)
        except EngineError as error:
            # A connection that broke while nothing was asked, such as by the server's restart, is no news.
            if self._in_transaction or is_new or not self.is_broken or error.fault is not Fault.UNREACHABLE:
                raise
        return self._run_once(query, parameters)

    def _run_once(self, query: bytes, parameters: Parameters | None) -> Result:
        raw = self._connected()
        raw.limit = self.limit or _Limit(time.monotonic() + self._timeout_s)
        if raw.limit.is_reached():
            raise _interrupted(_LATE)
        try:
            cursor = raw.execute(query, parameters)
            return Result(cursor.fetchall() if cursor.description else [], cursor.rowcount)
        except psycopg.Error as error:
            explained = self._explain(error)
            # A server that only reads now is left, too: another of the URL's hosts may have its place.
            if raw.closed or explained.fault is Fault.UNREACHABLE:
                raw.close()
                self._raw = None
            raise explained from error

    def _explain(self, error: psycopg.Error) -> EngineError:
        if not isinstance(error, _TooLate):
            return self._engine.explain(error)
        if self._is_needed:
            late = self._engine.unreachable(str(error))
            self._engine.breaker.open(late)
            return late
        return _interrupted(str(error))


class PostgresWatch(PostgresConnection, Watch):
    """A connection of its own that is notified: those of `reading` may all be taken by long queries."""

    def __init__(self, engine: Postgres) -> None:
        super().__init__(engine, is_writer=False)
        self._is_needed = True
        self._woken, self._wake = socket.socketpair()
        self._woken.settimeout(0)
        self._wake.settimeout(0)

    @property
    def connection(self) -> Connection:
        """Return this."""
        return self

    def wait(self, timeout_s: float) -> None:
        """Return at a notification, at `wake`, or when the time is over.

        The next statement takes what was notified from the connection, so that no notification is read here.
        """
        # Not select(), which knows no descriptor above 1023.
        news = select.poll()
        news.register(self._woken, select.POLLIN)
        if self._raw is not None:
            news.register(self._raw, select.POLLIN)
        news.poll(timeout_s * 1000)
        with suppress(BlockingIOError):
            self._woken.recv(_MAX_WAKES)

    def wake(self) -> None:
        """Let `wait` return."""
        with suppress(OSError):
            self._wake.send(b"\0")

    def close(self) -> None:
        """Close the connection."""
        super().close()
        self._woken.close()
        self._wake.close()

    def _connected(self) -> _Raw:
        is_new = self._raw is None
        raw = super()._connected()
        if is_new:
            self._run_once(_LISTEN, None)
        return raw


_NO_URL = (
    "state.url is not the URL of a PostgreSQL database. Write it like "
    "postgresql://relayd:PASSWORD@db.example/relayd; what has a meaning in URLs, such as @ and / in the "
    "password, is percent-encoded."
)
_NO_PERMISSION = "42501"
_LISTEN, _NOTIFY = b"LISTEN relayd", b"NOTIFY relayd"
_MAX_WAKES = 1024
_MARK = "INSERT INTO meta (name, value) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value"
_ASK = (
    "INSERT INTO meta (name, value) VALUES (?, 0)"
    " ON CONFLICT (name) DO UPDATE SET value = meta.value RETURNING value"
)


class Breaker:
    """Fails everything at once while the server does not answer; a thread asks it once a second."""

    def __init__(self, probe: Callable[[], None]) -> None:
        self._probe = probe
        self._lock = threading.Lock()
        self._error: EngineError | None = None
        self._closed = threading.Event()

    @property
    def error(self) -> str | None:
        """Return why the server does not answer, as a sentence; None while it does."""
        error = self._error
        return None if error is None else str(error.told)

    def check(self) -> None:
        """Raise `EngineError` while the server does not answer."""
        error = self._error
        if error is not None:
            raise EngineError(str(error), error.fault, type(error.told)(str(error.told)))

    def open(self, error: EngineError) -> None:
        """Take the server for gone, until it answers a probe."""
        with self._lock:
            if self._error is not None or self._closed.is_set():
                return
            try:
                # First: without a probe it would stay open for ever.
                threading.Thread(target=self._wait_for_answer, name="relayd-state-probe", daemon=True).start()
            except RuntimeError as refused:
                _log.error("%s It is asked again by each request: %s", error.told, refused)
                return
            self._error = error
        _log.error("%s Trying again each second.", error.told)

    def close(self) -> None:
        """End the probes."""
        self._closed.set()

    def _wait_for_answer(self) -> None:
        while not self._closed.wait(PROBE_S):
            try:
                self._probe()
            except EngineError as error:
                self._error = error
            except Exception:  # noqa: BLE001 - a bug; without a probe the daemon would never recover
                _log.exception("The probe of the database failed")
            else:
                with self._lock:
                    self._error = None
                _log.warning("The database answers again.")
                return


class Postgres(Engine):
    """The database at a URL (https://www.postgresql.org/docs/current/libpq-connect.html)."""

    kind = "postgresql"
    is_shared = True
    dialect = POSTGRES

    def __init__(self, url: str) -> None:
        """Read the URL; nothing connects yet.

        Raises:
            StateUnreachable: it is not a URL, or libpq would take a part of the password for the address.
                The message shows no part of it.
        """
        try:
            given = {name: str(value) for name, value in conninfo_to_dict(url).items() if value is not None}
        except psycopg.ProgrammingError:
            raise StateUnreachable(_NO_URL) from None
        if _is_misread(given):
            raise StateUnreachable(_NO_URL)
        self._conninfo = make_conninfo("", **_DEFAULTS | given)
        self.where = _where(given)
        self.breaker = Breaker(self._probe)
        self._idle: list[PostgresConnection] = []
        self._readers = threading.BoundedSemaphore(MAX_READERS)

    @property
    def error(self) -> str | None:
        """Return why the server does not answer, as a sentence; None while it does."""
        return self.breaker.error

    def open(self) -> PostgresConnection:
        """Return the writing connection, on the newest schema.

        Raises:
            EngineError, StateError: the message says what to do.
        """
        # Not through the breaker: what starts does not try again.
        connection = PostgresConnection(self, is_writer=True, raw=self._connect(is_writer=True))
        try:
            self._check_server(connection)
            migrate(connection)
            oldest = f"commit {datetime.now(UTC) - _MARKERS_KEPT:%Y-%m-%d}"
            connection.execute("DELETE FROM meta WHERE name LIKE 'commit %' AND name < ?", (oldest,))
        except BaseException:
            connection.close()
            self.close()
            raise
        return connection

    def _check_server(self, connection: PostgresConnection) -> None:
        version = int(connection.execute("SHOW server_version_num").rows[0][0])
        encoding = connection.execute("SHOW server_encoding").rows[0][0]
        if version // 10_000 < MIN_VERSION:
            raise StateUnreachable(
                f"PostgreSQL {MIN_VERSION} or newer is needed; that of {self.where} is {version // 10_000}."
            )
        if encoding != "UTF8":
            raise StateUnreachable(
                f"The database {self.where} has the encoding {encoding}. Create it with ENCODING 'UTF8'."
            )

    @contextmanager
    def reading(self, is_cancelled: Callable[[], bool], timeout_s: float) -> Iterator[PostgresConnection]:
        """Return a connection that only reads.

        Raises:
            EngineError, StateError: the message says what to do.
        """
        self.breaker.check()
        if not self._readers.acquire(timeout=TIMEOUT_S):
            raise StateBusy("Too many queries wait for the database already. Try again in a moment.")
        try:
            connection = self._idle.pop() if self._idle else self._new_reader()
            connection.limit = _Limit(time.monotonic() + timeout_s, is_cancelled)
            try:
                yield connection
            finally:
                if connection.is_broken or len(self._idle) >= _MAX_IDLE:
                    connection.close()
                else:
                    self._idle.append(connection)
        finally:
            self._readers.release()

    def _new_reader(self) -> PostgresConnection:
        connection = PostgresConnection(self, is_writer=False)
        try:
            require_current(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def connect(self, *, is_writer: bool, is_needed: bool) -> _Raw:
        """Return a new connection; while the server is known to be gone, fail at once.

        Args:
            is_writer: it may write.
            is_needed: relayd can't do without it: if there is none, the server is taken for gone.

        Raises:
            EngineError: the server can't be reached, or does not let us in.
        """
        self.breaker.check()
        try:
            with self._fails_others() if is_needed else nullcontext():
                return self._connect(is_writer=is_writer)
        except EngineError as error:
            # A reader's failure is its own: the server may have no connection to spare for one more query.
            if is_needed:
                self.breaker.open(error)
            raise

    @contextmanager
    def _fails_others(self) -> Iterator[None]:
        """Open the breaker if the block takes too long, so that no other thread waits for the server too."""
        # As long as it may take to connect, and to set what the connection needs.
        late = threading.Timer(2 * TIMEOUT_S, self.breaker.open, [self.unreachable(_LATE)])
        late.daemon = True
        try:
            late.start()
        except RuntimeError as refused:
            raise self.unreachable(str(refused)) from refused
        try:
            yield
        finally:
            late.cancel()

    def connect_patiently(self) -> psycopg.Connection[tuple[Any, ...]]:
        """Return a connection without limits of time, for work that a person watches.

        Raises:
            EngineError: the server can't be reached, or does not let us in.
        """
        raw = self._connect(is_writer=True)
        raw.limit = _Limit(math.inf)
        raw.execute(b"SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0")
        return raw

    def _connect(self, *, is_writer: bool) -> _Raw:
        settings = {
            "statement_timeout": f"{TIMEOUT_S * 900 if is_writer else _READ_TIMEOUT_S * 1000:.0f}ms",
            "lock_timeout": f"{TIMEOUT_S * 900:.0f}ms",
            "idle_in_transaction_session_timeout": f"{_IN_TRANSACTION_TIMEOUT_S}s",
            # Ours hold under these alone.
            "default_transaction_isolation": "read committed",
            "standard_conforming_strings": "on",
        }
        if not is_writer:
            settings["default_transaction_read_only"] = "on"
        try:
            raw = _Raw.connect(
                self._conninfo, autocommit=True, row_factory=tuple_row, cursor_factory=psycopg.ClientCursor
            )
        except psycopg.Error as error:
            raise self.explain(error) from error
        raw.adapters.register_loader("json", TextLoader)
        raw.limit = _Limit(time.monotonic() + TIMEOUT_S)
        try:
            raw.execute("; ".join(f"SET {name} = '{value}'" for name, value in settings.items()).encode())
        except psycopg.Error as error:
            # The error, which the breaker keeps, would keep the connection.
            raw.close()
            raise self.explain(error) from error
        return raw

    def is_standby(self) -> bool:
        """Return whether a standby answers at the URL, whatever else it asks for. Blocks."""
        conninfo = make_conninfo(self._conninfo, target_session_attrs="standby")
        try:
            _Raw.connect(conninfo).close()
        except psycopg.Error:
            return False
        return True

    def _probe(self) -> None:
        self._connect(is_writer=True).close()

    def disk_use(self) -> DiskUse | None:
        """Return None: the disk is another machine's."""
        return None

    def how_to_restore(self) -> str:
        """Return the end of a sentence: how to put a backup in place of the database."""
        return "stop every relayd, and restore the database from its backup (pg_restore)."

    def watch(self) -> PostgresWatch:
        """Return a connection for one thread."""
        return PostgresWatch(self)

    def close(self) -> None:
        """Close what reads, and end the probes."""
        self.breaker.close()
        while self._idle:
            self._idle.pop().close()

    def unreachable(self, reason: str) -> EngineError:
        """Return the error of a server that does not answer."""
        told = StateUnreachable(
            f"The database {self.where} does not answer ({reason}). Check that PostgreSQL runs there and "
            "lets relayd in."
        )
        return EngineError(reason, Fault.UNREACHABLE, told)

    def explain(self, error: psycopg.Error) -> EngineError:
        """Return what an error of psycopg means."""
        reason = str(error).strip().partition("\n")[0].removeprefix("connection is bad: ")
        fault = _fault(error)
        told: StateError
        if error.sqlstate == _NO_PERMISSION:
            told = StateUnreachable(
                f"The database {self.where} does not let its user do this ({reason}). Make the user the "
                "owner of the database and of its tables."
            )
            return EngineError(reason, fault, told)
        if fault is Fault.UNREACHABLE:
            return self.unreachable(reason)
        if fault is Fault.DAMAGED:
            told = self.damaged(reason)
        else:
            told = StateBusy(_TOLD[fault].format(where=self.where, reason=reason))
        return EngineError(reason, fault, told)


_TOLD = {
    Fault.DATA: "The database {where} refused a value ({reason}).",
    Fault.FULL: "The database {where} cannot be written ({reason}). Check the free space of its disk.",
    Fault.BUSY: "Another process is using the database {where} ({reason}). Try again in a moment.",
}


def _fault(error: psycopg.Error) -> Fault:
    """Return what kind of failure an SQLSTATE is (PostgreSQL's documentation, appendix A)."""
    state = error.sqlstate or ""
    # 54: a limit that no repetition changes, such as the size of an index entry.
    if state.startswith(("21", "22", "23", "54")) or (
        not state and not isinstance(error, psycopg.OperationalError)
    ):
        # Without a state, psycopg refused what it was to send.
        return Fault.DATA
    if state in {"53100", "58030"}:
        return Fault.FULL
    # A deadlock, a lock that was not given, a statement that took too long.
    if state.startswith(("40", "55")) or state == "57014":
        return Fault.BUSY
    if state.startswith(("42", "XX")) and state != _NO_PERMISSION:
        return Fault.DAMAGED
    return Fault.UNREACHABLE


def _is_misread(given: dict[str, str]) -> bool:
    """Return whether a password that is not percent-encoded may have become host, port or database."""
    ports = given.get("port", "").split(",")
    address = given.get("host", "") + given.get("dbname", "")
    return "@" in address or not all(port.strip().isdecimal() or not port for port in ports)


def _where(given: dict[str, str]) -> str:
    """Return the database and its hosts; neither user nor password."""
    hosts = (given.get("host") or given.get("hostaddr") or "localhost").split(",")
    ports = given.get("port", "5432").split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    name = given.get("dbname") or given.get("user") or "(default)"
    return f"'{name}' at {', '.join(f'{host}:{port}' for host, port in zip(hosts, ports, strict=False))}"


@lru_cache(512)
def _translate(sql: str) -> bytes:
    """Return the statement with psycopg's placeholders."""
    return _TOKEN.sub(_translate_token, sql).encode()


def _translate_token(found: re.Match[str]) -> str:
    token = found[0]
    if token == "?":  # noqa: S105 - a placeholder
        return "%s"
    if found[1] is not None:
        return f"%({found[1]})s"
    return token.replace("%", "%%")


def _translate_type(found: re.Match[str]) -> str:
    if found[0].startswith("'"):
        return found[0]
    return "" if found[1] is None else _TYPES[found[1]]
