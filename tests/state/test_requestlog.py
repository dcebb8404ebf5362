"""The request log on the event loop: never waiting, bounded, and honest about what it lost."""

from __future__ import annotations

from relayd.state.requestlog import Mark, RequestLog
from tests.state.room import a_record, as_ended


def make_log(capacity: int = 3) -> tuple[RequestLog, list[None]]:
    """A small log, and how often it woke the writer."""
    woken: list[None] = []
    return RequestLog("boot-1", lambda: woken.append(None), capacity), woken


def test_starts_and_ends_are_copies_in_order() -> None:
    """What the stream does to its record later does not change what was noted."""
    log, woken = make_log()
    record = a_record()
    log.started(record)
    log.ended(as_ended(record))
    record.model = "changed"
    entries = log.take(10)
    assert [(mark, entry.model, entry.status) for mark, entry in entries] == [
        (Mark.START, "gpt-4o-mini", None),
        (Mark.END, "gpt-4o-mini", 200),
    ]
    assert len(woken) == 2


def test_a_full_log_drops_the_newest_and_counts_each_once() -> None:
    """Starts beyond the bound are not taken; their requests are lost when their end finds no room either."""
    log, _ = make_log(capacity=3)
    records = [a_record(n) for n in range(5)]
    for record in records:
        log.started(record)
    assert (log.queued, log.lost) == (3, 0)
    for record in records:
        log.ended(as_ended(record))
    # The ends of the three that were taken are always taken.
    assert (log.queued, log.lost) == (6, 2)
    assert log.unreported() == 2
    log.reported(2)
    assert log.unreported() == 0


def test_an_end_stands_for_the_whole_request_once_there_is_room() -> None:
    """A request whose start found no room is not lost when the disk is back before it ends."""
    log, _ = make_log(capacity=1)
    first, second = a_record(1), a_record(2)
    log.started(first)
    log.started(second)
    assert [record.id for _, record in log.take(10)] == [first.id]
    log.written()
    log.ended(as_ended(second))
    assert [(mark, record.id) for mark, record in log.take(10)] == [(Mark.WHOLE, second.id)]
    assert log.lost == 0


def test_what_the_disk_refused_waits_at_the_head() -> None:
    """Entries that come back are the first to be taken again, in their order, and still count as queued."""
    log, _ = make_log(capacity=9)
    for number in range(4):
        log.started(a_record(number))
    entries = log.take(2)
    assert log.queued == 4
    log.put_back(entries, "The disk is full.")
    assert (log.queued, log.error) == (4, "The disk is full.")
    assert [record.id for _, record in log.take(10)] == [f"req-{n:06d}" for n in range(4)]
    log.written()
    assert (log.queued, log.error) == (0, None)
