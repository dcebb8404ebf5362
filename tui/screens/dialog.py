"""What every dialog has: a title, a body, and buttons of which the harmless one has the focus."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Generic, TypeVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Button, Static

T = TypeVar("T")


class Dialog(ModalScreen[T], Generic[T]):
    """A window over the screen. Escape is the same as the harmless button."""

    AUTO_FOCUS = "#no"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Back", show=False),
        Binding("left", "app.focus_previous", "Before", show=False),
        Binding("right", "app.focus_next", "Next", show=False),
    ]

    def __init__(self, title: str, *, danger: bool = False) -> None:
        super().__init__()
        self._title = title
        self.set_class(danger, "-danger")

    def compose(self) -> ComposeResult:
        """Title, body, buttons."""
        with VerticalScroll(id="box", can_focus=False):
            yield Static(self._title, id="title", markup=False)
            yield from self.body()
            with Horizontal(id="buttons"):
                yield from self.buttons()

    def body(self) -> Iterable[Widget]:
        """What stands between the title and the buttons."""
        return []

    def buttons(self) -> Iterable[Button]:
        """The harmless one, with the id `no`, first."""
        yield Button("Cancel", id="no", compact=True)

    def action_leave(self) -> None:
        """Close without doing anything."""
        self.dismiss(None)

    @on(Button.Pressed, "#no")
    def _no(self) -> None:
        self.action_leave()


def words(text: str, *, id: str | None = None, note: bool = False) -> Static:  # noqa: A002 - Textual's name for it
    """A paragraph of a dialog; never markup."""
    return Static(text, id=id, classes="note" if note else "body", markup=False)
