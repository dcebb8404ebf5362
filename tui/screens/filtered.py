"""What the screens with a filter have in common: writing it, turning it off and on, filters by name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, ClassVar

from textual import on
from textual.binding import Binding
from textual.widgets import Input

from relayd.admin.schema import Filter, FilterError, parse_filter
from relayd.printable import plural
from tui.context import Context
from tui.model.filter_kinds import FilterKind, NamedFilter
from tui.screens.dialogs import ask
from tui.screens.pane import Pane
from tui.type_ahead import ASKS, Work
from tui.widgets.filter_line import Filtered, FilterLine
from tui.widgets.line_list import ItemList

FILTER = Binding("slash", "filter", "Filter", key_display="/")
TOGGLE_FILTER = Binding("f", "toggle_filter", "Filter on or off")
NAMED_FILTERS = Binding("F", "named_filters", "Filters by name: choose one, save one")
FILTER_FIELDS = Binding("f1,ctrl+@", "filter_fields", "Fields of the filter", key_display="F1")
_MAX_ROWS_LOOKED_AT = 1000
_MAX_VALUES = 200
_NUMBERS_WITH_NAMES = {"status"}
"""Numbers of which few are used, so that they are worth a list."""


class FilteredPane(Pane):
    """A screen whose list can be filtered. It takes those of the bindings above that it wants."""

    KIND: ClassVar[FilterKind]

    def __init__(self, context: Context, *, id: str) -> None:  # noqa: A002 - Textual's own name for it
        super().__init__(context, id=id)
        settings = context.settings_file.settings
        self._history = settings.filter_history.setdefault(self.KIND.name, [])
        self._saved = settings.saved_filters.setdefault(self.KIND.name, {})

    def filter_line(self) -> FilterLine:
        """Return a new line to write the filter in."""
        return FilterLine(self.KIND, self.filtered, self._values, self._history, self.focus_default)

    @property
    def line(self) -> FilterLine:
        """The filter line."""
        return self.query_one(FilterLine)

    # What a screen tells of its list.

    def filtered(self) -> Filtered:
        """Return how the list is filtered."""
        raise NotImplementedError

    def newest_rows(self) -> Iterator[object]:
        """Yield the rows that are loaded, the newest first, whether they pass or not."""
        raise NotImplementedError

    def chosen_row(self) -> object | None:
        """Return the row under the cursor."""
        raise NotImplementedError

    def show_matches(self, wanted: Filter) -> None:
        """Show what passes."""
        raise NotImplementedError

    def turn_filter(self) -> None:
        """Show everything, or only what passes again; the filter is kept."""
        raise NotImplementedError

    # The text box.

    def action_filter(self) -> None:
        """Open the text box of the filter."""
        self.line.edit()

    @on(Input.Changed, "#filter-input")
    def _filter_typed(self, event: Input.Changed) -> None:
        event.stop()
        if not self.line.editing:
            return
        try:
            parsed = parse_filter(event.value, self.KIND.fields)
        except FilterError as error:
            self.line.show_fault(error)
            return
        self.line.show_fault(None)
        self.show_matches(parsed)

    @on(FilterLine.Closed)
    def _filter_closed(self, event: FilterLine.Closed) -> None:
        event.stop()
        self.apply_filter(event.text)
        self.filter_kept(event.text)
        self.save_settings()

    def filter_kept(self, text: str) -> None:
        """Take note of the filter that is on now."""

    def apply_filter(self, text: str) -> bool:
        """Filter by this, or by nothing if it is empty; return False if it can't be understood."""
        try:
            parsed = parse_filter(text, self.KIND.fields)
        except FilterError as error:
            self.app.notify(f"The filter stays as it was: {error}", severity="error")
            return False
        self.show_matches(parsed)
        return True

    def action_toggle_filter(self) -> None:
        """Show everything, or only what passes; the filter itself is kept."""
        if self.filtered().text:
            self.turn_filter()
        else:
            self.app.notify("There is no filter; / makes one.")

    def _values(self, name: str) -> list[str]:
        """Return the values that a field has in the rows that are loaded, the most frequent first."""
        known = self.KIND.fields[name]
        if not known.is_text and name not in _NUMBERS_WITH_NAMES:
            return []
        counts: Counter[str] = Counter()
        for row in islice(self.newest_rows(), _MAX_ROWS_LOOKED_AT):
            values = known.read(row)[:1] if not known.is_list else known.read(row)
            counts.update(str(value) for value in values if value not in {None, ""})
        return [value for value, _ in counts.most_common(_MAX_VALUES)]

    # The list of fields, and filters by name.

    def action_filter_fields(self) -> None:
        """Show the fields that a filter may name; the chosen one is written into it."""
        asking: Work = self._ask_field
        self.run_worker(asking, group=f"{ASKS}-filter", exclusive=True)

    async def _ask_field(self) -> None:
        from tui.screens.filter_dialogs import ChooseField  # noqa: PLC0415 - loaded when first used

        await ask(self.app, ChooseField(self.KIND, self._write_field))

    def _write_field(self, name: str) -> None:
        self.line.edit(recall=False)
        self.line.add_field(name)

    def named_filters(self) -> list[NamedFilter]:
        """Return the filters by name: the saved ones, those of the app, and those for the chosen row."""
        return self.KIND.filters(self._saved, self.chosen_row())

    def action_named_filters(self) -> None:
        """Choose a filter by its name, or save the one that is on."""
        asking: Work = self._ask_filter
        self.run_worker(asking, group=f"{ASKS}-filter", exclusive=True)

    async def _ask_filter(self) -> None:
        from tui.screens.filter_dialogs import ChooseFilter  # noqa: PLC0415 - loaded when first used

        on = self.filtered().text
        dialog = ChooseFilter(self.KIND, self.named_filters, self._saved, on, self.set_filter)
        name = await ask(self.app, dialog)
        file = self.context.settings_file
        if not name:
            self.save_settings()
        elif problem := file.keep():
            self.app.notify(problem, severity="error")
        else:
            self.app.notify(f"Saved as {name}; F chooses it.")

    def action_use_filter(self, text: str) -> None:
        """Filter by this, which was chosen by its name in the palette."""
        self.set_filter(text)

    def set_filter(self, text: str) -> None:
        """Filter by this, from another list, dialog or screen."""
        if self.apply_filter(text):
            self.line.remember(text)
        self.line.redraw()

    def save_settings(self) -> None:
        """Write what is remembered to its file."""
        if problem := self.context.settings_file.save():
            self.app.notify(problem, severity="error")


