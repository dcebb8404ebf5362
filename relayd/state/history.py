"""History in figures: what the requests of a span of time looked like, computed inside SQLite."""

from __future__ import annotations

import sqlite3
from collections import defaultdict
from collections.abc import Callable

import msgspec

from relayd.state import queries
from relayd.state.filter import Filter
from relayd.state.records import utc_text

MAX_BUCKETS = 2000
MAX_GROUPS = 50
MAX_SAMPLES = 100_000
"""Beyond this, percentiles are those of an even sample."""


class Figures(msgspec.Struct, frozen=True, kw_only=True):
    """One group of requests. Percentiles are by nearest rank, and None without samples."""

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
    """The last 2,000 buckets in order of time (empty ones left out); the 50 busiest models and clients."""

    bucket_s: int
    one_in: int
    """Percentiles are those of one request in so many; 1 up to 100,000 requests. Counts are exact."""
    buckets: list[Figures]
    models: list[Figures]
    clients: list[Figures]


class _Cell(msgspec.Struct, array_like=True):
    """What `queries.counts` gives: one bucket, model and client."""

    bucket: int
    model: str
    client: str
    count: int
    errors: int
    deltas: int


class _Sums:
    """The counts of a group, as they add up."""

    def __init__(self) -> None:
        self.count = self.errors = self.deltas = 0

    def add(self, cell: _Cell) -> None:
        self.count += cell.count
        self.errors += cell.errors
        self.deltas += cell.deltas


_cells = msgspec.json.Decoder(list[_Cell])
_samples = msgspec.json.Decoder(list[tuple[str, list[int]]])


def read_history(connection: sqlite3.Connection, since: str, bucket_s: int, where: Filter | None) -> History:
    """Figures of the requests that started since a UTC time and pass the filter.

    Raises:
        ValueError: a bucket shorter than a second.
    """
    if bucket_s < 1:
        raise ValueError(f"a bucket lasts at least one second, not {bucket_s}")
    return _Reading(connection, since, bucket_s, where).history()


class _Reading:
    """One reading of the history: the sums in Python, the sorting in SQLite, which needs no GIL."""

    def __init__(
        self, connection: sqlite3.Connection, since: str, bucket_s: int, where: Filter | None
    ) -> None:
        self._connection = connection
        self._since = since
        self._bucket_s = bucket_s
        self._where, self._values = ("1", []) if where is None else where.sql()
        (total,) = connection.execute(queries.COUNT_SINCE, [since]).fetchone()
        self._one_in = max(1, -(-total // MAX_SAMPLES))

    def history(self) -> History:
        query = queries.counts(self._bucket_s, self._where)
        (text,) = self._connection.execute(query, [self._since, *self._values]).fetchone()
        cells = _cells.decode(text)
        by_bucket = sorted(
            _group(cells, lambda cell: str(cell.bucket)).items(), key=lambda item: int(item[0])
        )
        return History(
            bucket_s=self._bucket_s,
            one_in=self._one_in,
            buckets=[
                msgspec.structs.replace(figures, name=utc_text(int(figures.name) * self._bucket_s))
                for figures in self._figures("bucket", by_bucket[-MAX_BUCKETS:])
            ],
            models=self._figures("model", _busiest(_group(cells, lambda cell: cell.model))),
            clients=self._figures("client", _busiest(_group(cells, lambda cell: cell.client))),
        )

    def _figures(self, group: str, sums: list[tuple[str, _Sums]]) -> list[Figures]:
        first_token, duration = (self._samples(group, column) for column in ("first_token_ms", "duration_ms"))
        return [
            Figures(
                name=name,
                count=sum_.count,
                errors=sum_.errors,
                deltas=sum_.deltas,
                first_token_p50_ms=_nearest_rank(first_token.get(name), 50),
                first_token_p95_ms=_nearest_rank(first_token.get(name), 95),
                duration_p50_ms=_nearest_rank(duration.get(name), 50),
                duration_p95_ms=_nearest_rank(duration.get(name), 95),
            )
            for name, sum_ in sums
        ]

    def _samples(self, group: str, column: str) -> dict[str, list[int]]:
        query = queries.samples(group, self._bucket_s, column, self._where)
        (text,) = self._connection.execute(query, [self._since, *self._values, self._one_in]).fetchone()
        return dict(_samples.decode(text))


def _group(cells: list[_Cell], name: Callable[[_Cell], str]) -> dict[str, _Sums]:
    groups: dict[str, _Sums] = defaultdict(_Sums)
    for cell in cells:
        groups[name(cell)].add(cell)
    return groups


def _busiest(groups: dict[str, _Sums]) -> list[tuple[str, _Sums]]:
    return sorted(groups.items(), key=lambda item: (-item[1].count, item[0]))[:MAX_GROUPS]


def _nearest_rank(values: list[int] | None, percent: int) -> int | None:
    """The smallest value that so many percent of all do not exceed."""
    if not values:
        return None
    # They come in order; to sort them once more is cheap and trusts nobody.
    return sorted(values)[-(-len(values) * percent // 100) - 1]
