"""The line above the list: filter, how many records pass it, and whether the list follows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from textwrap import wrap
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Input

from relayd.admin.schema import FilterError, parse_filter
from tui.model.app_state import AppState
from tui.model.text import printable_text
from tui.model.units import plural
from tui.model.view import Order
from tui.theme import Role, style
from tui.widgets.bars import Bar
from tui.widgets.cells import Piece, fit, width_of


class _FilterInput(Input):
    """The text box. Enter and Escape return the focus immediately: the next key goes to the list."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Back", show=False),
        Binding("tab,shift+tab", "submit", "Keep the filter", show=False),
    ]

    def __init__(self, submit: Callable[[], None], leave: Callable[[], None]) -> None:
        hint = "status>=500 model~gpt-4   a bare word matches anywhere"
        super().__init__(placeholder=hint, id="filter-input", compact=True)
        self._submit = submit
        self._leave = leave

    async def action_submit(self) -> None:
        """Keep the filter, on Enter."""
        self._submit()

    def action_leave(self) -> None:
        """Go back to the filter from before, on Escape."""
        self._leave()


class _Line(Bar):
    """One line or more, drawn by the filter line."""

    def __init__(self, draw: Callable[[int], list[list[Piece]]], *, id: str) -> None:  # noqa: A002 - Textual's own name for it
        super().__init__(id=id)
        self._draw = draw

    def pieces(self, y: int, width: int) -> Iterable[Piece]:
        """Return the line."""
        lines = self._draw(width)
        return lines[y] if y < len(lines) else []


class FilterLine(Vertical):
    """Shows the filter; `/` turns it into a text box with a live preview below it.

    Args:
        state: what is filtered.
        on_close: called at once when the text box closes; takes the focus back.
    """

    DEFAULT_CSS = """
    FilterLine { height: auto; }
    FilterLine Input { display: none; border: none; height: 1; padding: 0; width: 1fr; background: $panel; }
    FilterLine #filter-state { background: transparent; }
    FilterLine #filter-fault { display: none; height: 1; }
    FilterLine.-editing Input { display: block; }
    FilterLine.-editing #filter-state { display: none; }
    FilterLine.-editing #filter-fault { display: block; }
    """

    @dataclass
    class Closed(Message):
        """The filter was accepted, or the last good one was kept."""

        text: str

    def __init__(self, state: AppState, on_close: Callable[[], None]) -> None:
        super().__init__(id="filter")
        self._state = state
        self._on_close = on_close
        self.text = ""
        self._following = True
        self._new_count = 0
        self._fault: FilterError | None = None
        self._before = ""

    def compose(self) -> ComposeResult:
        """Show the filter, the text box, and the line that says what is wrong or what passes."""
        yield _Line(self._state_pieces, id="filter-state")
        yield _FilterInput(self.submit, self.cancel)
        yield _Line(self._fault_pieces, id="filter-fault")

    @property
    def editing(self) -> bool:
        """Whether the text box is open."""
        return self.has_class("-editing")

    def on_click(self) -> None:
        """Edit the filter."""
        if not self.editing:
            self.edit()

    def edit(self) -> None:
        """Open the text box."""
        view = self._state.view
        self._before = view.filter.text if view.filter is not None else ""
        self.add_class("-editing")
        box = self.query_one(Input)
        box.value = self._before or self.text
        # At once: `box.focus()` would let a key that is typed right now reach the list.
        self.screen.set_focus(box, scroll_visible=False)
        box.cursor_position = len(box.value)

    def show_fault(self, error: FilterError | None) -> None:
        """Show that the filter is invalid (the last valid one stays on), or that it is valid."""
        self._fault = error
        self.redraw()

    def show(self, *, following: bool, new_count: int) -> None:
        """Show whether the list follows, and if not, how many rows came since."""
        self._following, self._new_count = following, new_count
        self.redraw()

    def redraw(self) -> None:
        """Draw what changed."""
        fault = self.query_one("#filter-fault", _Line)
        fault.styles.height = len(self._fault_pieces(self.size.width))
        for bar in self.query(_Line):
            bar.redraw()

    def submit(self) -> None:
        """Keep what is typed, if it can be understood."""
        text = self.query_one(Input).value.strip()
        try:
            parse_filter(text)
        except FilterError as error:
            self.show_fault(error)
        else:
            self._close(text)

    def cancel(self) -> None:
        """Go back to the filter that was on before."""
        self._close(self._before)

    def _close(self, text: str) -> None:
        self.text = text
        self._fault = None
        self.remove_class("-editing")
        self._on_close()
        self.post_message(self.Closed(text))

    def _state_pieces(self, width: int) -> list[list[Piece]]:
        view = self._state.view
        dim, text, key = (style(self.app, role) for role in (Role.DIM, Role.TEXT, Role.KEY))
        right = [*self._count_pieces(), self._follow_piece()]
        shown, look = "filter", dim
        if view.filter is not None:
            shown = printable_text(view.filter.text) + ("" if view.filtering else "  (off; f)")
            look = text if view.filtering else dim
        return [[(" / ", key), (fit(shown, max(0, width - width_of(right) - 3)), look), *right]]

    def _count_pieces(self) -> list[Piece]:
        view, total = self._state.view, self._state.store.record_count
        if view.filter is None:
            return [(f" {plural(total, 'record')} ", style(self.app, Role.DIM))]
        more = "…" if view.scanning else ""
        older = f" + {view.older_count:,} older" if view.older_count else ""
        return [(f" {view.match_count:,}{more} of {total:,}{older} ", style(self.app, Role.TEXT))]

    def _follow_piece(self) -> Piece:
        order = self._state.view.order
        if order is not Order.TIME:
            return f" SORTED by {order.value} · Esc ", style(self.app, Role.WARN)
        if self._following:
            return " FOLLOW ", style(self.app, Role.GOOD)
        new = f" {self._new_count:,} new (End)" if self._new_count else " (End)"
        return f" FROZEN{new} ", style(self.app, Role.WARN)

    def _fault_pieces(self, width: int) -> list[list[Piece]]:
        """Return what is wrong, pointing at the place, in as many lines as it needs; else what matches."""
        if self._fault is not None:
            bad, words = style(self.app, Role.BAD), printable_text(str(self._fault))
            pad = " " * min(60, self._fault.position)
            mark = f"{pad}{'^' * max(1, min(20, self._fault.length))}"
            if len(mark) + 1 + len(words) <= width:
                return [[(f"{mark} {words}", bad)]]
            return [[(mark, bad)], *([(f" {line}", bad)] for line in wrap(words, max(20, width - 2)))]
        view = self._state.view
        more = " so far" if view.scanning else ""
        words = f"{plural(view.match_count, 'match', 'matches')}{more}" if view.filter else "everything"
        return [[(f"{words} · Enter keeps it · Esc goes back", style(self.app, Role.DIM))]]
