"""One question with two answers, the harmless one first."""

from __future__ import annotations

from collections.abc import Iterable

from textual import on
from textual.widget import Widget
from textual.widgets import Button

from tui.screens.dialog import Dialog, words


class Confirm(Dialog[bool | None]):
    """True: do it."""

    def __init__(self, title: str, text: str, yes: str, *, no: str = "Cancel") -> None:
        super().__init__(title, danger=True)
        self._text = text
        self._yes = yes
        self._no_label = no

    def body(self) -> Iterable[Widget]:
        """What will happen."""
        yield words(self._text)

    def buttons(self) -> Iterable[Button]:
        """Back has the focus."""
        yield Button(self._no_label, id="no", compact=True)
        yield Button(self._yes, id="yes", compact=True)

    @on(Button.Pressed, "#yes")
    def _sure(self) -> None:
        self.dismiss(True)  # noqa: FBT003 - the answer to the question
