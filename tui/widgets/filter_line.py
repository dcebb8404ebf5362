"""The line above a list: its filter, how many rows pass it, and the text box in which it is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from textwrap import wrap
from typing import ClassVar

from rich.cells import cell_len
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.suggester import Suggester
from textual.widgets import Input

from relayd.admin.schema import FilterError, parse_filter
from tui.model.completion import Completion, completions
from tui.model.filter_kinds import FilterKind, may_hold_key
from tui.model.text import printable_text
from tui.theme import Role, style
from tui.widgets.bars import Bar
from tui.widgets.cells import Piece, fit, width_of

MAX_REMEMBERED = 50
_MIN_WORDS = 20
"""So many cells a line keeps for the sentence about an error."""


@dataclass(frozen=True, slots=True)
class Filtered:
    """How a list is filtered, as its filter line shows it."""

    text: str
    """The filter; empty if there is none."""
    is_on: bool
    """False: it is kept, and everything is shown."""
    count: str
    """How many rows there are, and pass."""
    matches: str
    """The same, for the line below the text box."""
    tail: Piece | None = None
    """What stands last in the line."""


class _Ghost(Suggester):
    """Shows the first completion behind the cursor."""

    def __init__(self, complete: Callable[[str], list[Completion]]) -> None:
        super().__init__(use_cache=False, case_sensitive=True)
        self._complete = complete

    async def get_suggestion(self, value: str) -> str | None:
        """Return the whole text with the first completion, if that only adds to it."""
        first = next(iter(self._complete(value)), None)
        return first.text if first is not None and first.text.startswith(value) else None


class _FilterInput(Input):
    """The text box. Enter and Escape return the focus immediately: the next key goes to the list."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Back", show=False),
        Binding("tab", "complete", "Complete, or keep the filter", show=False),
        Binding("shift+tab", "submit", "Keep the filter", show=False),
        Binding("up", "recall(-1)", "Earlier filter", show=False),
        Binding("down", "recall(1)", "Later filter", show=False),
    ]

    def __init__(self, line: FilterLine, example: str) -> None:
        super().__init__(
            placeholder=example, id="filter-input", compact=True, suggester=_Ghost(line.completions)
        )
        self._line = line

    async def action_submit(self) -> None:
        """Keep the filter, on Enter."""
        self._line.submit()

    def action_leave(self) -> None:
        """Go back to the filter from before, on Escape."""
        self._line.cancel()

    def action_complete(self) -> None:
        """Take the first completion; without one, keep the filter."""
        if not self._line.complete():
            self._line.submit()

    def action_cursor_right(self, select: bool = False) -> None:  # noqa: FBT001, FBT002 - Textual's signature
        """Move right; at the end, take the first completion."""
        at_end = self.cursor_at_end and self.selection.is_empty
        if select or not at_end or not self._line.complete():
            super().action_cursor_right(select)

    def action_recall(self, step: int) -> None:
        """Show an earlier or a later filter."""
        self._line.recall(step)


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
        kind: what is filtered.
        filtered: returns how it is filtered now.
        values: returns the values that a field has in the rows that are loaded.
        history: the filters from before, the newest last; changed here.
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

    def __init__(
        self,
        kind: FilterKind,
        filtered: Callable[[], Filtered],
        values: Callable[[str], Iterable[str]],
        history: list[str],
        on_close: Callable[[], None],
    ) -> None:
        super().__init__(id="filter")
        self._kind = kind
        self._filtered = filtered
        self._values = values
        self._known_values: dict[str, list[str]] = {}
        self._history = history
        self._recalled: list[str] = []
        """What the arrows go through while the text box is open; the last is what was typed."""
        self._recalled_at = 0
        self._on_close = on_close
        self._fault: FilterError | None = None
        self._refused = False
        """Whether Enter was pressed on what is typed, and it can't be understood."""
        self._before = ""

    def compose(self) -> ComposeResult:
        """Show the filter, the text box, and the line that says what is wrong or what passes."""
        yield _Line(self._state_pieces, id="filter-state")
        yield _FilterInput(self, self._kind.example)
        yield _Line(self._fault_pieces, id="filter-fault")

    @property
    def editing(self) -> bool:
        """Whether the text box is open."""
        return self.has_class("-editing")

    @property
    def box(self) -> Input:
        """The text box."""
        return self.query_one(Input)

    def on_click(self) -> None:
        """Edit the filter."""
        if not self.editing:
            self.edit()

    def edit(self, *, recall: bool = True) -> None:
        """Open the text box on the filter, or on the last one, all selected: typing replaces it."""
        if self.editing:
            return
        self._before = self._filtered().text
        self._recalled = [*self._history, ""]
        self._recalled_at = len(self._history)
        self._known_values.clear()
        self.add_class("-editing")
        box = self.box
        last = next(reversed(self._history), "") if recall else ""
        box.value = self._before or last
        # At once: `box.focus()` would let a key that is typed right now reach the list.
        self.screen.set_focus(box, scroll_visible=False)
        box.cursor_position = len(box.value)
        self.redraw()

    def show_fault(self, error: FilterError | None) -> None:
        """Show that the filter is invalid (the last valid one stays on), or that it is valid."""
        self._fault = error
        self._refused = False
        self.redraw()

    def redraw(self) -> None:
        """Draw what changed."""
        fault = self.query_one("#filter-fault", _Line)
        fault.styles.height = len(self._fault_pieces(self.size.width))
        for bar in self.query(_Line):
            bar.redraw()

    # What is typed.

    def completions(self, text: str) -> list[Completion]:
        """Return how what is typed may go on."""
        return completions(text, self._kind.fields, self._values_of)

    def _values_of(self, name: str) -> list[str]:
        if name not in self._known_values:
            self._known_values[name] = list(self._values(name))
        return self._known_values[name]

    def complete(self) -> bool:
        """Take the first completion of what is typed, if there is one and the cursor is at the end."""
        box = self.box
        found = self.completions(box.value) if box.cursor_at_end else []
        if found:
            self._write(found[0].text)
        return bool(found)

    def add_field(self, name: str) -> None:
        """Write the name of a field behind what is typed, in place of a word that is not finished."""
        text, box = self.box.value, self.box
        start = text if not text or text.endswith(" ") else f"{text} "
        named = [found.text for found in self.completions(text) if found.shown == name]
        self._write(next(iter(named), f"{start}{name}"))
        self.screen.set_focus(box, scroll_visible=False)

    def recall(self, step: int) -> None:
        """Show an earlier (-1) or a later (1) filter; what was typed comes after the last."""
        known, at, typed = self._recalled, self._recalled_at, self.box.value
        if at == len(known) - 1:
            known[at] = typed
        at += step
        while 0 <= at < len(known) and known[at] == typed:
            at += step
        if 0 <= at < len(known):
            self._recalled_at = at
            self._write(known[at])

    def _write(self, text: str) -> None:
        self.box.value = text
        self.box.cursor_position = len(text)

    def submit(self) -> None:
        """Keep what is typed, if it can be understood."""
        text = self.box.value.strip()
        try:
            parse_filter(text, self._kind.fields)
        except FilterError as error:
            self.show_fault(error)
            self._refused = True
            self.redraw()
        else:
            self.remember(text)
            self._close(text)

    def remember(self, text: str) -> None:
        """Keep a filter for the arrows, unless it may hold a key."""
        if not text or may_hold_key(text):
            return
        self._history[:] = [*(known for known in self._history if known != text), text][-MAX_REMEMBERED:]

    def cancel(self) -> None:
        """Go back to the filter that was on before."""
        self._close(self._before)

    def _close(self, text: str) -> None:
        self._fault = None
        self.remove_class("-editing")
        self._on_close()
        self.post_message(self.Closed(text))

    # Drawing.

    def _state_pieces(self, width: int) -> list[list[Piece]]:
        now = self._filtered()
        dim, text, key = (style(self.app, role) for role in (Role.DIM, Role.TEXT, Role.KEY))
        right: list[Piece] = [(f" {now.count} ", text if now.text else dim)]
        right += [now.tail] if now.tail is not None else []
        shown, look = "filter", dim
        if now.text:
            shown = printable_text(now.text) + ("" if now.is_on else "  (off; f)")
            look = text if now.is_on else dim
        return [[(" / ", key), (fit(shown, max(0, width - width_of(right) - 3)), look), *right]]

    def _fault_pieces(self, width: int) -> list[list[Piece]]:
        """Return how many rows match and how it may go on, or what is wrong, in the lines that it needs."""
        key, dim = style(self.app, Role.KEY), style(self.app, Role.DIM)
        found = self.completions(self.box.value) if self.editing else []
        if self._fault is not None and not (found and self._is_unfinished(self._fault)):
            return self._pointer(self._fault, width)
        words = f"{self._filtered().matches} · " if self._fault is None else ""
        if found:
            first, *others = [printable_text(completion.shown) for completion in found]
            rest = "".join(f" · {other}" for other in others)
            left = max(0, width - cell_len(words) - 4 - cell_len(first))
            return [[(words, dim), ("Tab ", key), (first, key), (fit(rest, left), dim)]]
        return [[(fit(f"{words}Enter keeps it · Esc goes back · ↑ earlier · F1 fields", width), dim)]]

    def _is_unfinished(self, fault: FilterError) -> bool:
        """Return whether the fault is at the end of what is typed, which is going to go on."""
        return not self._refused and fault.position + fault.length >= len(self.box.value)

    def _pointer(self, fault: FilterError, width: int) -> list[list[Piece]]:
        bad, words = style(self.app, Role.BAD), printable_text(str(fault))
        # The box shows what is typed from its own scroll on, and some characters take two cells.
        at = cell_len(self.box.value[: fault.position]) - self.box.scroll_offset.x
        pad = " " * max(0, min(at, width - 1))
        mark = f"{pad}{'^' * max(1, min(20, fault.length, width - len(pad)))}"
        if len(mark) + 1 + len(words) <= width:
            return [[(f"{mark} {words}", bad)]]
        return [[(mark, bad)], *([(f" {line}", bad)] for line in wrap(words, max(_MIN_WORDS, width - 2)))]
