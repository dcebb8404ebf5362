"""Behaviour of `relayd.admin.metrics`: what Prometheus reads, and no label that a client controls."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from relayd.relay.errors import ErrorCode
from relayd.state.records import Outcome
from tests.admin.harness import raw, whole_daemon
from tests.wire import ask, body

_LABELS = {
    "outcome": {outcome.value for outcome in Outcome},
    "code": {code.value for code in ErrorCode},
    "phase": {"connecting", "waiting", "streaming"},
    "state": {"live", "paused", "draining", "active", "retiring"},
    "action": {"fill", "add", "rotate", "extend", "undo", "revoke"},
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
