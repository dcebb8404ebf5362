"""Requests, errors and percentiles by model or by client."""

from __future__ import annotations

from collections.abc import Iterable

from tui.model.stats import Tally
from tui.model.units import count, duration
from tui.theme import Role, style
from tui.widgets.cells import Piece, fit
from tui.widgets.line_list import Key, LineList


class TallyList(LineList):
    """One row a name, the busiest first; Enter filters by it."""

    def __init__(self, what: str, *, id: str) -> None:  # noqa: A002 - Textual's own name for it
        super().__init__(id=id)
        self.what = what
        self._rows: list[tuple[str, Tally]] = []

    def show(self, rows: list[tuple[str, Tally]]) -> None:
        """Show these."""
        self._rows = rows
        self.rows_changed()

    @property
    def cursor_shown(self) -> bool:
        """Only with the focus."""
        return self.has_focus

    def row_count(self) -> int:
        """Names."""
        return len(self._rows)

    def row_key(self, index: int) -> Key:
        """The name."""
        return self._rows[index][0]

    def _name_width(self, width: int) -> int:
        return max(8, min(30, width - 35))

    def head_pieces(self, width: int) -> Iterable[Piece] | None:
        """Column names."""
        numbers = f"{'req':>5} {'err':>5} {'first p50/p95':>13} {'dur p50':>7}"
        return [(f" {fit(self.what, self._name_width(width))} {numbers}", style(self.app, Role.DIM))]

    def row_pieces(self, index: int, width: int, *, selected: bool) -> Iterable[Piece]:
        """One name."""
        name, tally = self._rows[index]
        look = {role: style(self.app, role) for role in Role}
        share = f"{100 * tally.errors / tally.requests:.0f}%" if tally.requests else "—"
        first = f"{duration(tally.first.percentile(0.5))}/{duration(tally.first.percentile(0.95))}"
        lead = "▶" if selected and self.cursor_shown else " "
        return [
            (lead, look[Role.ACCENT]),
            (fit(name, self._name_width(width + 1)) + " ", look[Role.STRONG]),
            (f"{count(tally.requests):>5} ", look[Role.TEXT]),
            (f"{share:>5} ", look[Role.BAD if tally.errors else Role.DIM]),
            (f"{first:>13} ", look[Role.WAIT]),
            (f"{duration(tally.duration.percentile(0.5)):>7}", look[Role.TEXT]),
        ]

    def empty_text(self) -> tuple[str, ...]:
        """Nothing ended in the window."""
        return ("No requests ended in this window.",)
