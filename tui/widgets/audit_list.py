"""What operators did, newest first."""

from __future__ import annotations

from collections.abc import Iterable

from relayd.admin.schema import AuditEntry, epoch_s
from tui.model.app_state import AppState
from tui.model.units import day_clock
from tui.theme import Role, style
from tui.widgets.cells import Piece, fit
from tui.widgets.line_list import Key, LineList


class AuditList(LineList):
    """One row an entry."""

    def __init__(self, state: AppState, *, id: str) -> None:  # noqa: A002 - Textual's own name for it
        super().__init__(id=id)
        self.state = state

    def row_count(self) -> int:
        """Entries."""
        return len(self.state.audit)

    def row_key(self, index: int) -> Key:
        """Its place in the log."""
        return self.state.audit[index].seq

    def head_pieces(self, width: int) -> Iterable[Piece] | None:  # noqa: ARG002 - cut where the line ends
        """Column names."""
        titles = f"   {'time':<14} {'action':<8} {'result':<8} {'by':<10} {'client':<12} keys and detail"
        return [(titles, style(self.app, Role.DIM))]

    def row_pieces(self, index: int, width: int, *, selected: bool) -> Iterable[Piece]:
        """One entry."""
        entry = self.state.audit[index]
        look = {role: style(self.app, role) for role in Role}
        done = entry.result == "done"
        return [
            (" ▶ " if selected else "   ", look[Role.ACCENT]),
            (day_clock(epoch_s(entry.at))[5:] + " ", look[Role.DIM]),
            (fit(entry.action, 8) + " ", look[Role.STRONG]),
            (fit(entry.result, 8) + " ", look[Role.GOOD if done else Role.BAD]),
            (fit(entry.login, 10) + " ", look[Role.TEXT]),
            (fit(entry.client or "—", 12) + " ", look[Role.TEXT]),
            (fit(_rest(entry), max(0, width - 61)), look[Role.DIM]),
        ]

    def empty_text(self) -> tuple[str, ...]:
        """Nobody acted yet."""
        return (
            "Nobody has changed anything yet.",
            "Every change of a key, every pause and cancel will stand here.",
        )


def _rest(entry: AuditEntry) -> str:
    parts = [" → ".join(entry.key_ids), entry.detail or ""]
    return "  ".join(part for part in parts if part)
