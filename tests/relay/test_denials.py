"""`relayd.relay.denials` and the ledger over it: what a flood of wrong keys leaves in the log."""

from __future__ import annotations

import re

from relayd.relay import denials
from relayd.relay.denials import Denials
from relayd.relay.ledger import Ledger
from relayd.state.records import Outcome, Phase, RecordedError, RequestRecord
from tests.public.room import Book


def _denied(number: int, ip: str = "203.0.113.9") -> RequestRecord:
    return RequestRecord(
        id=f"request{number}",
        boot_id="boot",
        started_at="2026-01-01T00:00:00.000Z",
        ip=ip,
        path="/chat",
        phase=Phase.DONE,
        outcome=Outcome.DENIED,
        status=401,
        error=RecordedError("unauthorized", "No."),
    )


async def test_a_flood_leaves_a_few_records_and_one_that_counts_the_rest() -> None:
    """10,000 refusals are sixty-one records, whose counts add up; every one reached the counters."""
    book, counted = Book(), list[str]()
    ledger = Ledger(book, [lambda record: counted.append(record.id)])
    for number in range(10_000):
        ledger.denied(_denied(number), "203.0.113.9")
    ledger.settle()
    assert len(counted) == 10_000
    assert len(book.closed) == denials.RECORDED_PER_NETWORK + 1
    last = book.closed[-1]
    assert last.id == "request9999"
    assert last.error is not None
    found = re.search(r"stands for ([0-9]+) such requests of 203\.0\.113\.9", last.error.message)
    assert found is not None
    assert int(found[1]) + denials.RECORDED_PER_NETWORK == 10_000
    ledger.settle()
    assert len(book.closed) == denials.RECORDED_PER_NETWORK + 1


async def test_after_a_minute_each_refusal_is_recorded_again() -> None:
    """The bound is of a rate: what comes after the sum begins anew."""
    book = Book()
    ledger = Ledger(book)
    for number in range(denials.RECORDED_PER_NETWORK + 1):
        ledger.denied(_denied(number), "203.0.113.9")
    ledger.settle()
    ledger.denied(_denied(99), "203.0.113.9")
    assert [record.id for record in book.closed[-2:]] == ["request60", "request99"]
    assert book.closed[-2].error == RecordedError("unauthorized", "No."), "one refusal stands for itself"
    ledger.settle()


def test_many_addresses_are_bounded_as_well() -> None:
    """A flood from everywhere is recorded up to a bound, and every refusal is in some count."""
    minute = Denials()
    told = sum(minute.is_told(_denied(n, str(n % 5000)), str(n % 5000)) for n in range(20_000))
    sums = minute.settle()
    assert told == denials.RECORDED_IN_ALL
    assert len(sums) <= denials.MAX_NETWORKS + 1
    counts = [
        int(found[1]) if (found := re.search(r"for ([0-9]+) such", record.error.message)) else 1
        for record in sums
        if record.error is not None
    ]
    assert told + sum(counts) == 20_000
