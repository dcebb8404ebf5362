"""Behaviour of `relayd.admin.metrics`: what Prometheus reads, and no label that a client controls."""

from __future__ import annotations

from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from relayd.admin.client import Refused
from relayd.admin.metrics import RecentRates
from relayd.relay.errors import ErrorCode
from relayd.state.records import Outcome, RecordedError, RequestRecord
from tests.admin.harness import admin_api, new_record, raw, whole_daemon
from tests.wire import ask, body

_LABELS = {
    "outcome": {outcome.value for outcome in Outcome},
    "code": {code.value for code in ErrorCode},
    "phase": {"connecting", "waiting", "streaming"},
    "client": {"default"},
    "kind": {"prompt", "cached", "completion"},
    "state": {"live", "paused", "draining", "active", "retiring"},
    "action": {
        *("fill", "add", "import", "rotate", "extend", "undo", "revoke"),
        *("add_client", "set_client", "remove_client"),
    },
}


async def test_a_scrape_counts_what_happened_and_labels_nothing_by_client() -> None:
    """Requests by outcome and code, deltas, histograms, keys; a client's own words appear nowhere."""
    async with whole_daemon() as (relay, client):
        assert (await relay.ask("demo:deltas=3,interval_ms=1")).error is None
        assert (await relay.ask("demo:fault=status,code=500,fail_times=0")).error is not None
        assert (await ask(relay.port, "wrong-key-wrong-key", body("evil-model"))).error is not None
        answer = await raw(client.socket, "GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = answer.body.decode()
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = dict(sample.labels)
            found[sample.name + "".join(f" {name}={value}" for name, value in labels.items())] = sample.value
            for name, value in labels.items():
                assert name in {"le", "version"} or value in _LABELS[name], (sample.name, labels)
    assert found["relayd_requests_total outcome=completed"] == 1
    assert found["relayd_requests_total outcome=denied"] == 1
    assert found["relayd_request_errors_total code=unauthorized"] == 1
    assert found["relayd_deltas_total"] == 3
    assert found["relayd_first_token_seconds_count"] == 1
    assert found["relayd_request_duration_seconds_count"] == 3
    assert found["relayd_request_duration_seconds_bucket le=+Inf"] == 3
    assert found["relayd_keys state=active"] == 1
    assert found["relayd_intake state=live"] == 1
    assert found["process_resident_memory_bytes"] > 0
    assert "evil" not in text


def _ended(first_token_ms: int | None = None, code: str | None = None) -> RequestRecord:
    record = new_record("r", first_token_ms=first_token_ms, duration_ms=1000)
    record.outcome = Outcome.COMPLETED if code is None else Outcome.UPSTREAM_ERROR
    record.error = None if code is None else RecordedError(code, "A sentence.")
    return record


async def test_without_requests_there_are_no_rates() -> None:
    """Nothing is divided by nothing, and percentiles are absent."""
    rates = RecentRates().rates(0)
    assert (rates.requests_1m, rates.errors_5m, rates.deltas_per_s) == (0, 0, 0.0)
    assert (rates.first_token_p50_ms, rates.first_token_p95_ms) == (None, None)


async def test_requests_are_counted_over_a_minute_and_errors_over_five() -> None:
    """What is older is forgotten; the second that runs is one of them."""
    recent = RecentRates()
    for second in range(1, 361):
        recent.request_ended(_ended(code="upstream_failed" if second % 2 else None))
        recent.begin_second(0)
    rates = recent.rates(0)
    assert (rates.requests_1m, rates.errors_5m) == (59, 149)


async def test_deltas_a_second_are_those_of_the_last_five() -> None:
    """A pause shows within five seconds, and a start is not divided by less than one second."""
    recent = RecentRates()
    assert recent.rates(30).deltas_per_s == 30.0
    for second in range(1, 11):
        recent.begin_second(second * 100)
    assert recent.rates(1050).deltas_per_s == 450.0
    for _ in range(5):
        recent.begin_second(1050)
    assert recent.rates(1050).deltas_per_s == 0.0


async def test_percentiles_are_those_of_the_newest_first_tokens() -> None:
    """By nearest rank, of at most a thousand requests, however many came before."""
    recent = RecentRates()
    for ms in [9_999] * 500 + list(range(1, 1001)):
        recent.request_ended(_ended(first_token_ms=ms))
    rates = recent.rates(0)
    assert (rates.first_token_p50_ms, rates.first_token_p95_ms) == (500, 950)


async def test_only_changes_of_keys_that_were_made_are_counted(tmp_path: Path) -> None:
    """A refusal is no change, and a pause is not one of a key."""
    async with admin_api(tmp_path) as api:
        await api.client.add_key("web", generation=1, idempotency_key="one")
        with pytest.raises(Refused):
            await api.client.add_key("web", generation=2, idempotency_key="two")
        await api.client.pause()
        lines = (await api.client.metrics()).splitlines()
    counted = {line for line in lines if line.startswith("relayd_key_changes_total{")}
    assert {line for line in counted if not line.endswith(" 0.0")} == {
        'relayd_key_changes_total{action="add"} 1.0'
    }
