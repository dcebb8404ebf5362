"""The list of requests: every record of the view, its marks, and follow or freeze."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.style import Style
from textual.binding import Binding, BindingType
from textual.message import Message

from relayd.admin.schema import RequestRecord, epoch_s
from relayd.printable import plural
from tui.keymap import with_ids
from tui.model.app_state import AppState, Connection
from tui.model.sorting import Sorting, SortValue, Value, natural
from tui.model.store import Mark, MarkKind
from tui.model.units import clock
from tui.theme import Role, style
from tui.widgets.cells import Piece, fit
from tui.widgets.columns import SORT_KEYS, Fitted, fitted, row
from tui.widgets.line_list import Field, Key, LineList

_BAR_SAMPLES = 12


class RequestList(LineList):
    """Follows the newest request until the operator looks elsewhere; then nothing moves but `n new`."""

    BINDINGS: ClassVar[list[BindingType]] = with_ids(
        "requests",
        [
            Binding("space", "freeze", "Freeze the list, or follow again", show=False, key_display="Space"),
            Binding("end,G", "follow", "Go to the newest, and follow", show=False, key_display="End G"),
        ],
    )

    @dataclass
    class FollowChanged(Message):
        """Following began or ended."""

        following: bool

    @dataclass
    class AtTop(Message):
        """The oldest row is in sight: older ones are wanted."""

    def __init__(self, state: AppState, now_s: Callable[[], float], *, id: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self.state = state
        self._now_s = now_s
        self.hidden: frozenset[str] = frozenset()
        self.following = True
        self._newest_seen = 0
        self._columns: tuple[int, frozenset[str], list[Fitted]] = (0, frozenset(), [])

    @property
    def new_count(self) -> int:
        """How many rows came since the view was frozen."""
        if self.following or not self.row_count():
            return 0
        if self.sorting is not None:
            return 0
        return self.row_count() - self.state.view.index_of(self._newest_seen + 1)

    # Rows.

    def row_count(self) -> int:
        """Count the rows of the view."""
        return len(self.state.view)

    def row_key(self, index: int) -> Key:
        """Return the store's key."""
        return self.state.view.key_at(index)

    def index_of(self, key: Key) -> int | None:
        """Find the place by bisection."""
        return self.state.view.index_of(int(key))

    def _fitted(self, width: int) -> list[Fitted]:
        if self._columns[:2] != (width, self.hidden):
            self._columns = (width, self.hidden, fitted(width - 2, self.hidden))
        return self._columns[2]

    def fields(self, width: int) -> list[Field]:
        """Return the columns that fit."""
        columns = self._fitted(width - 1)
        return [Field(fit.column.title, fit.width, right=fit.column.right) for fit in columns]

    @property
    def sorting(self) -> Sorting | None:
        """How the operator sorted the view."""
        return self.state.view.sorting

    def sortable(self) -> Sequence[str]:
        """Return the titles of the columns to sort by."""
        return list(SORT_KEYS)

    def natural_sorting(self, column: str) -> Sorting:
        """Return how a column is sorted at first."""
        view = self.state.view
        rows = (row for index in range(len(view)) if isinstance(row := view.row_at(index), RequestRecord))
        return natural(column, rows, SORT_KEYS[column].value)

    def sort(self, sorting: Sorting | None) -> None:
        """Sort what is shown now, once, or go back to the living list."""
        self.set_following(following=False)
        if sorting is None:
            self.state.view.unsort()
            self.action_follow()
        else:
            self.state.view.sort(sorting, self._sort_value(sorting.column))
            self.action_first()
        self.rows_changed()

    def _sort_value(self, column: str) -> Value[RequestRecord]:
        """Return what a request is sorted by; one that runs has lasted until now."""
        value, now_s = SORT_KEYS[column].value, self._now_s()
        if column != "dur":
            return value

        def lasted_ms(record: RequestRecord) -> SortValue | None:
            if record.outcome is None:
                return 1000 * (now_s - epoch_s(record.started_at))
            return value(record)

        return lasted_ms

    def _look(self, role: Role) -> Style:
        return style(self.app, role)

    def row_pieces(self, index: int, width: int, *, selected: bool) -> Iterable[Piece]:
        """Return a request or a mark."""
        record = self.state.view.row_at(index)
        if record is None:
            return []
        if isinstance(record, Mark):
            return [(fit(mark_text(record, width - 1), width - 1), self._look(Role.DIM))]
        age_ms: float | None = None
        if record.outcome is None and self.state.connection in {Connection.LIVE, Connection.CONNECTING}:
            age_ms = max(0.0, (self._now_s() - epoch_s(record.started_at)) * 1000)
        lead: Piece = (" ", self._look(Role.TEXT))
        if selected:
            lead = ("▶", self._look(Role.ACCENT))
        elif not self.state.view.filtering and self.state.view.is_match(self.state.view.key_at(index)):
            lead = ("•", self._look(Role.WARN))
        return [lead, *row(record, age_ms, self._fitted(width), self._look)]

    def empty_text(self) -> tuple[str, ...]:
        """Say why there is nothing to see."""
        view, state = self.state.view, self.state
        if view.narrowed:
            if view.scanning or not view.asked_all:
                return ("Looking through the records …",)
            return ("Nothing passes this filter.", "f shows everything again · / changes it")
        if state.problem:
            return (f"{state.state_word}: no records.",)
        if state.connection.value == "LIVE":
            return (
                "No requests yet.",
                "They appear here the moment they start.",
                "K shows the clients, and makes keys for them.",
            )
        return ("Connecting to the daemon …",)

    def bar_role(self, start: int, end: int) -> Role | None:
        """Return the role for marks, and for errors: any among few rows, frequent ones among many."""
        errors, marks, rows = self.state.view.flags(start, end, _BAR_SAMPLES)
        if marks:
            return Role.ACCENT
        return Role.BAD if errors * _BAR_SAMPLES > rows else None

    # Follow and freeze.

    def rows_changed(self) -> None:
        """Take over new rows: stay at the end while following, else with the row that is read."""
        if self.following and self.row_count():
            self._newest_seen = self.state.view.key_at(self.row_count() - 1)
        super().rows_changed()

    def restore_place(self, count: int) -> None:
        """Stay at the end while following, else with the row that the operator reads."""
        if not self.following:
            super().restore_place(count)
            return
        self.cursor = max(0, count - 1)
        self.top = max(0, count - max(1, self.body_height))

    def set_following(self, *, following: bool) -> None:
        """Follow the newest, or hold still."""
        if following == self.following:
            return
        self.following = following
        if not following and self.row_count():
            self._newest_seen = self.state.view.key_at(self.row_count() - 1)
        self.post_message(self.FollowChanged(following))
        if following:
            self.rows_changed()

    def go_to(self, index: int) -> None:
        """Go to a row; elsewhere than at the end that freezes the list."""
        if index < self.row_count() - 1:
            self.set_following(following=False)
        super().go_to(index)
        self._look_for_older()

    def scroll_rows(self, rows: int) -> None:
        """Scroll; up freezes the list, down to the end follows again."""
        if rows < 0:
            self.set_following(following=False)
        super().scroll_rows(rows)
        at_end = self.top + self.body_height >= self.row_count()
        if rows > 0 and at_end and self.sorting is None:
            self.set_following(following=True)
        self._look_for_older()

    def _look_for_older(self) -> None:
        if self.top == 0 and self.row_count():
            self.post_message(self.AtTop())

    def on_resize(self) -> None:
        """Stay at the end while following."""
        self._drawn = []
        if self.following:
            self.rows_changed()
        elif self.row_count():
            super().go_to(self.cursor)

    def action_freeze(self) -> None:
        """Hold still, or follow again."""
        self.set_following(following=not self.following)

    def action_follow(self) -> None:
        """End: go to the newest and follow."""
        if self.sorting is not None:
            super().go_to(self.row_count() - 1)
            return
        if self.following:
            self.rows_changed()
        self.set_following(following=True)


def mark_text(mark: Mark, width: int) -> str:
    """Return a mark as a line across the list."""
    at = clock(mark.at_ms / 1000) if mark.at_ms else ""
    if mark.kind is MarkKind.RESTART:
        text = f"── daemon restarted {at} · what was open then is lost "
    elif mark.kind is MarkKind.GAP:
        text = f"── gap: up to {plural(mark.last - mark.first + 1, 'event')} not loaded · Enter loads them "
    elif mark.kind is MarkKind.LOST:
        text = f"── {plural(mark.count, 'record')} lost {at}: {mark.reason} "
    else:
        text = f"── {plural(mark.count, 'event')} no longer kept (retention) "
    return text + "─" * max(0, width - len(text))
