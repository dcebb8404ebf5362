"""Choices that read without colour: `(•) 1 hour  ( ) 1 day` or `[x] cut its streams`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.cells import cell_len
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from tui.theme import Role, style
from tui.widgets.cells import Piece, ground, line

_GAP = 2


@dataclass(frozen=True, slots=True)
class _Place:
    x: int
    y: int
    width: int


class Choices(Widget, can_focus=True):
    """One of several, or with `many` any of several. Flows over as many lines as it needs."""

    ALLOW_SELECT = False
    DEFAULT_CSS = "Choices { height: auto; width: 1fr; margin: 0 0 1 0; }"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left,up", "step(-1)", "Before", show=False),
        Binding("right,down", "step(1)", "Next", show=False),
        Binding("space", "pick", "Pick", show=False),
        Binding("enter", "submit", "Enter", show=False),
    ]

    @dataclass
    class Changed(Message):
        """Another choice was made."""

        choices: Choices

    @dataclass
    class Submitted(Message):
        """Enter was pressed: the choice is made."""

        choices: Choices

    def __init__(self, labels: Sequence[str], chosen: Iterable[int], *, id: str, many: bool = False) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self._labels = list(labels)
        self.chosen = set(chosen)
        self._many = many
        self._at = min(self.chosen, default=0)

    @property
    def index(self) -> int:
        """The chosen value."""
        return min(self.chosen, default=0)

    def _text(self, index: int) -> str:
        on = index in self.chosen
        mark = ("[x]" if on else "[ ]") if self._many else ("(•)" if on else "( )")
        return f"{mark} {self._labels[index]}"

    def _places(self, width: int) -> list[_Place]:
        """Return where each choice stands: in columns if any number can be chosen."""
        widest = max(cell_len(self._text(index)) for index in range(len(self._labels)))
        places, x, y = [], 0, 0
        for index in range(len(self._labels)):
            size = widest if self._many else cell_len(self._text(index))
            if x and x + size > width:
                x, y = 0, y + 1
            places.append(_Place(x, y, size))
            x += size + _GAP
        return places

    def get_content_height(self, container: object, viewport: object, width: int) -> int:  # noqa: ARG002 - Textual's signature
        """Return as many lines as the choices need."""
        return self._places(max(1, width))[-1].y + 1

    def render_line(self, y: int) -> Strip:
        """Return one line of choices."""
        width = self.size.width
        rest = ground(self)
        pieces: list[Piece] = []
        at = 0
        for index, place in enumerate(self._places(width)):
            if place.y != y:
                continue
            role = Role.STRONG if index in self.chosen else Role.TEXT
            look = style(self.app, role)
            if index == self._at and self.has_focus:
                look += Style(reverse=True)
            text = self._text(index)
            pieces += [(" " * (place.x - at), rest), (text, look)]
            at = place.x + cell_len(text)
        return line(pieces, width, rest)

    def choose(self, index: int) -> None:
        """Choose this one; with `many`, turn it over."""
        self._at = index
        if self._many:
            self.chosen ^= {index}
        else:
            self.chosen = {index}
        self.refresh()
        self.post_message(self.Changed(self))

    def leave_out(self, index: int) -> None:
        """Leave one out; the one before it is chosen."""
        del self._labels[index]
        self.choose(max(0, index - 1))
        self.refresh(layout=True)

    def action_step(self, step: int) -> None:
        """Move to the next one, which chooses it where only one can be chosen."""
        self._at = (self._at + step) % len(self._labels)
        if self._many:
            self.refresh()
        else:
            self.choose(self._at)

    def action_pick(self) -> None:
        """Choose the one under the cursor."""
        self.choose(self._at)

    def action_submit(self) -> None:
        """Tell that the choice is made."""
        self.post_message(self.Submitted(self))

    def on_click(self, event: events.Click) -> None:
        """Choose the value that was clicked."""
        for index, place in enumerate(self._places(self.size.width)):
            if place.y == event.y and place.x <= event.x < place.x + place.width:
                self.choose(index)

    def on_focus(self) -> None:
        """Show where the cursor is."""
        self.refresh()

    def on_blur(self) -> None:
        """Hide it."""
        self.refresh()
