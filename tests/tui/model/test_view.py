"""What of the store is shown."""

from __future__ import annotations

import random

import pytest

from relayd.admin.schema import RequestRecord, parse_filter
from tests.tui.samples import a_failure, a_record, an_open
from tui.model.sorting import Sorting
from tui.model.stats import is_error
from tui.model.store import Mark, MarkKind, RecordStore, record_key
from tui.model.view import MAX_OLDER, View


def a_view(records: list[RequestRecord]) -> tuple[RecordStore, View]:
    """A store with these, and its view."""
    store = RecordStore(keep=100_000)
    view = View(store)
    for record in records:
        store.put(record)
    return store, view


def shown(view: View) -> list[int]:
    """The `seq` of every record shown."""
    return [view.key_at(index) >> 1 for index in range(len(view))]


@pytest.mark.parametrize("seed", range(5))
def test_a_filtered_view_is_what_a_plain_filter_gives(seed: int) -> None:
    """Scanned in slices, with records coming and changing in between, the matches are exact."""
    rng = random.Random(seed)  # noqa: S311 - a fixed order, not a secret
    store, view = a_view([a_failure(n) if rng.random() < 0.3 else a_record(n) for n in range(1, 400)])
    view.set_filter(parse_filter("status>=500"))
    for step in range(400, 460):
        store.put(an_open(step))
        view.scan(rows=7)
        late = rng.randrange(1, step)
        store.put(a_failure(late) if rng.random() < 0.5 else a_record(late))
    while view.scan(rows=7):
        pass
    rows = [store.row_at(index) for index in range(len(store))]
    assert shown(view) == [r.seq for r in rows if isinstance(r, RequestRecord) and r.status == 502]


def test_matches_are_found_newest_first() -> None:
    """The first slice already has the newest matches: they are on the screen at once."""
    _, view = a_view([a_record(n, client="web" if n % 10 else "ci") for n in range(1, 1001)])
    view.set_filter(parse_filter("client=ci"))
    assert view.scan(rows=50)
    assert shown(view) == [960, 970, 980, 990, 1000]


def test_turning_the_filter_off_keeps_its_matches() -> None:
    """With the filter off everything is shown, and the matches can still be jumped to."""
    _, view = a_view([a_record(n, client="web" if n % 5 else "ci") for n in range(1, 21)])
    view.set_filter(parse_filter("client=ci"))
    view.scan()
    view.filtering = False
    assert len(view) == 20
    assert view.neighbour_match(record_key(7), 1) == record_key(10)
    assert view.neighbour_match(record_key(10), 1) == record_key(15)
    assert view.neighbour_match(record_key(10), -1) == record_key(5)
    assert view.neighbour_match(record_key(20), 1) is None


def test_a_sorted_view_stands_still() -> None:
    """Sorting is a picture: records that come later do not move it."""
    store, view = a_view([a_record(n, duration_ms=1000 * (n % 7)) for n in range(1, 15)])
    view.sort(Sorting("dur", descending=True), lambda record: record.duration_ms)
    before = shown(view)
    assert before[:2] == [13, 6]
    store.put(a_record(99, duration_ms=10**6))
    assert shown(view) == before
    view.unsort()
    assert shown(view)[-1] == 99


def test_finding_the_next_error_skips_marks() -> None:
    """`e` goes from error to error; a gap's mark between them is no error."""
    store, view = a_view([a_record(1), a_failure(2), a_record(3), a_failure(6)])
    store.put_mark(5, Mark(MarkKind.GAP, 0, 4, 4))
    assert view.find(record_key(2), 1, is_error) == record_key(6)
    assert view.find(record_key(6), -1, is_error) == record_key(2)
    assert view.find(record_key(2), -1, is_error) is None


def test_dropped_records_leave_the_matches_too() -> None:
    """When the store forgets the oldest, the filtered view does as well."""
    store = RecordStore(keep=1000)
    view = View(store)
    view.set_filter(parse_filter("client=web"))
    for seq in range(1, 2500):
        store.put(a_record(seq))
    assert shown(view)[0] == store.oldest_seq
    assert view.match_count == len(store)


def test_older_matches_stand_above_those_of_the_store() -> None:
    """What the daemon found on disk comes first, counts by itself, and goes with the filter."""
    store, view = a_view([a_record(n, client="web" if n % 10 else "ci") for n in range(100, 201)])
    view.set_filter(parse_filter("client=ci"))
    view.scan()
    view.add_older([a_record(90, client="ci"), a_record(40, client="ci")], 40)
    assert shown(view)[:3] == [40, 90, 100]
    assert (view.match_count, view.older_count, view.asked_to) == (11, 2, 40)
    row = view.row_at(0)
    assert isinstance(row, RequestRecord)
    assert row.seq == 40
    store.put_older([a_record(n, client="ci" if n == 90 else "web") for n in range(80, 100)])
    assert shown(view)[:3] == [40, 90, 100]
    assert (view.match_count, view.older_count) == (12, 1)
    view.filtering = False
    assert view.neighbour_match(record_key(90), -1) is None
    view.set_filter(None)
    assert (view.older_count, shown(view)[0]) == (0, 80)


def test_older_matches_take_their_places_in_a_sorted_view() -> None:
    """What is shown stays as it was sorted, without what has come since."""
    store, view = a_view([a_record(n, duration_ms=10 * n) for n in (100, 101)])
    view.set_filter(parse_filter("client=web"))
    view.scan()
    view.sort(Sorting("dur", descending=True), lambda record: record.duration_ms)
    store.put(a_record(102, duration_ms=5000))
    view.add_older([a_record(90, duration_ms=9000), a_record(40, duration_ms=1005)], None)
    assert shown(view) == [90, 101, 40, 100]
    assert view.older_count == 2


def test_older_matches_are_bounded() -> None:
    """At `MAX_OLDER` the daemon is not asked any further."""
    _, view = a_view([a_record(100_000)])
    view.set_filter(parse_filter("client=web"))
    view.scan()
    view.add_older([a_record(n) for n in range(1000, 1000 + MAX_OLDER)], 1000)
    assert view.asked_all
