"""Failures grouped by what caused them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tui.history import History
from tui.model.sorting import Value
from tui.model.stats import CauseTally, Stats, Window
from tui.model.units import age, count, moment
from tui.theme import Role
from tui.widgets.line_list import Field, ItemList

_WITH_FIRST = 56
"""From this width on there is room for when a cause was first seen."""
_WITH_CLIENTS = 42


class CauseList(ItemList[tuple[str, CauseTally]]):
    """The causes of failures with their numbers, when each was seen, and whom it hit; Enter filters by it."""

    def __init__(self, now_s: Callable[[], float], *, id: str) -> None:  # noqa: A002 - Textual's own name for it
        super().__init__(lambda row: row[0], id=id, cursor_always=False)
        self._now_s = now_s
        self._covers = ""

    def show_window(self, stats: Stats, window: Window, history: History) -> None:
        """Show those of a window, and over which time they are known."""
        now_s = self._now_s()
        begin_s = now_s - window.span_s
        covers = f", {window.name}"
        if not history.reaches_back(begin_s):
            covers = "" if stats.oldest_s is None else f", since {moment(stats.oldest_s, now_s)}"
        if covers != self._covers:
            self._covers = covers
            self.forget_drawn()
        self.show(stats.causes(window, now_s))

    def fields(self, width: int) -> list[Field]:
        """Return the columns that fit; the clients take what the others leave."""
        fields = [Field("count", 5, right=True), Field("last", 4, right=True)]
        if width >= _WITH_FIRST:
            fields.insert(1, Field("first", 5, right=True))
        clients = width >= _WITH_CLIENTS
        left = width - 2 - sum(field.width + 1 for field in fields)
        cause = max(8, min(26, left * 3 // 5 if clients else left))
        if clients:
            fields.append(Field("clients", max(0, left - cause - 1)))
        return [Field(f"errors{self._covers}", cause), *fields]

    def sort_values(self) -> Mapping[str, Value[tuple[str, CauseTally]]]:
        """Return what a cause is sorted by."""
        return {
            "count": lambda row: row[1].count,
            "last": lambda row: row[1].last_s,
            "first": lambda row: row[1].first_s,
        }

    def cells(self, item: tuple[str, CauseTally]) -> dict[str, tuple[str, Role]]:
        """Return one cause."""
        cause, tally = item
        now_s = self._now_s()
        return {
            f"errors{self._covers}": (cause, Role.BAD),
            "count": (count(tally.count), Role.STRONG),
            "first": (age(now_s - tally.first_s), Role.DIM),
            "last": (age(now_s - tally.last_s), Role.TEXT),
            "clients": (", ".join(tally.names), Role.TEXT),
        }

    def empty_text(self) -> tuple[str, ...]:
        """Say that all is well, or that nothing is known."""
        return (f"No errors{self._covers}." if self._covers else "Errors are not known yet.",)
