"""The lines at the edges of the screen: status and tabs above, keys at the foot."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rich.cells import cell_len
from rich.style import Style
from textual import events
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from tui.theme import Role, style
from tui.widgets.cells import Piece, ground, line, own_lines


class Bar(Widget):
    """One or more lines drawn from pieces; drawn again only when they differ."""

    ALLOW_SELECT = False
    DEFAULT_CSS = "Bar { height: 1; width: 1fr; }"

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - Textual's own name for it
        super().__init__(id=id)
        self._drawn: list[Strip] = []

    def pieces(self, y: int, width: int) -> Iterable[Piece]:
        """The line at `y`."""
        raise NotImplementedError

    def rest_style(self) -> Style:
        """What the rest of the line looks like."""
        return style(self.app, Role.HEAD)

    def redraw(self) -> None:
        """Draw again if something differs."""
        fresh = [self._line(y) for y in range(self.size.height)]
        if fresh != self._drawn:
            self._drawn = fresh
            self.refresh()

    def _line(self, y: int) -> Strip:
        return line(self.pieces(y, self.size.width), self.size.width, ground(self) + self.rest_style())

    def render_lines(self, crop: Region) -> list[Strip]:
        """Textual: these lines, cut to a region."""
        return own_lines(self, crop)

    def render_line(self, y: int) -> Strip:
        """One line, as it was drawn last."""
        if y < len(self._drawn) and self._drawn[y].cell_length == self.size.width:
            return self._drawn[y]
        return self._line(y)

    def notify_style_update(self) -> None:
        """Textual: the theme changed."""
        super().notify_style_update()
        self._drawn = []


@dataclass(frozen=True, slots=True)
class Spot:
    """A stretch of a bar that can be clicked."""

    start: int
    end: int
    action: str


class ClickBar(Bar):
    """A bar with places to click."""

    @dataclass
    class Clicked(Message):
        """A place was clicked; `action` is Textual's action string."""

        action: str

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - Textual's own name for it
        super().__init__(id=id)
        self.spots: list[Spot] = []

    def on_click(self, event: events.Click) -> None:
        """Run what stands there."""
        for spot in self.spots:
            if spot.start <= event.x < spot.end:
                self.post_message(self.Clicked(spot.action))
                return


@dataclass(frozen=True, slots=True)
class Tab:
    """One of the screens."""

    key: str
    name: str
    title: str


TABS = (
    Tab("1", "requests", "Requests"),
    Tab("2", "inflight", "In flight"),
    Tab("3", "stats", "Stats"),
    Tab("4", "keys", "Keys"),
    Tab("5", "audit", "Audit"),
)


class TabBar(ClickBar):
    """The screens by number; the one that is on is set off by brackets as well as by colour."""

    def __init__(self, badge: Callable[[str], str], *, id: str | None = None) -> None:  # noqa: A002 - Textual's name
        super().__init__(id=id)
        self._badge = badge
        self.current = TABS[0].name

    def rest_style(self) -> Style:
        """Plain."""
        return style(self.app, Role.TEXT)

    def pieces(self, y: int, width: int) -> Iterable[Piece]:  # noqa: ARG002 - one line, cut where it ends
        """All tabs."""
        dim, key, on = (style(self.app, role) for role in (Role.DIM, Role.KEY, Role.TITLE))
        pieces: list[Piece] = []
        self.spots = []
        at = 0
        for tab in TABS:
            badge = self._badge(tab.name)
            label = f" {tab.key} {tab.title}{f' {badge}' if badge else ''} "
            if tab.name == self.current:
                pieces.append((f"[{label[1:-1]}]", on + Style(reverse=True)))
            else:
                pieces += [
                    (label[:2], key),
                    (label[2:], dim),
                ]
            self.spots.append(Spot(at, at + cell_len(label), f"app.show_screen('{tab.name}')"))
            pieces.append((" ", dim))
            at += cell_len(label) + 1
        return pieces


@dataclass(frozen=True, slots=True)
class Hint:
    """One key of the footer. `reason`: why it can't be used now; then it is dim and says so on a click."""

    key: str
    label: str
    action: str
    reason: str = ""


class KeyBar(ClickBar):
    """What can be done here, most useful first; what does not fit is in the help."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - Textual's own name for it
        super().__init__(id=id)
        self.hints: list[Hint] = []

    def show(self, hints: list[Hint]) -> None:
        """Show these."""
        if hints != self.hints:
            self.hints = hints
            self.redraw()

    def pieces(self, y: int, width: int) -> Iterable[Piece]:  # noqa: ARG002 - one line
        """As many as fit."""
        dim, key, text = (style(self.app, role) for role in (Role.HEAD_DIM, Role.KEY, Role.HEAD))
        pieces: list[Piece] = []
        self.spots = []
        at = 0
        for hint in self.hints:
            size = cell_len(hint.key) + cell_len(hint.label) + 3
            if at + size > width:
                continue
            off = bool(hint.reason)
            label = f"({hint.label})" if off else f" {hint.label}"
            pieces += [
                (f" {hint.key}", dim if off else text + key),
                (label, dim if off else text),
                ("" if off else " ", text),
            ]
            action = f"app.explain({hint.reason!r})" if off else hint.action
            self.spots.append(Spot(at, at + size, action))
            at += size
        return pieces
