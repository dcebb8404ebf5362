"""The log, read: pages, single records, replay of events, audit and keys.

Everything here blocks on the database: call it in a worker thread. It needs nothing else, so it also
works while the daemon is down.

Each query gives one row with JSON in it. A row at a time would make SQLite release the GIL and take
it again for each one, which is slow beside a busy event loop; the JSON decodes straight into the typed
records.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import date
from functools import cache
from typing import Any

import msgspec

from relayd.state.budget import Use
from relayd.state.calendar import days_between, local_date, whole_periods, window_names
from relayd.state.columns import INT_MAX, record_json, start_json, storable_text
from relayd.state.engine import Connection, Dialect, Engine, EngineError, Parameters, as_state_errors
from relayd.state.errors import StateBusy, StateDamaged
from relayd.state.filter import Filter
from relayd.state.key_store import find_by_digest, load_ring
from relayd.state.records import (
    AuditEntry,
    AuditPage,
    Gap,
    KeyInfo,
    KeyUser,
    KeyUsers,
    LogContents,
    LogEvent,
    RequestPage,
    RequestRecord,
    utc_text,
)
from relayd.state.stored_objects import Owner

MAX_ROWS = 10_000
"""The most that one call returns, whatever the caller asks for."""
QUERY_TIMEOUT_S = 10.0
_CLOSED = "relayd is stopping and no longer reads its log. Try again when it runs."

_record = msgspec.json.Decoder(RequestRecord)
_records = msgspec.json.Decoder(list[RequestRecord])
_entries = msgspec.json.Decoder(list[AuditEntry])
_events = msgspec.json.Decoder(list[LogEvent])
_key_users = msgspec.json.Decoder(KeyUsers)
_use_by_client = msgspec.json.Decoder(list[dict[str, Use]])


_FLOOR = "(SELECT value FROM meta WHERE name = 'floor_seq')"
USAGE_COLUMNS = {"client": "client", "model": "model", "day": "period", "key": "key_id"}
"""What usage can be summed by, and the column that has it."""
_USAGE_FIELDS = (
    *("requests", "prompt_tokens", "cached_tokens", "completion_tokens"),
    *("cost_usd", "estimated", "unpriced"),
)
_USAGE_SUMS = ", ".join(f"coalesce(sum({name}), 0) AS {name}" for name in _USAGE_FIELDS)
_USAGE = """WITH sums AS MATERIALIZED (
        SELECT {column} AS name, {sums}
        FROM (SELECT *, CAST(nano_usd AS DOUBLE PRECISION) / 1e9 AS cost_usd,
                CASE WHEN nano_usd = 0 AND prompt_tokens + completion_tokens > 0
                    THEN requests ELSE 0 END AS unpriced
            FROM usage WHERE period IN ({periods}) AND (:client IS NULL OR client = :client)
                AND (:key IS NULL OR key_id = :key) AND (:model IS NULL OR model = :model)) AS chosen
        GROUP BY 1)
    SELECT (SELECT {items} FROM (SELECT {row} AS item FROM sums ORDER BY {order} LIMIT :limit) AS items),
        (SELECT {total} FROM (SELECT {sums} FROM sums) AS totals)"""
_KEY_USERS = """WITH sums AS MATERIALIZED (
        SELECT ip, user_agent, min(started_at) AS first_at, max(started_at) AS last_at,
            sum(CASE WHEN outcome = 'denied' THEN 0 ELSE 1 END) AS requests,
            sum(CASE WHEN outcome = 'denied' THEN 1 ELSE 0 END) AS refused,
            sum(CASE WHEN outcome = 'denied' OR started_at < :since THEN 0 ELSE 1 END) AS requests_since
        FROM requests WHERE key_id = :key_id GROUP BY ip, user_agent)
    SELECT {answer} FROM
        (SELECT count(*) AS count, coalesce(sum(requests), 0) AS requests,
            coalesce(sum(refused), 0) AS refused FROM sums) AS totals"""
_BY_MOST = "cost_usd DESC, prompt_tokens + completion_tokens DESC, requests DESC, name"


class RefusedKey(msgspec.Struct, frozen=True):
    """How often a key that was valid once was refused, and where it came from last."""

    key_id: str
    client: str
    count: int
    last_ip: str


class EndedRequests(msgspec.Struct, frozen=True):
    """What has ended after a place in the log. Refused keys are not counted among the requests."""

    newest_seq: int
    by_code: dict[str, int] = {}
    """How many ended with each code of an error; the others, and what an operator ended, under ""."""
    refused: list[RefusedKey] = []


_codes = msgspec.json.Decoder(list[tuple[str, int]])
_refused = msgspec.json.Decoder(list[tuple[str, str, int, str]])
_MAX_REFUSED_KEYS = 100


def _list(dialect: Dialect, items: str) -> str:
    """Return a query for the column `item` of a query, all of it as one JSON array."""
    return f"SELECT {dialect.json_list('item')} FROM ({items}) AS items"  # noqa: S608 - own SQL


class _Queries:
    """The queries of the log that need no filter."""

    def __init__(self, dialect: Dialect) -> None:
        entry = dialect.json_object(AuditEntry.__struct_fields__, key_ids=dialect.as_json("key_ids"))
        self.audit = _list(
            dialect,
            f"SELECT {entry} AS item FROM audit WHERE seq < ? ORDER BY seq DESC LIMIT ?",  # noqa: S608 - own columns
        )
        self.record = f"SELECT (SELECT {record_json(dialect)} FROM requests WHERE id = ?)"  # noqa: S608 - own columns

        def event(tag: str, seq: str, **parts: str) -> str:
            names = ("event", "seq", "boot_id", *parts)
            return dialect.json_object(names, event=f"'{tag}'", seq=seq, **parts)

        tables = (
            ("requests", "start_seq", event("started", "start_seq", record=start_json(dialect))),
            ("requests", "end_seq", event("ended", "end_seq", record=record_json(dialect))),
            ("audit", "seq", event("audit", "seq", entry=entry)),
            ("lost", "seq", event("lost", "seq", at="at", count="count", reason="reason")),
        )
        after = dialect.greatest(":after", _FLOOR)
        events = " UNION ALL ".join(
            f"SELECT * FROM (SELECT {seq} AS place, {item} AS item FROM {table}"  # noqa: S608 - own columns
            f" WHERE {seq} > {after} ORDER BY {seq} LIMIT :limit) AS part_{number}"
            for number, (table, seq, item) in enumerate(tables)
        )
        self.replay = f"SELECT {_FLOOR}, ({_list(dialect, f'{events} ORDER BY place LIMIT :limit')})"
        """The floor, and what follows `:after` or the floor, both of one moment."""
        uses = dialect.json_map("client", dialect.json_array("requests", "tokens", "nano_usd"))
        use_by_client = dialect.as_json(f"""(SELECT {uses} FROM windows WHERE "window" = ?)""")  # noqa: S608 - own columns
        self.use_by_client = f"SELECT {dialect.json_array(*[use_by_client] * 3)}"
        use_in_all = dialect.json_array("name", "requests", "tokens", "nano_usd")
        self.use_in_all = f"""SELECT {dialect.json_list(use_in_all)} FROM (
            SELECT "window" AS name, sum(requests) AS requests, sum(tokens) AS tokens,
                sum(nano_usd) AS nano_usd
            FROM windows WHERE "window" IN (?, ?) GROUP BY "window") AS sums"""  # noqa: S608 - own columns
        user = dialect.json_object(KeyUser.__struct_fields__)
        latest = f"SELECT {user} AS item FROM sums ORDER BY last_at DESC, ip LIMIT :limit"  # noqa: S608 - own columns
        self.key_users = _KEY_USERS.format(
            answer=dialect.json_object(
                KeyUsers.__struct_fields__,
                users=dialect.as_json(f"({_list(dialect, latest)})"),
                log_begins_at="(SELECT min(started_at) FROM requests)",
            )
        )
        codes = _list(
            dialect,
            f"""SELECT {dialect.json_array("code", "times")} AS item FROM (
                SELECT CASE WHEN outcome IN ('cancelled', 'shutdown') THEN ''
                    WHEN outcome = 'crashed' THEN coalesce(error_code, outcome)
                    ELSE coalesce(error_code, '') END AS code, count(*) AS times
                FROM ended WHERE outcome <> 'denied' GROUP BY 1) AS codes""",  # noqa: S608 - own columns
        )
        fields = dialect.json_array("last.key_id", "coalesce(last.client, '')", "times", "last.ip")
        refused = _list(
            dialect,
            f"""SELECT {fields} AS item
                FROM (SELECT max(end_seq) AS last_seq, count(*) AS times FROM ended
                    WHERE outcome = 'denied' AND key_id IS NOT NULL
                    GROUP BY key_id ORDER BY 1 DESC LIMIT {_MAX_REFUSED_KEYS}) AS sums
                JOIN ended AS last ON last.end_seq = last_seq""",  # noqa: S608 - own columns
        )
        self.ended = f"""WITH ended AS MATERIALIZED (
                SELECT end_seq, outcome, error_code, key_id, client, ip FROM requests WHERE end_seq > ?)
            SELECT (SELECT max(end_seq) FROM ended), ({codes}), ({refused})"""  # noqa: S608 - own columns
        self.usage = {
            by: _USAGE.format(
                column=column,
                sums=_USAGE_SUMS,
                periods=dialect.listed(":periods"),
                items=dialect.json_list("item"),
                row=dialect.json_object(("name", *_USAGE_FIELDS)),
                order="name" if by == "day" else _BY_MOST,
                total=dialect.json_object(_USAGE_FIELDS),
            )
            for by, column in USAGE_COLUMNS.items()
        }


_queries = cache(_Queries)


class LogReader:
    """Reads one database; every method may run in any thread, on a connection of its own.

    Every method may raise `StateError`; a query that takes longer than 10 seconds is interrupted.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.time) -> None:
        self._engine = engine
        self._clock = clock
        self._queries = _queries(engine.dialect)
        self._is_closed = False

    def close(self) -> None:
        """Interrupt the queries under way, which then raise `StateBusy`, and refuse new ones."""
        self._is_closed = True

    def page(
        self,
        where: Filter | None = None,
        *,
        after: int | None = None,
        before: int | None = None,
        limit: int = 100,
    ) -> RequestPage:
        """Return records with `after < seq < before` that pass the filter, newest first."""
        dialect = self._engine.dialect
        clause, values = ("TRUE", []) if where is None else where.sql(dialect)
        query = _list(
            dialect,
            f"SELECT {record_json(dialect)} AS item FROM requests"  # noqa: S608 - `clause` binds its values
            f" WHERE start_seq > ? AND start_seq < ? AND {clause}"
            " ORDER BY start_seq DESC LIMIT ?",
        )
        count = _bounded(limit)
        (text,) = self._row(query, [_place(after, 0), _place(before, INT_MAX), *values, count + 1])
        records = sorted(_records.decode(text), key=lambda record: -record.seq)
        return RequestPage(records[:count], records[count - 1].seq if len(records) > count else None)

    def get(self, request_id: str) -> RequestRecord | None:
        """Return one record."""
        (text,) = self._row(self._queries.record, [storable_text(request_id)])
        return None if text is None else _record.decode(text)

    def events(self, after: int, limit: int = 1000) -> list[LogEvent | Gap]:
        """Return what followed `after`, in order; a `Gap` first if retention removed some of it."""
        after = _place(after, 0)
        floor, text = self._row(self._queries.replay, {"after": after, "limit": _bounded(limit)})
        events: list[LogEvent] = sorted(_events.decode(text), key=lambda event: event.seq)
        return [Gap(after + 1, floor), *events] if floor > after else [*events]

    def newest_seq(self) -> int:
        """Return the newest place in the log; 0 when it is empty."""
        (newest,) = self._row("SELECT (SELECT value FROM meta WHERE name = 'seq')", [])
        if not isinstance(newest, int):
            raise StateDamaged(
                f"The database {self._engine.where} is damaged (its place in the log is lost). Stop relayd "
                "and put a backup in its place, or move it away: relayd starts with an empty log and an "
                "empty key ring."
            )
        return newest

    def ended_since(self, after: int) -> EndedRequests:
        """Return in numbers what has ended after this place in the log."""
        newest, codes, refused = self._row(self._queries.ended, [_place(after, 0)])
        return EndedRequests(
            after if newest is None else newest,
            dict(_codes.decode(codes)),
            [RefusedKey(*fields) for fields in _refused.decode(refused)],
        )

    def contents(self) -> LogContents:
        """Return how many records there are, and from when."""
        # As two questions, each is answered by an index alone.
        query = "SELECT (SELECT count(*) FROM requests), (SELECT min(started_at) FROM requests)"
        return LogContents(*self._row(query, []))

    def audit(self, *, before: int | None = None, limit: int = 100) -> AuditPage:
        """Return what operators did, newest first."""
        count = _bounded(limit)
        (text,) = self._row(self._queries.audit, [_place(before, INT_MAX), count + 1])
        entries = sorted(_entries.decode(text), key=lambda entry: -entry.seq)
        return AuditPage(entries[:count], entries[count - 1].seq if len(entries) > count else None)

    def keys(self) -> tuple[int, list[KeyInfo]]:
        """Return the generation of the ring and its keys, as they are on disk."""
        with self._connection() as connection:
            ring = load_ring(connection)
        now = utc_text(self._clock())
        return ring.generation, [key.as_of(now) for key in ring.keys]

    def find_key(self, key_digest: bytes) -> KeyInfo | None:
        """Return the key with this digest, however long dead."""
        with self._connection() as connection:
            found = find_by_digest(connection, key_digest)
        return None if found is None else found.as_of(utc_text(self._clock()))

    def key_users(self, key_id: str, *, since: str, limit: int = 1000) -> KeyUsers:
        """Return who used a key; `since` is the UTC time of `KeyUser.requests_since`.

        It reads the whole log once: about a second for a million requests.
        """
        chosen = {"key_id": storable_text(key_id), "since": storable_text(since), "limit": _bounded(limit)}
        (text,) = self._row(self._queries.key_users, chosen)
        return _key_users.decode(text)

    def use_by_client(self) -> list[dict[str, Use]]:
        """Return what each client used or reserved this minute, today and this month (by `Window`)."""
        (text,) = self._row(self._queries.use_by_client, window_names(self._clock()))
        return _use_by_client.decode(text)

    def object_owner(self, object_id: str) -> Owner | None:
        """Return who made a stored object of the provider; None if no client of this relay did."""
        query = (
            "SELECT client, route, kind, created_at FROM (SELECT 1) AS one LEFT JOIN stored_objects ON id = ?"
        )
        client, *rest = self._row(query, [storable_text(object_id)])
        return None if client is None else Owner(client, *rest)

    def use_in_all(self) -> tuple[Use, Use]:
        """Return what all clients together have used or reserved today and this month."""
        _, day, month = window_names(self._clock())
        (text,) = self._row(self._queries.use_in_all, [day, month])
        found = {window: Use(*counts) for window, *counts in msgspec.json.decode(text)}
        return found.get(day, Use()), found.get(month, Use())

    def usage(
        self,
        by: str,
        *,
        since: date,
        until: date,
        client: str | None = None,
        key: str | None = None,
        model: str | None = None,
    ) -> tuple[bytes, bytes]:
        """Return usage of whole days as JSON: at most 10,000 sums, the largest first, and the total.

        Args:
            by: a name of `USAGE_COLUMNS`; days come in their order.
            since: the first day.
            until: the last one.
            client: count this one alone.
            key: count the key of this id alone.
            model: count this one alone.
        """
        today = local_date(self._clock())
        periods = days_between(since, until, today) if by == "day" else whole_periods(since, until, today)
        chosen = {"client": client, "key": key, "model": model}
        parameters: dict[str, object] = {
            "periods": msgspec.json.encode(periods).decode(),
            **{name: None if text is None else storable_text(text) for name, text in chosen.items()},
            "limit": MAX_ROWS,
        }
        rows, total = self._row(self._queries.usage[by], parameters)
        return rows.encode(), total.encode()

    def _row(self, query: str, parameters: Parameters) -> tuple[Any, ...]:
        with self._connection() as connection:
            row: tuple[Any, ...] = connection.execute(query, parameters).fetchone()
        return row

    @contextmanager
    def _connection(self) -> Iterator[Connection]:
        if self._is_closed:
            raise StateBusy(_CLOSED)
        with as_state_errors(self._engine):
            try:
                with self._engine.reading(lambda: self._is_closed, QUERY_TIMEOUT_S) as connection:
                    yield connection
            except EngineError as error:
                if self._is_closed:
                    raise StateBusy(_CLOSED) from error
                raise


def _bounded(limit: int) -> int:
    return max(1, min(limit, MAX_ROWS))


def _place(seq: int | None, default: int) -> int:
    return default if seq is None else max(0, min(seq, INT_MAX))
