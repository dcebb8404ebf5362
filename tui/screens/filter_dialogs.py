"""The dialogs of a filter: which fields there are, and filters by name."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.widget import Widget
from textual.widgets import Input

from tui.model.filter_kinds import FilterKind, NamedFilter, looks_like_key, may_hold_key
from tui.model.text import printable_text
from tui.screens.dialogs import Dialog, paragraph
from tui.theme import Role
from tui.widgets.line_list import Field, ItemList

_OTHER_LINES = 14
_MIN_ROWS = 3
_NAME_CELLS = 24
_MAX_NAME = 40


class _Picks(ItemList[NamedFilter]):
    """Lines with a name and a few words; Enter acts on one at once, before the next key, and closes."""

    def __init__(self, titles: tuple[str, str], take: Callable[[NamedFilter], object]) -> None:
        super().__init__(lambda pick: pick.name, id="picks")
        self._titles = titles
        self._take = take

    def on_mount(self) -> None:
        """Be as high as is needed, if there is room."""
        room = self.app.size.height - _OTHER_LINES
        self.styles.height = max(_MIN_ROWS, min(room, len(self.items))) + 1

    def fields(self, width: int) -> list[Field]:
        """Return both columns."""
        name = min(_NAME_CELLS, max(8, width // 3))
        return [Field(self._titles[0], name), Field(self._titles[1], max(0, width - name - 3))]

    def cells(self, item: NamedFilter) -> dict[str, tuple[str, Role]]:
        """Return one line."""
        return {self._titles[0]: (item.name, Role.STRONG), self._titles[1]: (item.text, Role.TEXT)}

    def action_choose(self) -> None:
        """Take the line under the cursor."""
        if self.chosen is not None and isinstance(self.screen, Dialog):
            self._take(self.chosen)
            self.screen.action_leave()


class ChooseField(Dialog[None]):
    """The fields that a filter may name, with what they are.

    Args:
        kind: what is filtered.
        take: called with the name of the chosen field.
    """

    AUTO_FOCUS = "#picks"

    def __init__(self, kind: FilterKind, take: Callable[[str], None]) -> None:
        super().__init__(f"What a filter of {kind.many} may name")
        self._kind = kind
        self._take = take

    def body(self) -> Iterable[Widget]:
        """Show the operators and the fields."""
        yield paragraph(
            "= != > >= < <=, ~ contains, !~ does not. A space: both; or: either. Quote what has spaces: "
            'client="night batch". Enter writes a field into the filter.',
            note=True,
        )
        picks = _Picks(("field", "what it is"), lambda pick: self._take(pick.name))
        picks.items = [NamedFilter(name, meaning) for name, meaning in self._kind.meanings.items()]
        yield picks


class ChooseFilter(Dialog[str]):
    """Filters by name.

    Args:
        kind: what is filtered.
        filters: those to choose from.
        saved: the saved ones among them, by name; changed here.
        take: called with the text of the chosen one.
        on: the filter that is on; empty if there is none.
    """

    AUTO_FOCUS = "#picks"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("delete", "forget", "Forget", show=False)]

    def __init__(
        self,
        kind: FilterKind,
        filters: Callable[[], Sequence[NamedFilter]],
        saved: dict[str, str],
        on: str,
        take: Callable[[str], None],
    ) -> None:
        super().__init__(f"Filters of {kind.many}")
        self._filters = filters
        self._saved = saved
        self._on = on
        self._take = take

    def body(self) -> Iterable[Widget]:
        """Show the filters, and a field for the name of the one that is on."""
        picks = _Picks(("name", "filter"), lambda pick: self._take(pick.text))
        picks.items = self._filters()
        yield picks
        if not self._on:
            yield paragraph("A filter that is on can be saved here.", note=True)
        elif may_hold_key(self._on):
            yield paragraph("What is on now may hold a key: it can't be saved.", note=True)
        else:
            yield paragraph(f"On now: {printable_text(self._on)}", note=True)
            hint = "Tab, a name, Enter: saves the filter that is on"
            yield Input(placeholder=hint, id="name", max_length=_MAX_NAME, compact=True)
        yield paragraph("Enter filters. Del forgets one that you saved.", id="fault", note=True)

    def accept(self) -> None:
        """Save the filter that is on under the name that was typed."""
        name = printable_text(self.query_one("#name", Input).value.strip())
        if not name:
            self.explain("Give it a name.")
            return
        if looks_like_key(name):
            self.explain("This looks like a key. Give it another name.")
            return
        self._saved[name] = self._on
        self.dismiss(name)

    def action_forget(self) -> None:
        """Forget the filter under the cursor, if it was saved here."""
        picks = self.query_one(_Picks)
        if picks.chosen is None or picks.chosen.name not in self._saved:
            self.explain("It comes with the app, and stays.")
            return
        del self._saved[picks.chosen.name]
        picks.show(self._filters())
