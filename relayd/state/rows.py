"""How a request record lies in the `requests` table."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from relayd.state.records import RequestRecord
from relayd.state.stored import INT_MAX, storable_int, storable_text

_PLAIN_COLUMNS = (
    *("id", "boot_id", "started_at", "client", "key_id", "ip", "origin", "user_agent", "path", "model"),
    *("phase", "status", "outcome"),
)
_LATER_COLUMNS = (
    *("connect_ms", "first_token_ms", "duration_ms", "stalled_ms", "deltas", "bytes_out"),
    *("prompt_tokens", "completion_tokens", "finish_reason", "upstream_request_id"),
)
COLUMNS = ("start_seq", "end_seq", *_PLAIN_COLUMNS, "error_code", "error_message", *_LATER_COLUMNS)

RECORD_JSON = (
    "json_object('seq', start_seq, "
    + ", ".join(f"'{column}', {column}" for column in _PLAIN_COLUMNS + _LATER_COLUMNS)
    + ", 'error', CASE WHEN error_code IS NULL THEN NULL"
    " ELSE json_object('code', error_code, 'message', error_message) END)"
)
"""An SQL expression that gives a row as the JSON of a `RequestRecord`."""

Row = tuple[Any, ...]

# Fixed sizes, so that the statements stay prepared. One statement for many rows, because the GIL is
# given up and asked for again at each step: under load that costs more than the work itself.
_CHUNKS = (32, 8, 1)
# What is known only at the end, or may have changed since the start.
_CHANGING = [column for column in COLUMNS if column not in {"start_seq", "id", "boot_id", "started_at"}]
_ONE_ROW = f"({', '.join('?' * len(COLUMNS))})"
_UPDATES = ", ".join(f"{column} = excluded.{column}" for column in _CHANGING)
_UPSERTS = {
    size: (
        f"INSERT INTO requests ({', '.join(COLUMNS)}) VALUES {', '.join([_ONE_ROW] * size)}"  # noqa: S608 - names
        f" ON CONFLICT (start_seq) DO UPDATE SET {_UPDATES}"
    )
    for size in _CHUNKS
}


def to_row(record: RequestRecord, start_seq: int, end_seq: int | None) -> Row:
    """The record as a row, every value such that SQLite can hold it."""
    error = record.error
    row = (
        start_seq,
        end_seq,
        record.id,
        record.boot_id,
        record.started_at,
        record.client,
        record.key_id,
        record.ip,
        record.origin,
        record.user_agent,
        record.path,
        record.model,
        record.phase.value,
        record.status,
        None if record.outcome is None else record.outcome.value,
        None if error is None else error.code,
        None if error is None else error.message,
        record.connect_ms,
        record.first_token_ms,
        record.duration_ms,
        record.stalled_ms,
        record.deltas,
        record.bytes_out,
        record.prompt_tokens,
        record.completion_tokens,
        record.finish_reason,
        record.upstream_request_id,
    )
    return tuple(map(_storable, row))


def as_started(record: RequestRecord) -> RequestRecord:
    """The record as its start showed it, as far as the log still knows."""
    return RequestRecord(
        id=record.id,
        boot_id=record.boot_id,
        started_at=record.started_at,
        seq=record.seq,
        client=record.client,
        key_id=record.key_id,
        ip=record.ip,
        origin=record.origin,
        user_agent=record.user_agent,
        path=record.path,
        model=record.model,
    )


def upsert(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    """Insert the rows, or bring those that are there (same `start_seq`) to their end."""
    at = 0
    for size in _CHUNKS:
        while len(rows) - at >= size:
            values = [value for row in rows[at : at + size] for value in row]
            connection.execute(_UPSERTS[size], values)
            at += size


def _storable(value: object) -> object:
    if isinstance(value, str):
        return value if value.isascii() and "\0" not in value else storable_text(value)
    if isinstance(value, int) and not -INT_MAX <= value <= INT_MAX:
        return storable_int(value)
    return value
