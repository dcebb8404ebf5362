"""The windows of the Stats screen, and the chosen one in numbers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.cells import cell_len
from rich.style import Style
from textual import events
from textual.message import Message

from tui.model.stats import WINDOWS, Summary, Window
from tui.model.units import count, duration, plural
from tui.theme import Role, style
from tui.widgets.bars import Bar
from tui.widgets.cells import Piece, width_of


class WindowLine(Bar):
    """One line; a click on a window picks it."""

    @dataclass
    class Picked(Message):
        """A window was clicked."""

        window: Window

    def __init__(self, *, id: str) -> None:  # noqa: A002 - Textual's own name for it
        super().__init__(id=id)
        self._window = WINDOWS[0]
        self._summary: Summary | None = None
        self._complete = True
        self._spots: list[tuple[int, int, Window]] = []
        self.trouble = ""

    def show(self, window: Window, summary: Summary, *, complete: bool) -> None:
        """Show this window's numbers."""
        self._window, self._summary, self._complete = window, summary, complete
        self.redraw()

    def rest_style(self) -> Style:
        """Plain."""
        return style(self.app, Role.TEXT)

    def pieces(self, y: int, width: int) -> Iterable[Piece]:  # noqa: ARG002 - one line
        """Windows on the left, numbers behind them."""
        dim, text, strong = (style(self.app, role) for role in (Role.DIM, Role.TEXT, Role.STRONG))
        pieces: list[Piece] = []
        self._spots = []
        at = 0
        for window in WINDOWS:
            on = window is self._window
            label = f"[{window.name}]" if on else f" {window.name} "
            pieces.append((label, strong + Style(reverse=True) if on else dim))
            self._spots.append((at, at + cell_len(label), window))
            at += cell_len(label)
        if self._summary is None:
            return pieces
        whole = self._summary.all
        share = f" ({100 * whole.errors / whole.requests:.1f}%)" if whole.requests else ""
        numbers: list[Piece] = [
            (f"  {plural(whole.requests, 'request')}", strong),
            (f", {whole.errors:,} failed{share}", style(self.app, Role.BAD) if whole.errors else text),
        ]
        if self.trouble or not self._complete:
            numbers.append((f"  {self.trouble or 'reading history …'}", style(self.app, Role.WARN)))
        numbers.append((f"  {count(whole.deltas)} tokens", text))
        numbers.append((f"  first p95 {duration(whole.first.percentile(0.95))}", text))
        # What does not fit is left out: half a number would be another number.
        while numbers and at + width_of(numbers) > width:
            numbers.pop()
        return [*pieces, *numbers]

    def on_click(self, event: events.Click) -> None:
        """Pick a window."""
        for start, end, window in self._spots:
            if start <= event.x < end:
                self.post_message(self.Picked(window))
