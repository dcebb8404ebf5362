"""Every record is opened and closed in one place, which also writes the one line of a request."""

from __future__ import annotations

import logging

import msgspec
import pytest

from relayd.relay.denials import RECORDED_PER_NETWORK
from relayd.relay.ledger import Ledger
from relayd.state.records import Outcome, Phase, RecordedError, RequestRecord
from tests.relay.room import new_record


class _Log:
    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.ends: list[RequestRecord] = []

    def started(self, record: RequestRecord) -> None:
        self.calls.append(("started", record.id))

    def ended(self, record: RequestRecord) -> None:
        self.calls.append(("ended", record.id))
        self.ends.append(record)


def _ended(outcome: Outcome, error: RecordedError | None = None) -> RequestRecord:
    return msgspec.structs.replace(
        new_record("abc"),
        client="web",
        ip="192.0.2.1",
        phase=Phase.DONE,
        outcome=outcome,
        status=200,
        duration_ms=12,
        deltas=3,
        error=error,
    )


def test_a_request_is_logged_once_when_it_ends(caplog: pytest.LogCaptureFixture) -> None:
    """The start is quiet; the end has id, client, model, outcome, status, times and deltas, never a key."""
    log = _Log()
    seen: list[RequestRecord] = []
    ledger = Ledger(log, [seen.append])
    record = _ended(Outcome.COMPLETED)
    with caplog.at_level(logging.INFO, "relayd.request"):
        ledger.open(record)
        assert caplog.messages == []
        ledger.close(record)
    told = "id=abc client=web ip=192.0.2.1 model=demo outcome=completed status=200 duration_ms=12 deltas=3"
    assert caplog.messages == [f"request {told}"]
    assert log.calls == [("started", "abc"), ("ended", "abc")]
    assert seen == [record]


@pytest.mark.parametrize("outcome", list(Outcome))
def test_what_went_wrong_is_a_warning(caplog: pytest.LogCaptureFixture, outcome: Outcome) -> None:
    """Success and a client's leaving are information; the rest stands out, with its sentence."""
    with caplog.at_level(logging.INFO, "relayd.request"):
        Ledger(_Log()).close(_ended(outcome, RecordedError("busy", "Try later.")))
    quiet = outcome in {Outcome.COMPLETED, Outcome.CLIENT_CLOSED}
    assert [entry.levelno for entry in caplog.records] == [logging.INFO if quiet else logging.WARNING]
    assert "error=busy" in caplog.messages[0]
    assert 'detail="Try later."' in caplog.messages[0]


async def test_a_flood_of_refusals_is_summed_up() -> None:
    """Observers see each; the log has the first ones and, in the end, one for all others."""
    log = _Log()
    seen: list[RequestRecord] = []
    ledger = Ledger(log, [seen.append])
    flood = RECORDED_PER_NETWORK + 40
    for n in range(flood):
        record = _ended(Outcome.DENIED, RecordedError("unauthorized", "No."))
        ledger.denied(msgspec.structs.replace(record, id=str(n)), "192.0.2.1")
    assert len(seen) == flood
    assert len(log.ends) == RECORDED_PER_NETWORK
    ledger.settle()
    assert len(log.ends) == RECORDED_PER_NETWORK + 1
    told = log.ends[-1].error
    assert told is not None
    assert "40 such requests of 192.0.2.1" in told.message
    assert log.calls[-2:] == [("started", str(flood - 1)), ("ended", str(flood - 1))]
