"""Every key, for the screen that is on and for all of them."""

from __future__ import annotations

from collections.abc import Iterable

from rich.text import Text
from textual.binding import Binding
from textual.containers import VerticalScroll
from textual.widget import Widget
from textual.widgets import Button, Static

from tui.key_names import key_name
from tui.screens.dialog import Dialog
from tui.screens.pane import Pane
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
    """A dialog that only tells."""

    DEFAULT_CSS = """
    HelpScreen #help { height: auto; max-height: 70vh; }
    HelpScreen #help Static { height: auto; }
    """
    AUTO_FOCUS = "#help"

    def __init__(self, pane: Pane) -> None:
        super().__init__("Keys")
        self._pane = pane

    def body(self) -> Iterable[Widget]:
        """A list by groups."""
        yield VerticalScroll(Static(self._text(), markup=False), id="help", can_focus=True)

    def buttons(self) -> Iterable[Button]:
        """Only back."""
        yield Button("Close", id="no", compact=True)

    def _text(self) -> Text:
        from tui.screens.main import MainScreen  # noqa: PLC0415 - main loads this module

        text = Text()
        self._group(text, "Move", _MOVE)
        self._group(text, "This screen", _described(type(self._pane).BINDINGS))
        self._group(text, "Everywhere", [*_described(MainScreen.BINDINGS), ("Ctrl-P", "Commands")])
        text.append(_BARS, style(self.app, Role.DIM))
        return text

    def _group(self, text: Text, name: str, keys: Iterable[tuple[str, str]]) -> None:
        keys = list(keys)
        if not keys:
            return
        text.append(f"{name}\n", style(self.app, Role.TITLE))
        for key, what in keys:
            text.append(f"  {key:<11}", style(self.app, Role.KEY))
            text.append(f"{what}\n", style(self.app, Role.TEXT))
        text.append("\n")


def _described(bindings: Iterable[object]) -> list[tuple[str, str]]:
    return [
        (key_name(binding.key), binding.description) for binding in bindings if isinstance(binding, Binding)
    ]
