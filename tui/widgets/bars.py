"""The lines at the edges of the screen: tabs above, keys at the foot, and what such lines have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rich.style import Style
from textual import events
from textual.message import Message
from textual.strip import Strip

from tui.theme import Role, style
from tui.widgets.cells import Drawn, Piece, ground, line, width_of


class Bar(Drawn):
    """One or more lines drawn from pieces."""

    DEFAULT_CSS = "Bar { height: 1; width: 1fr; background: $panel; }"

    def pieces(self, y: int, width: int) -> Iterable[Piece]:
        """Return the line at `y`."""
        raise NotImplementedError

    def all_lines(self, width: int, height: int) -> list[Strip]:
        """Return every line."""
        rest = ground(self) + style(self.app, Role.TEXT)
        return [line(self.pieces(y, width), width, rest) for y in range(height)]


@dataclass(frozen=True, slots=True)
class Spot:
    """A stretch of a bar that can be clicked."""

    start: int
    end: int
    action: str


class ClickBar(Bar):
    """A bar of parts that can be clicked."""

    @dataclass
    class Clicked(Message):
        """A part was clicked; `action` is Textual's action string."""

        action: str

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - Textual's own name for it
        super().__init__(id=id)
        self.spots: list[Spot] = []

    def parts(self, width: int) -> Iterable[tuple[list[Piece], str]]:
        """Return the parts from left to right, each with its action; empty if a click does nothing."""
        raise NotImplementedError

    def pieces(self, y: int, width: int) -> Iterable[Piece]:  # noqa: ARG002 - one line, cut where it ends
        """Return all parts, and remember where each is."""
        pieces: list[Piece] = []
        self.spots = []
        for part, action in self.parts(width):
            start = width_of(pieces)
            pieces += part
            if action:
                self.spots.append(Spot(start, width_of(pieces), action))
        return pieces

    def choice(self, label: str, *, chosen: bool) -> Piece:
        """Return one of several names; the chosen one is set off by brackets as well as by colour."""
        if chosen:
            return f"[{label}]", style(self.app, Role.STRONG) + Style(reverse=True)
        return f" {label} ", style(self.app, Role.DIM)

    def on_click(self, event: events.Click) -> None:
        """Tell which action stands there."""
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
    short: str
    """Where the titles don't fit; as long as possible for all of them to fit into 80 columns."""

    @property
    def titles(self) -> tuple[str, str, str]:
        """The names by which the tab may be called, the longest first; at worst its key alone."""
        return self.title, self.short, ""


TABS = (
    Tab("1", "requests", "Requests", "Reqs"),
    Tab("2", "inflight", "In flight", "Open"),
    Tab("3", "stats", "Stats", "Stats"),
    Tab("4", "clients", "Clients", "Clients"),
    Tab("5", "audit", "Audit", "Audit"),
    Tab("6", "instances", "Instances", "Inst"),
    Tab("7", "usage", "Usage", "Usage"),
    Tab("8", "config", "Config", "Config"),
)


class TabBar(ClickBar):
    """The screens by number. Where the titles don't fit, all of them are shorter: no tab is cut off.

    Args:
        badge: returns what stands behind a screen's name; None for a tab that is shown only while it is on.
        current: the name of the screen that is on.
    """

    DEFAULT_CSS = "TabBar { background: transparent; }"

    def __init__(self, badge: Callable[[str], str | None], current: str) -> None:
        super().__init__(id="tabs")
        self._badge = badge
        self.current = current

    def parts(self, width: int) -> Iterable[tuple[list[Piece], str]]:
        """Return all tabs."""
        dim, key = style(self.app, Role.DIM), style(self.app, Role.KEY)
        badges = [(tab, self._badge(tab.name)) for tab in TABS]
        shown = [(tab, badge or "") for tab, badge in badges if badge is not None or tab.name == self.current]
        labels, gap = tab_labels(shown, width)
        for (tab, _), label in zip(shown, labels, strict=True):
            part = [self.choice(label, chosen=True)]
            if tab.name != self.current:
                part = [(f" {label[:1]}", key), (f"{label[1:]} ", dim)]
            yield part, f"screen.show_screen('{tab.name}')"
            yield [(gap, dim)], ""


def tab_labels(tabs: Sequence[tuple[Tab, str]], width: int) -> tuple[list[str], str]:
    """Return the labels of these tabs with their badges, and what stands between them, to fit if possible."""
    for titles in zip(*(tab.titles for tab, _ in tabs), strict=True):
        labels = [
            " ".join(filter(None, (tab.key, title, badge)))
            for (tab, badge), title in zip(tabs, titles, strict=True)
        ]
        # With a blank or a bracket on both sides of each; the last blank may be cut.
        least = sum(len(label) + 2 for label in labels) - 1
        for gap in (" ", ""):
            if least + len(gap) * (len(labels) - 1) <= width:
                return labels, gap
    return labels, ""


@dataclass(frozen=True, slots=True)
class Hint:
    """One key of the footer. `reason`: why it can't be used now; then it is dim and says so on a click."""

    key: str
    label: str
    action: str
    reason: str = ""


_FINDERS = ("app.command_palette", "screen.help")
"""The actions that lead to all others. They are always shown, last."""
_MAX_HINTS = 9


class KeyBar(ClickBar):
    """What can be done here, most useful first; what does not fit is in the help."""

    def __init__(self) -> None:
        super().__init__(id="keybar")
        self.hints: list[Hint] = []

    def show(self, hints: list[Hint]) -> None:
        """Show these items."""
        if hints != self.hints:
            self.hints = hints
            self.redraw()

    def parts(self, width: int) -> Iterable[tuple[list[Piece], str]]:
        """Return as many as fit, but few, and then how to find the others."""
        parts = [(self._part(hint), self._action(hint)) for hint in self.hints if hint.action not in _FINDERS]
        finders = [(self._part(hint), hint.action) for hint in self.hints if hint.action in _FINDERS]
        left = width - sum(width_of(part) for part, _ in finders)
        count = 0
        for part, action in parts:
            if width_of(part) <= left and count < _MAX_HINTS:
                left -= width_of(part)
                count += 1
                yield part, action
        yield from finders

    def _part(self, hint: Hint) -> list[Piece]:
        dim, key, text = (style(self.app, role) for role in (Role.DIM, Role.KEY, Role.TEXT))
        if hint.reason:
            return [(f" {hint.key}({hint.label})", dim)]
        return [(f" {hint.key}", key), (f" {hint.label} ", text)]

    def _action(self, hint: Hint) -> str:
        return f"screen.explain({hint.reason!r})" if hint.reason else hint.action
