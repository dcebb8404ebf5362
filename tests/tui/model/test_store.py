"""The store of records."""

from __future__ import annotations

import random

from relayd.admin.schema import RequestRecord
from tests.tui.samples import a_record, an_open
from tui.model.store import Mark, MarkKind, RecordStore, mark_key, record_key


def seqs(store: RecordStore) -> list[int]:
    """The `seq` of every record, in the store's order."""
    rows = [store.row_at(index) for index in range(len(store))]
    return [row.seq for row in rows if isinstance(row, RequestRecord)]


def test_records_stand_in_the_order_of_the_log_however_they_come() -> None:
    """Backlog, live and repeated records end in one order, each once."""
    store = RecordStore()
    given = list(range(1, 200))
    random.Random(3).shuffle(given)  # noqa: S311 - a fixed order, not a secret
    for seq in given + given[:50]:
        store.put(a_record(seq))
    assert seqs(store) == list(range(1, 200))


def test_an_ended_record_replaces_its_open_one() -> None:
    """The end of a request changes its row instead of adding one."""
    store = RecordStore()
    store.put(an_open(4))
    store.put(a_record(4))
    row = store.get(record_key(4))
    assert isinstance(row, RequestRecord)
    assert row.duration_ms == 2500
    assert len(store) == 1


def test_pages_of_older_records_go_before_what_is_there() -> None:
    """A page from disk, newest first, lands below the live records."""
    store = RecordStore()
    store.put(a_record(50))
    store.put_older([a_record(seq) for seq in (49, 48, 47)])
    store.put_older([a_record(seq) for seq in (47, 46, 51)])
    assert seqs(store) == [46, 47, 48, 49, 50, 51]


def test_the_oldest_leave_when_the_store_is_full() -> None:
    """The store holds about what it was told to, and the newest."""
    store = RecordStore(keep=1000)
    for seq in range(1, 3001):
        store.put(a_record(seq))
    assert 900 <= len(store) <= 1100
    assert store.newest_seq == 3000


def test_a_mark_stands_above_its_record_and_can_be_taken_away() -> None:
    """A gap's mark is a row of its own, with a key no record has."""
    store = RecordStore()
    store.put(a_record(9))
    store.put_mark(9, Mark(MarkKind.GAP, 0, first=5, last=8))
    assert isinstance(store.row_at(0), Mark)
    assert store.marks(MarkKind.GAP) == [(mark_key(9), Mark(MarkKind.GAP, 0, first=5, last=8))]
    store.remove_mark(mark_key(9))
    assert len(store) == 1


def test_marks_are_no_records() -> None:
    """The count of records leaves out where the daemon restarted, whatever comes and goes."""
    store = RecordStore(keep=1000)
    for seq in range(1, 11):
        store.put(a_record(seq))
    store.put_mark(5, Mark(MarkKind.GAP, 0, 3, 4))
    store.put_mark(5, Mark(MarkKind.RESTART, 0))
    store.put_mark(11, Mark(MarkKind.RESTART, 0))
    assert (len(store), store.record_count) == (12, 10)
    store.remove_mark(mark_key(11))
    assert (len(store), store.record_count) == (11, 10)
    for seq in range(12, 2500):
        store.put(a_record(seq))
    assert store.record_count == len(store)
