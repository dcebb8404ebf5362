"""A list drawn line by line: only what is on the screen is ever rendered.

It holds no rows. A subclass says how many there are, which key each has and how one looks. The place
in the list is kept as keys, so rows that come or go above never move what the operator reads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.strip import Strip

from relayd.admin.schema import Filter
from tui.keymap import with_ids
from tui.model.sorting import Sorting, Value, in_order, natural
from tui.theme import Role, style
from tui.widgets.cells import Drawn, Piece, fit, ground, line, width_of

Key = int | str
T = TypeVar("T")
_WHEEL_ROWS = 3
FILTERED_OUT = ("Nothing passes this filter.", "Esc shows everything again · / changes it")


@dataclass(frozen=True, slots=True)
class Field:
    """One column of a list."""

    title: str
    width: int
    right: bool = False

    def fit(self, text: str) -> str:
        """Return the text in the width of the column."""
        return fit(text, self.width, right=self.right)


@dataclass
class ListMessage(Message):
    """The messages of a list to its parents."""

    list: LineList

    @property
    def control(self) -> LineList:
        """The list, for `@on` with a selector."""
        return self.list


class LineList(Drawn, can_focus=True):
    """Base of every list: cursor, scrolling, mouse, a scrollbar with marks."""

    DEFAULT_CSS = "LineList { height: 1fr; width: 1fr; }"

    BINDINGS: ClassVar[list[BindingType]] = with_ids(
        "list",
        [
            Binding("up,k", "move(-1)", "Up", show=False),
            Binding("down,j", "move(1)", "Down", show=False),
            Binding("pageup,ctrl+b", "page(-1)", "Page up", show=False),
            Binding("pagedown,ctrl+f", "page(1)", "Page down", show=False),
            Binding("home,g", "first", "First", show=False),
            Binding("end,G", "last", "Last", show=False),
            Binding("enter", "choose", "Open", show=False),
        ],
    )

    @dataclass
    class Chosen(ListMessage):
        """Enter or a double click on a row."""

        key: Key

    @dataclass
    class Moved(ListMessage):
        """The cursor stands on another row."""

        key: Key | None

    @dataclass
    class Sorted(ListMessage):
        """The rows stand in another order."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - Textual's own name for it
        super().__init__(id=id)
        self.top = 0
        self.cursor = 0
        self._cursor_key: Key | None = None
        self._top_key: Key | None = None
        self._dragging = False

    # What a subclass says.

    def row_count(self) -> int:
        """Return how many rows there are."""
        raise NotImplementedError

    def row_key(self, index: int) -> Key:
        """Return what identifies the row for as long as it exists."""
        raise NotImplementedError

    def index_of(self, key: Key) -> int | None:
        """Return where the row with this key is now, or the nearest place; None if unknown."""
        for index in range(self.row_count()):
            if self.row_key(index) == key:
                return index
        return None

    def row_pieces(self, index: int, width: int, *, selected: bool) -> Iterable[Piece]:
        """Return one row."""
        raise NotImplementedError

    def fields(self, width: int) -> Sequence[Field]:  # noqa: ARG002 - for subclasses
        """Return the columns, which stand one cell apart; the last may reach over the scrollbar."""
        return ()

    def empty_text(self) -> tuple[str, ...]:
        """Return what is shown if there are no rows: sentences, one per line."""
        return ("Nothing here.",)

    def bar_role(self, start: int, end: int) -> Role | None:  # noqa: ARG002 - for subclasses
        """Return the role of a mark in the scrollbar for these rows, or None."""
        return None

    # Order.

    @property
    def sorting(self) -> Sorting | None:
        """How the operator sorted the rows; None: they stand in the list's own order."""
        return None

    def sortable(self) -> Sequence[str]:
        """Return the titles of the columns to sort by, in the order in which `s` goes through them."""
        return ()

    def natural_sorting(self, column: str) -> Sorting:
        """Return how a column is sorted at first."""
        raise NotImplementedError

    def sort(self, sorting: Sorting | None) -> None:
        """Sort the rows, or go back to the list's own order."""
        raise NotImplementedError

    def _sort(self, sorting: Sorting | None) -> None:
        self.sort(sorting)
        self.post_message(self.Sorted(self))

    def sort_by(self, column: str) -> None:
        """Sort by a column; again: the other way, and a third time: the list's own order."""
        now, first = self.sorting, self.natural_sorting(column)
        if now is None or now.column != column:
            self._sort(first)
        else:
            self._sort(first.reversed if now == first else None)

    def action_sort(self) -> None:
        """Sort by the next column in sight; after the last comes the list's own order."""
        shown = {field.title for field in self.fields(self.size.width)}
        columns = [column for column in self.sortable() if column in shown]
        now = self.sorting.column if self.sorting is not None else None
        rest = columns[columns.index(now) + 1 :] if now in columns else columns
        self._sort(self.natural_sorting(rest[0]) if rest else None)

    def action_reverse(self) -> None:
        """Sort the other way; where nothing is sorted yet, by the first column."""
        if self.sorting is None:
            self.action_sort()
        else:
            self._sort(self.sorting.reversed)

    # Place.

    @property
    def body_height(self) -> int:
        """How many rows fit."""
        return max(0, self.size.height - bool(self.fields(self.size.width)))

    @property
    def cursor_key(self) -> Key | None:
        """The key of the row under the cursor."""
        return self._cursor_key

    def rows_changed(self) -> None:
        """Take over other rows: find the place again, and draw what differs."""
        self.restore_place(self.row_count())
        self._keep_place(self.row_count())
        self.redraw()

    def restore_place(self, count: int) -> None:
        """Find cursor and top by their keys: rows may have come or gone since they were last drawn."""
        if self._top_key is not None:
            place = self.index_of(self._top_key)
            self.top = self.top if place is None else place
        if self._cursor_key is not None:
            place = self.index_of(self._cursor_key)
            self.cursor = self.cursor if place is None else place
        self._clamp(count)

    def _clamp(self, count: int) -> None:
        self.cursor = max(0, min(self.cursor, count - 1))
        self.top = max(0, min(self.top, count - max(1, self.body_height)))

    def _keep_place(self, count: int) -> None:
        self._clamp(count)
        before = self._cursor_key
        self._cursor_key = self.row_key(self.cursor) if count else None
        self._top_key = self.row_key(self.top) if count else None
        if before != self._cursor_key:
            self.post_message(self.Moved(self, self._cursor_key))

    def go_to(self, index: int) -> None:
        """Put the cursor on a row and bring it into sight."""
        count = self.row_count()
        self.restore_place(count)
        self.cursor = max(0, min(index, count - 1))
        height = max(1, self.body_height)
        self.top = max(min(self.top, self.cursor), self.cursor - height + 1)
        self._keep_place(count)
        self.redraw()

    def scroll_rows(self, rows: int) -> None:
        """Scroll, and keep the cursor in sight."""
        count = self.row_count()
        self.restore_place(count)
        height = max(1, self.body_height)
        self.top = max(0, min(self.top + rows, count - height))
        self.cursor = max(self.top, min(self.cursor, self.top + height - 1))
        self._keep_place(count)
        self.redraw()

    # Drawing.

    def all_lines(self, width: int, height: int) -> list[Strip]:
        """Return the titles, and the rows in sight with the scrollbar."""
        rest = ground(self)
        fields = self.fields(width)
        lines = [line(self._head_pieces(fields), width, rest)] if fields else []
        count, rows = self.row_count(), height - len(lines)
        if not count:
            return lines + self._empty_lines(width, rows, rest)
        self.restore_place(count)
        bar = self._scrollbar(count, rows, rest)
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

    def _head_pieces(self, fields: Sequence[Field]) -> Iterable[Piece]:
        """Return the titles, one cell in; that of the sorted column has an arrow."""
        dim, strong = style(self.app, Role.DIM), style(self.app, Role.STRONG)
        yield " ", dim
        sorting = self.sorting
        for field in fields:
            title = field.title
            if sorting is None or sorting.column != title:
                yield field.fit(title) + " ", dim
            elif width_of([(title, dim)]) < field.width:
                yield field.fit(sorting.mark + title if field.right else title + sorting.mark) + " ", strong
            else:
                # The arrow takes the cell between the columns.
                yield field.fit(title) + sorting.mark, strong

    def _empty_lines(self, width: int, height: int, rest: Style) -> list[Strip]:
        """Return the sentences in the upper middle of the space."""
        texts, dim = self.empty_text(), style(self.app, Role.DIM)
        lines = [Strip.blank(width, rest)] * max(0, (height - len(texts)) // 3)
        lines += [line([(text.center(width), dim)], width, rest) for text in texts]
        lines += [Strip.blank(width, rest)] * max(0, height - len(lines))
        return lines[:height]

    def _scrollbar(self, count: int, rows: int, rest: Style) -> list[Strip]:
        """Return one cell for each line: where the rows in sight are, and marks for what is worth finding."""
        if count <= rows or not rows:
            return [line([], 1, rest)] * rows
        size = max(1, rows * rows // count)
        start = round(self.top * (rows - size) / (count - rows))
        strips = []
        for y in range(rows):
            inside = start <= y < start + size
            first = y * count // rows
            role = self.bar_role(first, max(first + 1, (y + 1) * count // rows))
            glyph = ("┃" if inside else "│") if role is None else ("╋" if inside else "┿")
            look = style(self.app, role or (Role.ACCENT if inside else Role.DIM))
            strips.append(line([(glyph, look)], 1, rest))
        return strips

    @property
    def cursor_shown(self) -> bool:
        """Whether the row under the cursor is highlighted."""
        return True

    # Keys and mouse.

    def action_move(self, rows: int) -> None:
        """Move the cursor up or down."""
        self.restore_place(self.row_count())
        self.go_to(self.cursor + rows)

    def action_page(self, pages: int) -> None:
        """Move a screenful up or down."""
        self.restore_place(self.row_count())
        self.go_to(self.cursor + pages * max(1, self.body_height - 1))

    def action_first(self) -> None:
        """Go to the top."""
        self.go_to(0)

    def action_last(self) -> None:
        """Go to the end."""
        self.go_to(self.row_count() - 1)

    def action_choose(self) -> None:
        """Open the row under the cursor; if there is none, say why."""
        if self._cursor_key is not None and self.row_count():
            self.post_message(self.Chosen(self, self._cursor_key))
        else:
            self.app.notify(next(iter(self.empty_text())))

    def on_resize(self) -> None:
        """Keep the cursor in sight at the new height."""
        self._drawn = []
        if self.row_count():
            self.go_to(self.cursor)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        """Scroll with the wheel."""
        event.stop()
        self.scroll_rows(_WHEEL_ROWS)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        """Scroll with the wheel."""
        event.stop()
        self.scroll_rows(-_WHEEL_ROWS)

    def on_mouse_down(self, event: events.MouseDown) -> None:
        """Jump on the scrollbar, and drag from there."""
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
        """Put the cursor there; a second click opens. On a title: sort by its column."""
        if event.x == self.size.width - 1:
            return
        head = self.size.height - self.body_height
        if event.y < head:
            self._click_title(event.x)
            return
        index = self.top + event.y - head
        if index < self.row_count():
            again = index == self.cursor
            self.go_to(index)
            if event.chain > 1 and again:
                self.action_choose()

    def _click_title(self, x: int) -> None:
        """Sort by the column there, if one can sort by it."""
        start = 1
        for field in self.fields(self.size.width):
            if start <= x <= start + field.width:
                if field.title in self.sortable():
                    self.sort_by(field.title)
                return
            start += field.width + 1


class ItemList(LineList, Generic[T]):
    """A list of items that are few enough to be held.

    Args:
        key: returns what identifies an item for as long as it exists.
        cursor_always: set the chosen row off also without the focus.
    """

    def __init__(self, key: Callable[[T], Key], *, id: str, cursor_always: bool = True) -> None:  # noqa: A002 - Textual's own name for it
        super().__init__(id=id)
        self._key = key
        self._cursor_always = cursor_always
        self._sorting: Sorting | None = None
        self.items: Sequence[T] = []
        """Those that are shown, as they are sorted."""
        self.all_items: Sequence[T] = []
        self.filter: Filter | None = None
        self.filtering = True
        """False: the filter is kept, and everything is shown."""
        self.match_count = 0
        """How many of all items pass the filter."""

    def fields(self, width: int) -> list[Field]:
        """Return the columns, which stand one cell apart; the last may reach over the scrollbar."""
        raise NotImplementedError

    def sort_values(self) -> Mapping[str, Value[T]]:
        """Return what an item is sorted by, for each column that can be sorted by, by its title."""
        return {}

    def is_pinned(self, item: T) -> bool:  # noqa: ARG002 - for subclasses
        """Return whether the item stays above the others, however they are sorted."""
        return False

    def cells(self, item: T) -> dict[str, tuple[str, Role]]:
        """Return what the item has in each column, by its title."""
        raise NotImplementedError

    def item_pieces(self, item: T, width: int) -> Iterable[Piece]:
        """Return one item."""
        cells = self.cells(item)
        for field in self.fields(width):
            text, role = cells[field.title]
            yield field.fit(text) + " ", style(self.app, role)

    def show(self, items: Iterable[T]) -> None:
        """Show these items, or those of them that pass the filter."""
        self.all_items = list(items)
        self._pick()

    def set_filter(self, wanted: Filter) -> None:
        """Show what passes; an empty filter shows all items."""
        self.filter = wanted if wanted.alternatives else None
        self.filtering = True
        self._pick()

    def turn_filter(self) -> None:
        """Show all items, or only those again that pass the filter."""
        self.filtering = not self.filtering
        self._pick()

    def _pick(self) -> None:
        items = self.all_items
        matching = items if self.filter is None else list(filter(self.filter.matches, items))
        self.match_count = len(matching)
        if self.filtering:
            items = matching
        sorting = self._sorting
        value = None if sorting is None else self.sort_values().get(sorting.column)
        if sorting is not None and value is not None:
            rest = [item for item in items if not self.is_pinned(item)]
            items = [item for item in items if self.is_pinned(item)]
            items += in_order(rest, value, descending=sorting.descending)
        self.items = items
        self.rows_changed()

    @property
    def sorting(self) -> Sorting | None:
        """How the operator sorted the items."""
        return self._sorting

    def sortable(self) -> Sequence[str]:
        """Return the titles of the columns to sort by."""
        return list(self.sort_values())

    def natural_sorting(self, column: str) -> Sorting:
        """Return how a column is sorted at first."""
        return natural(column, self.all_items, self.sort_values()[column])

    def sort(self, sorting: Sorting | None) -> None:
        """Sort the items, and keep them sorted as they change."""
        self._sorting = sorting
        self._pick()

    def restore_place(self, count: int) -> None:
        """Find the cursor again; of sorted rows, which change places, the top is not followed."""
        if self._sorting is None:
            super().restore_place(count)
            return
        self._top_key = None
        super().restore_place(count)
        self.top = max(min(self.top, self.cursor), self.cursor - max(1, self.body_height) + 1)

    @property
    def chosen(self) -> T | None:
        """The item under the cursor."""
        return next((item for item in self.items if self._key(item) == self.cursor_key), None)

    @property
    def cursor_shown(self) -> bool:
        """Whether the row under the cursor is highlighted."""
        return self._cursor_always or self.has_focus

    def row_count(self) -> int:
        """Count the items."""
        return len(self.items)

    def row_key(self, index: int) -> Key:
        """Return the key of the item at this place."""
        return self._key(self.items[index])

    def row_pieces(self, index: int, width: int, *, selected: bool) -> Iterable[Piece]:
        """Return one item, one cell in."""
        lead = "▶" if selected and self.cursor_shown else " "
        # The titles reach over the scrollbar's column.
        return [(lead, style(self.app, Role.ACCENT)), *self.item_pieces(self.items[index], width + 1)]


def dimmed(cells: Mapping[str, tuple[str, Role]]) -> dict[str, tuple[str, Role]]:
    """Return the cells of an item of which there is no news."""
    return {title: (text, Role.DIM) for title, (text, _) in cells.items()}
