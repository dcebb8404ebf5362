"""The line above the list: filter, how many pass it, and whether the list follows."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

from rich.style import Style
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.widgets import Input

from relayd.admin.schema import FilterError, parse_filter
from tui.model.app_state import AppState
from tui.model.text import neutral
from tui.model.units import plural
from tui.model.view import Order
from tui.theme import Role, style
from tui.widgets.bars import Bar
from tui.widgets.cells import Piece, fit, width_of


class _FilterInput(Input):
    """The text box. Enter and Escape hand the focus on at once: the next key belongs to the list again."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "leave", "Back", show=False)]

    def __init__(self, line: FilterLine) -> None:
        super().__init__(
            placeholder="status>=500 model~gpt-4   a bare word matches anywhere",
            id="filter-input",
            compact=True,
        )
        self._filter_line = line

    async def action_submit(self) -> None:
        """Enter: keep the filter."""
        self._filter_line.submit()

    def action_leave(self) -> None:
        """Escape: back to the filter from before."""
        self._filter_line.cancel()


class _State(Bar):
    """The line when nothing is typed."""

    def __init__(self, line: FilterLine) -> None:
        super().__init__(id="filter-state")
        self._filter_line = line

    def rest_style(self) -> Style:
        """Plain."""
        return style(self.app, Role.TEXT)

    def pieces(self, y: int, width: int) -> Iterable[Piece]:  # noqa: ARG002 - one line
        """Filter on the left, counts and follow on the right."""
        return self._filter_line.state_pieces(width)

    def on_click(self) -> None:
        """A click edits the filter."""
        self._filter_line.edit()


class FilterLine(Vertical):
    """Shows the filter; `/` turns it into a text box with a live preview below it.

    Args:
        state: what is filtered.
        left: called at once when the text box closes: takes the focus back.
    """

    DEFAULT_CSS = """
    FilterLine { height: auto; }
    FilterLine Input { display: none; border: none; height: 1; padding: 0; width: 1fr; background: $panel; }
    FilterLine #filter-fault { display: none; height: 1; }
    FilterLine.-editing Input { display: block; }
    FilterLine.-editing #filter-state { display: none; }
    FilterLine.-editing #filter-fault { display: block; }
    """

    @dataclass
    class Closed(Message):
        """The filter was accepted, or the last good one was kept."""

        text: str

    def __init__(self, state: AppState, left: Callable[[], None]) -> None:
        super().__init__(id="filter")
        self._state = state
        self._left = left
        self.text = ""
        self.following = True
        self.new_count = 0
        self._fault: FilterError | None = None
        self._before = ""

    def compose(self) -> ComposeResult:
        """State, text box, and the line that says what is wrong or what came of it."""
        yield _State(self)
        yield _FilterInput(self)
        yield _Fault(self)

    @property
    def editing(self) -> bool:
        """Whether the text box is open."""
        return self.has_class("-editing")

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

    def fault(self, error: FilterError | None) -> None:
        """The text can't be understood (the last good filter stays on), or it can."""
        self._fault = error
        self.query_one(_Fault).redraw()

    def redraw(self) -> None:
        """Draw what changed."""
        self.query_one(_State).redraw()
        self.query_one(_Fault).redraw()

    def submit(self) -> None:
        """Keep what is typed, if it can be understood."""
        text = self.query_one(Input).value.strip()
        try:
            parse_filter(text)
        except FilterError as error:
            self.fault(error)
        else:
            self._close(text)

    def cancel(self) -> None:
        """Back to the filter that was on before."""
        self._close(self._before)

    def _close(self, text: str) -> None:
        self.text = text
        self._fault = None
        self.remove_class("-editing")
        self._left()
        self.post_message(self.Closed(text))

    def state_pieces(self, width: int) -> list[Piece]:
        """The line when nothing is typed."""
        view = self._state.view
        dim, text, key = (style(self.app, role) for role in (Role.DIM, Role.TEXT, Role.KEY))
        right = self._right()
        room = max(0, width - width_of(right))
        if view.filter is None:
            left: list[Piece] = [(" / ", key), (fit("filter", max(0, room - 3)), dim)]
        else:
            shown = neutral(view.filter.text)
            state = "" if view.filtering else "  (off; f)"
            left = [(" / ", key), (fit(shown + state, max(0, room - 3)), text if view.filtering else dim)]
        return [*left, *right]

    def _right(self) -> list[Piece]:
        view, total = self._state.view, self._state.store.record_count
        dim, text = style(self.app, Role.DIM), style(self.app, Role.TEXT)
        pieces: list[Piece] = []
        if view.filter is not None:
            more = "…" if view.scanning else ""
            older = f" + {view.older_count:,} older" if view.older_count else ""
            pieces.append((f" {view.match_count:,}{more} of {total:,}{older} ", text))
        else:
            pieces.append((f" {plural(total, 'record')} ", dim))
        if view.order is not Order.TIME:
            pieces.append((f" SORTED by {view.order.value} · Esc ", style(self.app, Role.WARN)))
        elif self.following:
            pieces.append((" FOLLOW ", style(self.app, Role.GOOD)))
        else:
            new = f" {self.new_count:,} new (End)" if self.new_count else " (End)"
            pieces.append((f" FROZEN{new} ", style(self.app, Role.WARN)))
        return pieces

    def fault_pieces(self) -> list[Piece]:
        """What is wrong, pointing at the place; else how many match."""
        if self._fault is not None:
            pad = " " * min(60, self._fault.position)
            mark = "^" * max(1, min(20, self._fault.length))
            return [(f"{pad}{mark} {neutral(str(self._fault))}", style(self.app, Role.BAD))]
        view = self._state.view
        more = " so far" if view.scanning else ""
        words = f"{plural(view.match_count, 'match', 'matches')}{more}" if view.filter else "everything"
        return [(f"{words} · Enter keeps it · Esc goes back", style(self.app, Role.DIM))]


class _Fault(Bar):
    """The line under the text box."""

    def __init__(self, line: FilterLine) -> None:
        super().__init__(id="filter-fault")
        self._filter_line = line

    def pieces(self, y: int, width: int) -> Iterable[Piece]:  # noqa: ARG002 - one line
        """What is wrong or what came of it."""
        return self._filter_line.fault_pieces()
