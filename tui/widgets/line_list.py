"""A list drawn line by line: only what is on the screen is ever rendered.

It holds no rows. A subclass says how many there are, which key each has and how one looks. The place
in the list is kept as keys, so rows that come or go above never move what the operator reads.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from tui.theme import Role, style
from tui.widgets.cells import Piece, ground, line, own_lines
from tui.widgets.list_parts import Extent, ListMessage, empty_lines, scrollbar

Key = int | str
_WHEEL_ROWS = 3


class LineList(Widget, can_focus=True):
    """Base of every list: cursor, scrolling, mouse, a scrollbar with marks."""

    ALLOW_SELECT = False
    DEFAULT_CSS = "LineList { height: 1fr; width: 1fr; }"

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup,ctrl+b", "page(-1)", "Page up", show=False),
        Binding("pagedown,ctrl+f", "page(1)", "Page down", show=False),
        Binding("home,g", "first", "First", show=False),
        Binding("end,G", "last", "Last", show=False),
        Binding("enter", "choose", "Open", show=False),
    ]

    @dataclass
    class Chosen(ListMessage):
        """Enter or a double click on a row."""

        key: Key

    @dataclass
    class Moved(ListMessage):
        """The cursor stands on another row."""

        key: Key | None

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - Textual's own name for it
        super().__init__(id=id)
        self.top = 0
        self.cursor = 0
        self._cursor_key: Key | None = None
        self._top_key: Key | None = None
        self._drawn: list[Strip] = []
        self._dragging = False

    # What a subclass says.

    def row_count(self) -> int:
        """How many rows there are."""
        raise NotImplementedError

    def row_key(self, index: int) -> Key:
        """What identifies the row for as long as it exists."""
        raise NotImplementedError

    def row_place(self, key: Key) -> int | None:
        """Where the row with this key is now, or the nearest place; None when unknown."""
        for index in range(self.row_count()):
            if self.row_key(index) == key:
                return index
        return None

    def row_pieces(self, index: int, width: int, *, selected: bool) -> Iterable[Piece]:
        """One row."""
        raise NotImplementedError

    def head_pieces(self, width: int) -> Iterable[Piece] | None:  # noqa: ARG002 - for subclasses
        """The line of column names; None for no such line."""
        return None

    def empty_text(self) -> tuple[str, ...]:
        """What stands there when there are no rows: sentences, one a line."""
        return ("Nothing here.",)

    def bar_role(self, start: int, end: int) -> Role | None:  # noqa: ARG002 - for subclasses
        """The role of a mark in the scrollbar for these rows; None for none."""
        return None

    # Place.

    @property
    def body_height(self) -> int:
        """How many rows fit."""
        return max(0, self.size.height - (self.head_pieces(self.size.width) is not None))

    @property
    def cursor_key(self) -> Key | None:
        """The key of the row under the cursor."""
        return self._cursor_key

    def rows_changed(self) -> None:
        """The rows are not what they were: find the place again, and draw what differs."""
        self._find_place(self.row_count())
        self._settle(self.row_count())
        self.redraw()

    def _find_place(self, count: int) -> None:
        """Indices from keys: rows may have come or gone at any time since they were last looked at."""
        if self._top_key is not None:
            place = self.row_place(self._top_key)
            self.top = self.top if place is None else place
        if self._cursor_key is not None:
            place = self.row_place(self._cursor_key)
            self.cursor = self.cursor if place is None else place
        self._clamp(count)

    def _clamp(self, count: int) -> None:
        self.cursor = max(0, min(self.cursor, count - 1))
        self.top = max(0, min(self.top, count - max(1, self.body_height)))

    def _settle(self, count: int) -> None:
        self._clamp(count)
        before = self._cursor_key
        self._cursor_key = self.row_key(self.cursor) if count else None
        self._top_key = self.row_key(self.top) if count else None
        if before != self._cursor_key:
            self.post_message(self.Moved(self, self._cursor_key))

    def go_to(self, index: int) -> None:
        """Put the cursor on a row and bring it into sight."""
        count = self.row_count()
        self._find_place(count)
        self.cursor = max(0, min(index, count - 1))
        height = max(1, self.body_height)
        self.top = max(min(self.top, self.cursor), self.cursor - height + 1)
        self._settle(count)
        self.redraw()

    def scroll_rows(self, rows: int) -> None:
        """Scroll, and take the cursor along when it would leave the sight."""
        count = self.row_count()
        self._find_place(count)
        height = max(1, self.body_height)
        self.top = max(0, min(self.top + rows, count - height))
        self.cursor = max(self.top, min(self.cursor, self.top + height - 1))
        self._settle(count)
        self.redraw()

    # Drawing.

    def redraw(self) -> None:
        """Draw again the lines that differ from what is on the screen."""
        width, height = self.size
        if not width or not height or len(self._drawn) != height:
            self.refresh()
            return
        fresh = self._all_lines(width, height)
        changed = [y for y in range(height) if fresh[y] != self._drawn[y]]
        self._drawn = fresh
        if changed:
            self.refresh(*(Region(0, y, width, 1) for y in changed))

    def _all_lines(self, width: int, height: int) -> list[Strip]:
        rest = ground(self)
        head = self.head_pieces(width)
        lines: list[Strip] = []
        if head is not None:
            lines.append(line(head, width, rest))
        count = self.row_count()
        if not count:
            lines += empty_lines(
                self.empty_text(), (width, height - len(lines)), style(self.app, Role.DIM), rest
            )
            return lines
        self._find_place(count)
        rows = height - len(lines)
        bar = scrollbar(
            Extent(count, rows, self.top), self.bar_role, lambda role: style(self.app, role), rest
        )
        cursor_style = style(self.app, Role.CURSOR)
        for y in range(rows):
            index = self.top + y
            if index >= count:
                lines.append(Strip.blank(width, rest))
                continue
            selected = index == self.cursor
            pieces = self.row_pieces(index, width - 1, selected=selected)
            over = cursor_style if selected and self.cursor_shown else None
            lines.append(Strip.join([line(pieces, width - 1, rest, over), bar[y]]))
        return lines

    @property
    def cursor_shown(self) -> bool:
        """Whether the row under the cursor is set off."""
        return True

    def render_lines(self, crop: Region) -> list[Strip]:
        """Textual: these lines, cut to a region."""
        return own_lines(self, crop)

    def render_line(self, y: int) -> Strip:
        """One line of the widget, from the lines drawn last."""
        width, height = self.size
        if len(self._drawn) != height or (self._drawn and self._drawn[0].cell_length != width):
            self._drawn = self._all_lines(width, height)
        return self._drawn[y] if y < len(self._drawn) else Strip.blank(width)

    def forget_drawn(self) -> None:
        """Draw everything anew: the theme, the focus or the size changed."""
        self._drawn = []
        self.refresh()

    def notify_style_update(self) -> None:
        """Textual: the theme changed."""
        super().notify_style_update()
        self._drawn = []

    # Keys and mouse.

    def action_move(self, rows: int) -> None:
        """Cursor up or down."""
        self._find_place(self.row_count())
        self.go_to(self.cursor + rows)

    def action_page(self, pages: int) -> None:
        """A screenful up or down."""
        self._find_place(self.row_count())
        self.go_to(self.cursor + pages * max(1, self.body_height - 1))

    def action_first(self) -> None:
        """To the top."""
        self.go_to(0)

    def action_last(self) -> None:
        """To the end."""
        self.go_to(self.row_count() - 1)

    def action_choose(self) -> None:
        """Open the row under the cursor."""
        if self._cursor_key is not None and self.row_count():
            self.post_message(self.Chosen(self, self._cursor_key))

    def on_resize(self) -> None:
        """Keep the cursor in sight at the new height."""
        self._drawn = []
        if self.row_count():
            self.go_to(self.cursor)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """The wheel."""
        event.stop()
        self.scroll_rows(_WHEEL_ROWS)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """The wheel."""
        event.stop()
        self.scroll_rows(-_WHEEL_ROWS)

    def on_mouse_down(self, event: events.MouseDown) -> None:
        """On the scrollbar: jump, and drag from there."""
        if event.x == self.size.width - 1 and self.row_count() > self.body_height:
            self._dragging = True
            self.capture_mouse()
            self._drag(event.y)

    def on_mouse_move(self, event: events.MouseMove) -> None:
        """Drag the scrollbar."""
        if self._dragging:
            self._drag(event.y)

    def on_mouse_up(self) -> None:
        """Let go of the scrollbar."""
        if self._dragging:
            self._dragging = False
            self.release_mouse()

    def _drag(self, y: int) -> None:
        rows = self.body_height
        at = (y - (self.size.height - rows)) / max(1, rows - 1)
        self.scroll_rows(round(at * (self.row_count() - rows)) - self.top)

    def on_click(self, event: events.Click) -> None:
        """Put the cursor there; a second click opens."""
        if event.x == self.size.width - 1:
            return
        index = self.top + event.y - (self.size.height - self.body_height)
        if event.y >= self.size.height - self.body_height and index < self.row_count():
            again = index == self.cursor
            self.go_to(index)
            if event.chain > 1 and again:
                self.action_choose()
