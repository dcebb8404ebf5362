"""History in figures: what the requests of a span of time looked like, computed inside SQLite."""

from __future__ import annotations

import sqlite3

import msgspec

from relayd.state import queries
from relayd.state.filter import Filter

MAX_BUCKETS = 2000
MAX_GROUPS = 50


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One group of requests. Percentiles are exact (nearest rank) and None without samples."""

    name: str
    """The start of the bucket (UTC), the model or the client; empty where none is known."""
    count: int
    errors: int
    """Requests that ended with an error code, or crashed."""
    deltas: int
    first_token_p50_ms: int | None
    first_token_p95_ms: int | None
    duration_p50_ms: int | None
    duration_p95_ms: int | None


class History(msgspec.Struct, frozen=True, kw_only=True):
    """Buckets in order of time (empty ones left out); the 50 busiest models and clients."""

    bucket_s: int
    buckets: list[Figures]
    models: list[Figures]
    clients: list[Figures]


_figures = msgspec.json.Decoder(list[Figures])


def read_history(connection: sqlite3.Connection, since: str, bucket_s: int, where: Filter | None) -> History:
    """Figures of the requests that started since a UTC time and pass the filter.

    At most 2,000 buckets, the oldest first.

    Raises:
        ValueError: a bucket shorter than a second.
    """
    if bucket_s < 1:
        raise ValueError(f"a bucket lasts at least one second, not {bucket_s}")
    clause, values = ("1", []) if where is None else where.sql()

    def read(group: str, order: str, limit: int) -> list[Figures]:
        query = queries.figures(group, clause, order)
        (text,) = connection.execute(query, [since, *values, limit]).fetchone()
        return _figures.decode(text)

    return History(
        bucket_s=bucket_s,
        buckets=sorted(read(queries.bucket(bucket_s), "name", MAX_BUCKETS), key=lambda figures: figures.name),
        models=sorted(read("model", "count(*) DESC", MAX_GROUPS), key=_busiest_first),
        clients=sorted(read("client", "count(*) DESC", MAX_GROUPS), key=_busiest_first),
    )


def _busiest_first(figures: Figures) -> tuple[int, str]:
    return -figures.count, figures.name