class FilteredItems(FilteredPane):
    """A filtered screen with an `ItemList`."""

    @property
    def rows(self) -> ItemList[Any]:
        """The list."""
        raise NotImplementedError

    def filtered(self) -> Filtered:
        """Return how the list is filtered."""
        rows = self.rows
        wanted, matches = rows.filter, rows.match_count
        everything = plural(len(rows.all_items), self.KIND.one, self.KIND.many)
        return Filtered(
            text="" if wanted is None else wanted.text,
            is_on=rows.filtering,
            count=everything if wanted is None else f"{matches:,} of {everything}",
            matches=everything if wanted is None else plural(matches, "match", "matches"),
        )

    def newest_rows(self) -> Iterator[object]:
        """Yield all items, whether they pass or not."""
        return iter(self.rows.all_items)

    def chosen_row(self) -> object | None:
        """Return the item under the cursor."""
        return self.rows.chosen

    def show_matches(self, wanted: Filter) -> None:
        """Show the items that pass."""
        self.rows.set_filter(wanted)
        self.line.redraw()
        self.post_message(self.HintsChanged())

    def turn_filter(self) -> None:
        """Show all items, or those that pass again."""
        self.rows.turn_filter()
        self.line.redraw()

    @property
    def depth(self) -> int:
        """How often Escape would close something."""
        return self.line.editing + (self.rows.filter is not None)

    def way_back(self) -> Callable[[], None]:
        """Return a function that shows this filter and this row again."""
        text, row = "" if self.rows.filter is None else self.rows.filter.text, self.rows.cursor_key
        filtering = self.rows.filtering

        def restore() -> None:
            self.apply_filter(text)
            if not filtering:
                self.turn_filter()
            at = None if row is None else self.rows.index_of(row)
            if at is not None:
                self.rows.go_to(at)

        return restore

    def step_back(self) -> bool:
        """Close the text box, then let go of the filter."""
        if self.line.editing:
            self.line.cancel()
        elif self.rows.filter is not None:
            self.apply_filter("")
        else:
            return False
        return True
