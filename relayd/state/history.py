"""History in figures: what the requests of a span of time looked like, computed inside SQLite."""

from __future__ import annotations

import msgspec


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
    """Buckets in order of time (empty ones left out); models and clients by falling count."""

    bucket_s: int
    buckets: list[Figures]
    models: list[Figures]
    clients: list[Figures]
