"""Every record the app holds, in the order of the log, in little memory.

Rows are addressed by a key that never changes: twice the `seq` of a record's start, plus one. A mark
takes the even number before the record it stands above. The view, the cursor and the pinned top of
the list hold keys, so rows may come, change and go without moving what the operator looks at.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from relayd.admin.schema import RequestRecord
from tui.model.packed import Packer
from tui.model.stats import is_error
from tui.model.units import unix_s


class MarkKind(StrEnum):
    """Why a mark stands between two records."""

    RESTART = "restart"
    GAP = "gap"
    LOST = "lost"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True)
class Mark:
    """One such row.

    RESTART: the daemon began anew. GAP: records from `first` to `last` are on disk, not here yet.
    LOST: the daemon could not write `count` records. EXPIRED: retention removed them.
    """

    kind: MarkKind
    at_ms: int
    """Unix time in milliseconds of the record that follows; 0 when not known."""
    first: int = 0
    last: int = 0
    count: int = 0
    reason: str = ""


Row = RequestRecord | Mark
KEEP_DEFAULT = 200_000
_DROP_PART = 16


_FLAG_ERROR, _FLAG_MARK = 1, 2


def _flag(row: Row) -> int:
    if isinstance(row, Mark):
        return _FLAG_MARK
    return _FLAG_ERROR if is_error(row) else 0


def record_key(seq: int) -> int:
    """Return the key of the record whose start has this `seq`."""
    return seq << 1 | 1


def mark_key(seq: int) -> int:
    """Return the key of a mark above the record with this `seq`."""
    return seq << 1


class Watcher(Protocol):
    """Told of every change of the store, at once."""

    def row_put(self, key: int, row: Row) -> None:
        """Take note of a new row, or of new content of a row."""

    def rows_dropped(self, below: int) -> None:
        """Forget all rows with keys under `below`."""

    def row_removed(self, key: int) -> None:
        """Forget one mark."""


class RecordStore:
    """Records and marks, at most about `keep` of them: the oldest leave first."""

    def __init__(self, keep: int = KEEP_DEFAULT) -> None:
        self.keep = max(keep, 1000)
        self._packer = Packer()
        self._keys = array("q")
        self._rows: list[bytes | Mark] = []
        self._flags = bytearray()
        """One number a row: what the scrollbar marks, without unpacking."""
        self._mark_count = 0
        self.watcher: Watcher | None = None

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def record_count(self) -> int:
        """How many of the rows are records."""
        return len(self._keys) - self._mark_count

    def key_at(self, index: int) -> int:
        """Return the key of the row at this place."""
        return self._keys[index]

    def row_at(self, index: int) -> Row:
        """Return the row at this place, unpacked."""
        row = self._rows[index]
        if isinstance(row, bytes):
            return self._packer.unpack(row, self._keys[index] >> 1)
        return row

    def flags(self, start: int, end: int) -> tuple[int, int]:
        """Return how many errors and how many marks are among these rows."""
        flags = self._flags
        return flags.count(_FLAG_ERROR, start, end), flags.count(_FLAG_MARK, start, end)

    def index_of(self, key: int) -> int:
        """Return where the row with this key is, or where it would be."""
        return bisect_left(self._keys, key)

    def get(self, key: int) -> Row | None:
        """Return the row with this key."""
        index = self.index_of(key)
        return self.row_at(index) if self._is_at(index, key) else None

    def has(self, key: int) -> bool:
        """Return whether there is a row with this key."""
        return self._is_at(self.index_of(key), key)

    def _is_at(self, index: int, key: int) -> bool:
        return index < len(self._keys) and self._keys[index] == key

    @property
    def oldest_seq(self) -> int | None:
        """The `seq` of the oldest record held."""
        return self._keys[0] >> 1 if self._keys else None

    @property
    def oldest_s(self) -> float | None:
        """When the oldest record held started, as Unix seconds."""
        rows = (self.row_at(index) for index in range(len(self)))
        return next((unix_s(row.started_at) for row in rows if isinstance(row, RequestRecord)), None)

    @property
    def newest_seq(self) -> int | None:
        """The `seq` of the newest record held."""
        return self._keys[-1] >> 1 if self._keys else None

    def put(self, record: RequestRecord) -> None:
        """Add a record, or replace the one with the same `seq`. Its texts must be safe to show."""
        self._put(record_key(record.seq), record, self._packer.pack(record))

    def put_mark(self, seq: int, mark: Mark) -> None:
        """Add a mark above the record with this `seq`, or replace the one there."""
        self._put(mark_key(seq), mark, mark)

    def _put(self, key: int, row: Row, packed: bytes | Mark) -> None:
        index = self.index_of(key) if self._keys and key <= self._keys[-1] else len(self._keys)
        if self._is_at(index, key):
            self._rows[index] = packed
            self._flags[index] = _flag(row)
            self._notify(key, row)
            return
        self._mark_count += isinstance(row, Mark)
        self._keys.insert(index, key)
        self._rows.insert(index, packed)
        self._flags.insert(index, _flag(row))
        self._notify(key, row)
        if index == len(self._keys) - 1:
            self._shrink()

    def put_older(self, records: Iterable[RequestRecord]) -> None:
        """Add a page of records, in any order, where it belongs: much faster than one by one."""
        fresh: dict[int, RequestRecord] = {}
        for record in records:
            key = record_key(record.seq)
            index = self.index_of(key)
            if self._is_at(index, key):
                self.put(record)
            else:
                fresh[key] = record
        if not fresh:
            return
        keys = sorted(fresh)
        index = self.index_of(keys[0])
        if self.index_of(keys[-1]) != index:
            for key in keys:
                self.put(fresh[key])
            return
        self._keys[index:index] = array("q", keys)
        self._rows[index:index] = [self._packer.pack(fresh[key]) for key in keys]
        self._flags[index:index] = bytes(_flag(fresh[key]) for key in keys)
        for key in keys:
            self._notify(key, fresh[key])

    def remove_mark(self, key: int) -> None:
        """Take a mark away, for example when its gap is filled."""
        index = self.index_of(key)
        if self._is_at(index, key) and not key & 1:
            self._mark_count -= 1
            del self._keys[index]
            del self._rows[index]
            del self._flags[index]
            if self.watcher is not None:
                self.watcher.row_removed(key)

    def marks(self, kind: MarkKind) -> list[tuple[int, Mark]]:
        """Return every mark of one kind, with its key, oldest first."""
        pairs = zip(self._keys, self._rows, strict=True)
        return [(key, row) for key, row in pairs if isinstance(row, Mark) and row.kind is kind]

    def _notify(self, key: int, row: Row) -> None:
        if self.watcher is not None:
            self.watcher.row_put(key, row)

    def _shrink(self) -> None:
        part = self.keep // _DROP_PART
        if len(self._keys) <= self.keep + part:
            return
        below = self._keys[part * 2]
        self._mark_count -= sum(isinstance(row, Mark) for row in self._rows[: part * 2])
        del self._keys[: part * 2]
        del self._rows[: part * 2]
        del self._flags[: part * 2]
        if self.watcher is not None:
            self.watcher.rows_dropped(below)
