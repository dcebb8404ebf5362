"""The help: every key of every screen, and what the signs mean; typing narrows it down."""

from __future__ import annotations

from collections.abc import Iterable
from textwrap import wrap
from typing import TYPE_CHECKING, ClassVar, cast

from rich.text import Text
from textual import on
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.dom import DOMNode
from textual.widget import Widget
from textual.widgets import Input, Static

from tui.legend import LEGEND
from tui.palette import actions_of
from tui.screens.dialogs import Dialog
from tui.screens.main import MainScreen, pane_class
from tui.theme import Role, style
from tui.widgets.bars import TABS

if TYPE_CHECKING:
    from tui.app import RelaydApp

Lines = list[tuple[str, str]]
_MOVE: Lines = [
    ("↑ ↓ j k", "one row"),
    ("PgUp PgDn", "one screen"),
    ("g G Home End", "first, last"),
    ("Tab", "next part of the screen"),
    ("mouse", "click, double-click, wheel; drag the scrollbar; tabs, footer; a column's title sorts"),
]
_ALWAYS: Lines = [
    (": Ctrl-P", "Commands"),
    ("Esc q", "Back"),
    ("Ctrl-Z", "Suspend; fg comes back"),
    ("Ctrl-L", "Draw the screen anew"),
    ("Ctrl-Q", "Quit"),
]
_KEY_CELLS = 16
_INDENT = 2


class _Wanted(Input):
    """The field; the keys that move scroll the text below it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "screen.scroll(-1)", "Up", show=False),
        Binding("down", "screen.scroll(1)", "Down", show=False),
        Binding("pageup", "screen.page(-1)", "Page up", show=False),
        Binding("pagedown", "screen.page(1)", "Page down", show=False),
    ]


class HelpScreen(Dialog[None]):
    """A dialog with all keys and the legend, and a field that filters them.

    Args:
        shown: the name of the screen that is on; its keys come first.
    """

    DEFAULT_CSS = """
    HelpScreen #help { height: 66vh; }
    HelpScreen #help Static { height: auto; }
    """
    AUTO_FOCUS = "#wanted"

    def __init__(self, shown: str) -> None:
        super().__init__("Help", no="Close")
        self._shown = shown

    def body(self) -> Iterable[Widget]:
        """Show a field, and all groups."""
        yield _Wanted(placeholder="type to find: a key, an action, a word, legend", id="wanted", compact=True)
        with VerticalScroll(id="help", can_focus=False):
            yield Static(id="help-text", markup=False)

    def on_mount(self) -> None:
        """Show everything."""
        self._find("")

    @on(Input.Changed)
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        self._find(event.value)

    def _find(self, wanted: str) -> None:
        """Show the lines that have all these words, each under the name of its group."""
        words = wanted.casefold().split()
        text = Text()
        for name, lines in self._groups():
            found = [line for line in lines if all(w in f"{name} {' '.join(line)}".casefold() for w in words)]
            self._add_group(text, name, found)
        if not text:
            text.append("Nothing here has these words.", style(self.app, Role.DIM))
        self.query_one("#help-text", Static).update(text)
        self.query_one("#help").scroll_home(animate=False)

    def _groups(self) -> Iterable[tuple[str, Lines]]:
        """Yield keys by screen, that of the shown one first, then the legend."""
        tabs = sorted(TABS, key=lambda tab: tab.name != self._shown)
        yield f"{tabs[0].title} (this screen)", self._keys(pane_class(tabs[0].name))
        yield "Everywhere", [*self._keys(MainScreen), *_ALWAYS]
        yield "Moving", _MOVE
        for tab in tabs[1:]:
            yield tab.title, self._keys(pane_class(tab.name))
        for name, entries in LEGEND.items():
            yield name, list(entries.items())

    def _keys(self, kind: type[DOMNode]) -> Lines:
        app = cast("RelaydApp", self.app)
        return [(" ".join(keys), binding.description) for keys, binding in actions_of(app, kind)]

    def _add_group(self, text: Text, name: str, lines: Lines) -> None:
        if not lines:
            return
        gap = "\n" if text else ""
        text.append(f"{gap}{name}\n", style(self.app, Role.STRONG))
        room = max(20, self.query_one("#help").size.width - _KEY_CELLS - _INDENT - 3)
        for key, description in lines:
            first, *more = wrap(description, room) or [""]
            text.append(f"{' ' * _INDENT}{key:<{_KEY_CELLS}} ", style(self.app, Role.KEY))
            text.append(f"{first}\n", style(self.app, Role.TEXT))
            for line in more:
                text.append(f"{' ' * (_INDENT + _KEY_CELLS + 1)}{line}\n", style(self.app, Role.TEXT))

    def on_resize(self) -> None:
        """Break the lines anew."""
        self._find(self.query_one("#wanted", Input).value)

    def action_scroll(self, lines: int) -> None:
        """Scroll by lines."""
        self.query_one("#help").scroll_relative(y=lines, animate=False)

    def action_page(self, pages: int) -> None:
        """Scroll by what is in sight."""
        shown = self.query_one("#help")
        shown.scroll_relative(y=pages * max(1, shown.size.height - 1), animate=False)
