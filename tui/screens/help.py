"""Every key, for the screen that is on and for all of them."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widget import Widget
from textual.widgets import Static

from tui.screens.dialogs import Dialog
from tui.theme import Role, style

_MOVE = (
    ("↑ ↓ j k", "one row"),
    ("PgUp PgDn", "one screen"),
    ("g G", "first, last"),
    ("Space", "freeze, or follow again (Requests)"),
    ("End", "newest, and follow (Requests)"),
    ("Tab", "next part of the screen"),
    ("mouse", "click, double-click, wheel, scrollbar, tabs, footer"),
)
_BARS = "The bar of a request: · connect  ░ first token  ▓ stream  ▒ client reads  ✗ failed  ⊣ client left"


class HelpScreen(Dialog[None]):
    """A dialog that lists keys.

    Args:
        pane: the keys of the screen that is on.
        everywhere: the keys of every screen.
    """

    DEFAULT_CSS = """
    HelpScreen #help { height: auto; max-height: 70vh; }
    HelpScreen #help Static { height: auto; }
    """
    AUTO_FOCUS = "#help"

    def __init__(self, pane: Iterable[BindingType], everywhere: Iterable[BindingType]) -> None:
        super().__init__("Keys", no="Close")
        self._pane = pane
        self._everywhere = everywhere

    def body(self) -> Iterable[Widget]:
        """Show the keys by groups."""
        text = Text()
        self._add_group(text, "Move", _MOVE)
        self._add_group(text, "This screen", key_descriptions(self._pane))
        self._add_group(text, "Everywhere", [*key_descriptions(self._everywhere), ("Ctrl-P", "Commands")])
        text.append(_BARS, style(self.app, Role.DIM))
        yield VerticalScroll(Static(text, markup=False), id="help", can_focus=True)

    def _add_group(self, text: Text, name: str, keys: Iterable[tuple[str, str]]) -> None:
        keys = list(keys)
        if not keys:
            return
        text.append(f"{name}\n", style(self.app, Role.STRONG))
        for key, description in keys:
            text.append(f"  {key:<11}", style(self.app, Role.KEY))
            text.append(f"{description}\n", style(self.app, Role.TEXT))
        text.append("\n")


def key_descriptions(bindings: Iterable[BindingType]) -> list[tuple[str, str]]:
    """Return each key as it is printed on a keyboard, and what it does."""
    return [(b.key_display or b.key, b.description) for b in bindings if isinstance(b, Binding)]
