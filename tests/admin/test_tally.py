"""Behaviour of `relayd.admin.tally`: counts that add up, and rates of the last minutes."""

from __future__ import annotations

import random

import pytest

from relayd.admin.tally import Histogram, Tally
from relayd.state.events import Audited
from relayd.state.records import AuditEntry, Outcome, RecordedError
from tests.admin.harness import new_record


def _end(tally: Tally, *, first_token_ms: int | None = 100, code: str | None = None) -> None:
    record = new_record("r", first_token_ms=first_token_ms, duration_ms=1000, bytes_out=10)
    record.outcome = Outcome.COMPLETED if code is None else Outcome.UPSTREAM_ERROR
    record.error = None if code is None else RecordedError(code, "sentence")
    tally.ended(record)


def test_an_empty_tally_has_no_rates() -> None:
    """Nothing is divided by nothing, and percentiles are absent."""
    rates = Tally(0.0).rates(0.0, 0)
    assert (rates.requests_1m, rates.errors_5m, rates.deltas_per_s) == (0, 0, 0.0)
    assert (rates.first_token_p50_ms, rates.first_token_p95_ms) == (None, None)


def test_requests_are_counted_over_a_minute_and_errors_over_five() -> None:
    """What is older falls out."""
    tally = Tally(0.0)
    for second in range(1, 361):
        _end(tally, code="upstream_failed" if second % 2 else None)
        tally.tick(float(second), 0)
    rates = tally.rates(360.5, 0)
    # The second that runs is one of them.
    assert (rates.requests_1m, rates.errors_5m) == (59, 149)
    assert tally.requests[Outcome.COMPLETED] == tally.requests[Outcome.UPSTREAM_ERROR] == 180


def test_deltas_a_second_are_those_of_the_last_five() -> None:
    """A pause shows within five seconds, and a start is not divided by less than one."""
    tally = Tally(0.0)
    assert tally.rates(0.1, 30).deltas_per_s == 30.0
    for second in range(1, 11):
        tally.tick(float(second), second * 100)
    assert tally.rates(10.5, 1050).deltas_per_s == pytest.approx(100.0)
    for second in range(11, 16):
        tally.tick(float(second), 1050)
    assert tally.rates(15.5, 1050).deltas_per_s == 0.0


def test_percentiles_are_those_of_a_bounded_fair_sample() -> None:
    """At most 32 values of each second are kept, whatever comes, and none is favoured."""
    random.seed(1)
    tally = Tally(0.0)
    for second in range(1, 61):
        for ms in range(200):
            _end(tally, first_token_ms=ms)
        tally.tick(float(second), 0)
    rates = tally.rates(60.5, 0)
    assert rates.first_token_p50_ms == pytest.approx(100, abs=5)
    assert rates.first_token_p95_ms == pytest.approx(190, abs=5)
    assert sum(len(second.first_token_ms) for second in tally._seconds) <= 60 * 32


def test_a_histogram_counts_up_to_and_including_its_bounds() -> None:
    """As Prometheus defines `le`; the last count is that of all."""
    histogram = Histogram((0.1, 1.0))
    for ms in (50, 100, 101, 1000, 1001):
        histogram.add(ms)
    assert histogram.cumulative() == [("0.1", 2.0), ("1.0", 4.0), ("+Inf", 5.0)]
    assert histogram.sum_s == pytest.approx(2.252)


def test_only_changes_of_keys_that_were_made_are_counted() -> None:
    """A refusal is no change, and a pause is none of a key."""
    tally = Tally(0.0)
    for action, result in (("rotate", "done"), ("rotate", "generation_mismatch"), ("pause", "done")):
        entry = AuditEntry(
            seq=1, boot_id="b", at="", action=action, result=result, uid=0, pid=1, login="root"
        )
        tally.logged(Audited(1, "b", entry))
    assert tally.key_changes == {"fill": 0, "add": 0, "rotate": 1, "extend": 0, "undo": 0, "revoke": 0}
