"""What of the store the list shows: all of it, what passes the filter, or a sorted cut.

A filter is tried on the records newest first and in slices, so that the first matches are on the
screen at once and a million records never hold up a key press. Older matches than the store has come
from the daemon, which is asked with the filter: they are shown above, and let go of with the filter.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable, Iterable

from relayd.admin.schema import Filter, RequestRecord
from tui.model.sorting import Sorting, Value, in_order
from tui.model.store import Mark, RecordStore, Row, record_key
from tui.model.units import unix_s

SLICE_ROWS = 200
MAX_OLDER = 5000


class View:
    """Rows of the store by place. Watches the store; `scan` must be called until it returns False.

    Args:
        store: the rows.
        fill: puts what is known of an open request by now into its record.
    """

    def __init__(self, store: RecordStore, fill: Callable[[RequestRecord], None] = lambda _: None) -> None:
        self._store = store
        self._fill = fill
        self.filter: Filter | None = None
        self.filtering = True
        """False: the filter is kept, everything is shown, and matches are only marked."""
        self.sorting: Sorting | None = None
        """None: in the order of time, and living; else rows are sorted once."""
        self._matches = array("q")
        self._scanned_to: int | None = None
        self._sorted: list[int] | None = None
        self._value: Value[RequestRecord] = lambda record: record.seq
        """What the rows are sorted by."""
        self._older: dict[int, RequestRecord] = {}
        self.asked_to: int | None = None
        """The daemon was asked for matches down to this `seq`; None: not yet."""
        self.asked_all = False
        """Every match on disk is here, or as many as the view holds."""
        store.watcher = self

    @property
    def narrowed(self) -> bool:
        """Whether the list shows less than the store because of a filter."""
        return self.filter is not None and self.filtering

    @property
    def scanning(self) -> bool:
        """Whether older records have not been tried against the filter yet."""
        return self._scanned_to is not None

    @property
    def match_count(self) -> int:
        """How many records of the store pass the filter, as far as they were tried."""
        return len(self._matches) - len(self._older)

    @property
    def older_count(self) -> int:
        """How many matches older than the store are shown."""
        return len(self._older)

    def __len__(self) -> int:
        if self._sorted is not None:
            return len(self._sorted)
        return len(self._matches) if self.narrowed else len(self._store)

    def key_at(self, index: int) -> int:
        """Return the key of the row at this place of the view."""
        if self._sorted is not None:
            return self._sorted[index]
        return self._matches[index] if self.narrowed else self._store.key_at(index)

    def row_at(self, index: int) -> Row | None:
        """Return the row at this place of the view; None when it has just gone."""
        if self._sorted is None and not self.narrowed:
            return self._filled(self._store.row_at(index))
        return self.get(self.key_at(index))

    def flags(self, start: int, end: int, most: int) -> tuple[int, int, int]:
        """Return errors and marks among these rows of the view, and of how many rows.

        All are looked at where the view is the store as it is, else at most `most`, evenly.
        """
        if self._sorted is None and not self.narrowed:
            return *self._store.flags(start, end), max(1, end - start)
        errors = marks = tried = 0
        for index in range(start, min(end, len(self)), max(1, (end - start) // most)):
            key = self.key_at(index)
            place = self._store.index_of(key)
            # A match that is older than the store has no place there, and counts as no error.
            held = place < len(self._store) and self._store.key_at(place) == key
            error, mark = self._store.flags(place, place + held)
            errors, marks, tried = errors + error, marks + mark, tried + 1
        return errors, marks, max(1, tried)

    def get(self, key: int) -> Row | None:
        """Return the row with this key, an open request with its live numbers."""
        row = self._store.get(key)
        return self._older.get(key) if row is None else self._filled(row)

    def _filled(self, row: Row) -> Row:
        if isinstance(row, RequestRecord) and row.outcome is None:
            self._fill(row)
        return row

    def index_of(self, key: int) -> int:
        """Return where the row with this key is in the view, or the place of the next one."""
        if self._sorted is not None:
            try:
                return self._sorted.index(key)
            except ValueError:
                return 0
        if self.narrowed:
            return bisect_left(self._matches, key)
        return self._store.index_of(key)

    def index_of_time(self, at_s: float) -> int:
        """Return where the first row is that started at this time or later."""
        return bisect_left(range(len(self)), at_s, key=lambda index: _started_s(self.row_at(index)))

    def is_match(self, key: int) -> bool:
        """Return whether the record with this key passes the filter."""
        index = bisect_left(self._matches, key)
        return index < len(self._matches) and self._matches[index] == key

    def neighbour_match(self, key: int, step: int) -> int | None:
        """Return the key of the next (`step` 1) or previous (-1) match from `key`."""
        index = bisect_left(self._matches, key)
        if step > 0 and index < len(self._matches) and self._matches[index] == key:
            index += 1
        elif step < 0:
            index -= 1
        found = self._matches[index] if 0 <= index < len(self._matches) else None
        return None if found in self._older and not self.narrowed else found

    def find(self, key: int, step: int, wanted: Callable[[RequestRecord], bool]) -> int | None:
        """Return the key of the nearest row of the view before or after `key` that is wanted."""
        index = self.index_of(key) + (step if step < 0 or self.has(key) else 0)
        while 0 <= index < len(self):
            row = self.row_at(index)
            if isinstance(row, RequestRecord) and wanted(row):
                return self.key_at(index)
            index += step
        return None

    def has(self, key: int) -> bool:
        """Return whether the row with this key is in the view."""
        index = self.index_of(key)
        return index < len(self) and self.key_at(index) == key

    def set_filter(self, new: Filter | None) -> None:
        """Show what passes `new`, or everything."""
        self.filter = new if new is not None and new.alternatives else None
        self.filtering = True
        self._matches = array("q")
        self._older.clear()
        self.asked_to, self.asked_all = None, False
        self._scanned_to = len(self._store) and self._store.key_at(len(self._store) - 1) + 1
        if self.filter is None or not len(self._store):
            self._scanned_to = None
        self.unsort()

    def scan(self, rows: int = SLICE_ROWS) -> bool:
        """Try the next older slice against the filter; False when nothing is left to try."""
        if self._scanned_to is None or self.filter is None:
            return False
        end = self._store.index_of(self._scanned_to)
        start = max(0, end - rows)
        found = array("q")
        for index in range(start, end):
            row = self._filled(self._store.row_at(index))
            if isinstance(row, RequestRecord) and self.filter.matches(row):
                found.append(self._store.key_at(index))
        if found:
            place = bisect_left(self._matches, self._scanned_to)
            self._matches[place:place] = found
        self._scanned_to = self._store.key_at(start) if start > 0 else None
        return self._scanned_to is not None

    def judge_again(self, keys: Iterable[int]) -> None:
        """Filter open requests again, since their numbers have changed."""
        if self.filter is None:
            return
        for key in keys:
            row = self._store.get(key)
            if row is not None:
                self._judge(key, row)

    def add_older(self, records: Iterable[RequestRecord], next_before: int | None) -> None:
        """Show matches that the daemon found; it was asked down to `next_before`, None: to the end."""
        added = []
        for record in records:
            key = record_key(record.seq)
            index = bisect_left(self._matches, key)
            if self._store.get(key) is None and not self.is_match(key):
                self._older[key] = record
                self._matches.insert(index, key)
                added.append(key)
        if self._sorted is not None and self.sorting is not None:
            self._sorted = self._in_order([*self._sorted, *added], self.sorting)
        self.asked_to = next_before
        self.asked_all = next_before is None or len(self._older) >= MAX_OLDER

    def sort(self, sorting: Sorting, value: Value[RequestRecord]) -> None:
        """Sort what is shown now, by the value of each record; of equal ones the newest comes first."""
        self.unsort()
        self._value = value
        self._sorted = self._in_order(map(self.key_at, range(len(self))), sorting)
        self.sorting = sorting

    def _in_order(self, keys: Iterable[int], sorting: Sorting) -> list[int]:
        rows = ((key, self.get(key)) for key in sorted(keys, reverse=True))
        rated = [(key, self._value(row)) for key, row in rows if isinstance(row, RequestRecord)]
        return [key for key, _ in in_order(rated, lambda pair: pair[1], descending=sorting.descending)]

    def unsort(self) -> None:
        """Go back to the living list, in the order of time."""
        self._sorted = self.sorting = None

    # The store's watcher.

    def row_put(self, key: int, row: Row) -> None:
        """Keep the matches up to date."""
        self._judge(key, row)

    def rows_dropped(self, below: int) -> None:
        """Forget matches that are gone."""
        del self._matches[: bisect_left(self._matches, below)]
        self._older.clear()
        self.asked_to, self.asked_all = None, False
        if self._scanned_to is not None and self._scanned_to <= below:
            self._scanned_to = None
        if self._sorted is not None:
            self._sorted = [key for key in self._sorted if key >= below]

    def row_removed(self, key: int) -> None:
        """Forget a mark; marks are never matches."""
        if self._sorted is not None and key in self._sorted:
            self._sorted.remove(key)

    def _judge(self, key: int, row: Row) -> None:
        if self.filter is None or isinstance(row, Mark):
            return
        self._filled(row)
        self._older.pop(key, None)
        if self._scanned_to is not None and key < self._scanned_to:
            return
        index = bisect_left(self._matches, key)
        known = index < len(self._matches) and self._matches[index] == key
        passes = self.filter.matches(row)
        if passes and not known:
            self._matches.insert(index, key)
        elif known and not passes:
            del self._matches[index]


def _started_s(row: Row | None) -> float:
    if isinstance(row, RequestRecord):
        return unix_s(row.started_at)
    return row.at_ms / 1000 if row is not None else 0.0
