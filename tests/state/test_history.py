"""History in figures, held against the same figures computed plainly."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from relayd.state import history
from relayd.state.filter import parse_filter
from relayd.state.history import Figures
from relayd.state.records import Outcome, RequestRecord, epoch_s, utc_text
from tests.state.room import NOON_S, a_record, as_ended, opened, wait_until


def some_records(count: int) -> list[RequestRecord]:
    """Requests over half an hour, of several models and clients; some failed, some without a token."""
    chance = random.Random(7)  # noqa: S311 - any spread will do
    records = []
    for number in range(count):
        record = as_ended(
            a_record(number, started_s=NOON_S + chance.uniform(0, 1800)),
            502 if chance.random() < 0.2 else 200,
            duration_ms=chance.randrange(5000),
        )
        if number % 50 == 0:
            record.outcome, record.error = Outcome.CRASHED, None
        record.model = chance.choice(["gpt-a", "gpt-b", None])
        record.client = chance.choice(["web", "api"])
        record.first_token_ms = chance.choice([None, chance.randrange(900)])
        records.append(record)
    return records


def nearest_rank(values: Iterable[int | None], percent: int) -> int | None:
    """The percentile as textbooks define it."""
    known = sorted(value for value in values if value is not None)
    return known[math.ceil(len(known) * percent / 100) - 1] if known else None


def plainly(records: list[RequestRecord], group: Callable[[RequestRecord], str]) -> dict[str, Figures]:
    """The figures of each group, in Python."""
    groups: dict[str, list[RequestRecord]] = defaultdict(list)
    for record in records:
        groups[group(record)].append(record)
    return {
        name: Figures(
            name=name,
            count=len(members),
            errors=sum(member.error is not None or member.outcome is Outcome.CRASHED for member in members),
            deltas=sum(member.deltas for member in members),
            first_token_p50_ms=nearest_rank((member.first_token_ms for member in members), 50),
            first_token_p95_ms=nearest_rank((member.first_token_ms for member in members), 95),
            duration_p50_ms=nearest_rank((member.duration_ms for member in members), 50),
            duration_p95_ms=nearest_rank((member.duration_ms for member in members), 95),
        )
        for name, members in groups.items()
    }


def bucket_of(record: RequestRecord) -> str:
    """The five minutes that a request started in."""
    return utc_text(epoch_s(record.started_at) // 300 * 300)


def test_figures_are_exact(tmp_path: Path) -> None:
    """Counts and percentiles by bucket, model and client are those of the plain computation."""
    records = some_records(700)
    since = utc_text(NOON_S + 600)
    with opened(tmp_path / "state") as state:
        for record in records:
            state.log.ended(record)
        wait_until(lambda: state.log.queued == 0)
        for text in ("", "status=200 client=web"):
            where = parse_filter(text)
            counted = [one for one in records if one.started_at >= since and where.matches(one)]
            found = state.reader.buckets(since, 300, where)
            assert {figures.name: figures for figures in found.buckets} == plainly(counted, bucket_of)
            assert [figures.name for figures in found.buckets] == sorted(set(map(bucket_of, counted)))
            by_model = plainly(counted, lambda record: record.model or "")
            assert {figures.name: figures for figures in found.models} == by_model
            by_client = plainly(counted, lambda record: record.client or "")
            assert {figures.name: figures for figures in found.clients} == by_client
            counts = [figures.count for figures in found.models]
            assert counts == sorted(counts, reverse=True)


def test_many_requests_are_sampled_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond the bound, counts stay exact and percentiles come from a part of the requests."""
    monkeypatch.setattr(history, "MAX_SAMPLES", 500)
    records = some_records(2000)
    with opened(tmp_path / "state") as state:
        for record in records:
            state.log.ended(record)
        wait_until(lambda: state.log.queued == 0)
        found = state.reader.buckets(utc_text(NOON_S), 60)
        assert found.one_in == 4
        assert sum(figures.count for figures in found.buckets) == 2000
        for figures in found.clients:
            exact = plainly(records, lambda record: record.client or "")[figures.name]
            assert figures.count == exact.count
            assert figures.duration_p50_ms is not None
            assert exact.duration_p50_ms is not None
            assert figures != exact, "nothing was left out"
            assert abs(figures.duration_p50_ms - exact.duration_p50_ms) < 500


def test_an_empty_span_has_no_figures(tmp_path: Path) -> None:
    """Nothing happened: empty lists, no error."""
    with opened(tmp_path / "state") as state:
        found = state.reader.buckets(utc_text(NOON_S), 60)
        assert (found.buckets, found.models, found.clients) == ([], [], [])


def test_a_bucket_has_a_length(tmp_path: Path) -> None:
    """A bucket of no seconds is a mistake of the caller."""
    with opened(tmp_path / "state") as state, pytest.raises(ValueError, match="at least one second"):
        state.reader.buckets(utc_text(NOON_S), 0)
