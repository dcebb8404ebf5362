"""Statistics over windows."""

from __future__ import annotations

import random

import pytest

from relayd.admin.schema import Outcome
from tests.tui.samples import NOON_S, a_failure, a_record, an_open
from tui.model.stats import MAX_NAMES, OTHERS, WINDOWS, Histogram, Stats, cause_filter, step_of


@pytest.mark.parametrize("part", [0.5, 0.95, 0.99])
def test_a_percentile_is_right_within_five_per_cent(part: float) -> None:
    """The histogram keeps no samples, and is still close."""
    rng = random.Random(1)  # noqa: S311 - a fixed order, not a secret
    values = sorted(rng.lognormvariate(6, 1) for _ in range(5000))
    histogram = Histogram()
    for value in values:
        histogram.add_step(step_of(value))
    assert histogram.percentile(part) == pytest.approx(values[int(part * len(values))], rel=0.07)


def test_a_request_counts_once_however_often_it_is_seen() -> None:
    """Started, ended, repeated after a reconnect, and met again in a page: one request."""
    stats = Stats()
    stats.add(an_open(10))
    for _ in range(3):
        stats.add(a_record(10))
    for record in (a_record(10), a_record(9), a_record(9)):
        stats.add(record)
    assert stats.summary(WINDOWS[0], NOON_S + 20).all.requests == 2


def test_a_summary_tells_models_clients_and_causes_apart() -> None:
    """Names are counted apart, the busiest first; a client that left is no error."""
    stats = Stats()
    for seq in range(1, 11):
        stats.add(a_record(seq, model="gpt-4o" if seq % 5 else "o4", client=f"c{seq % 2}"))
    stats.add(a_failure(11, "upstream_timeout"))
    stats.add(a_record(12, outcome=Outcome.CLIENT_CLOSED))
    summary = stats.summary(WINDOWS[0], NOON_S + 20)
    assert [name for name, _ in summary.models] == ["gpt-4o", "o4"]
    assert [(cause, tally.count) for cause, tally in stats.causes(WINDOWS[0], NOON_S + 20)] == [
        ("upstream_timeout", 1)
    ]
    assert (summary.all.requests, summary.all.errors) == (12, 1)


def test_what_is_older_than_the_window_does_not_count() -> None:
    """Five minutes later the five-minute window is empty, the hour is not."""
    stats = Stats()
    stats.add(a_record(1))
    assert stats.summary(WINDOWS[0], NOON_S + 400).all.requests == 0
    assert stats.summary(WINDOWS[1], NOON_S + 400).all.requests == 1


def test_made_up_names_are_counted_together() -> None:
    """A flood of model names ends as one row `others`."""
    stats = Stats()
    for seq in range(1, 101):
        stats.add(a_record(seq, model=f"m{seq}", started_at=a_record(1).started_at))
    models = dict(stats.summary(WINDOWS[0], NOON_S + 20).models)
    assert len(models) == MAX_NAMES + 1
    assert models[OTHERS].requests == 100 - MAX_NAMES


def test_failures_are_grouped_by_cause_with_first_last_and_the_clients_concerned() -> None:
    """Over buckets, the most frequent cause first; an outcome without a code is a cause of its own."""
    stats = Stats()
    for seq, client in ((10, "web"), (70, "ci"), (130, "web")):
        stats.add(a_failure(seq, "upstream_timeout", client=client))
    stats.add(a_record(140, outcome=Outcome.CRASHED, client=None))
    (first, timeouts), (second, crashes) = stats.causes(WINDOWS[1], NOON_S + 200)
    assert (first, timeouts.count, timeouts.names) == ("upstream_timeout", 3, ["web", "ci"])
    assert (timeouts.first_s, timeouts.last_s) == (NOON_S + 10, NOON_S + 130)
    assert (second, crashes.count, crashes.names) == ("crashed", 1, ["—"])
    assert cause_filter(first) == 'error="upstream_timeout"'
    assert cause_filter(second) == "outcome=crashed"
