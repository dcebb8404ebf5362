"""The Audit screen: who changed what, and when."""

from __future__ import annotations

from collections.abc import Iterable

from textual import on
from textual.app import ComposeResult
from textual.widgets import Static

from relayd.admin.schema import AuditEntry, epoch_s
from tui.context import Context
from tui.model.app_state import AppState
from tui.model.units import day_clock
from tui.screens.pane import Pane
from tui.theme import Role, style
from tui.widgets.bars import Hint
from tui.widgets.cells import Piece, fit
from tui.widgets.line_list import Key, LineList


class AuditList(LineList):
    """What operators did, newest first."""

    def __init__(self, state: AppState, *, id: str) -> None:  # noqa: A002 - Textual's own name for it
        super().__init__(id=id)
        self._state = state

    def row_count(self) -> int:
        """Count the entries."""
        return len(self._state.audit)

    def row_key(self, index: int) -> Key:
        """Return its place in the log."""
        return self._state.audit[index].seq

    def head_pieces(self, width: int) -> Iterable[Piece] | None:  # noqa: ARG002 - cut where the line ends
        """Return the column names."""
        titles = f"   {'time':<14} {'action':<8} {'result':<8} {'by':<10} {'client':<12} keys and detail"
        return [(titles, style(self.app, Role.DIM))]

    def row_pieces(self, index: int, width: int, *, selected: bool) -> Iterable[Piece]:
        """Return one entry."""
        entry = self._state.audit[index]
        look = {role: style(self.app, role) for role in Role}
        changed = "  ".join(part for part in (" → ".join(entry.key_ids), entry.detail) if part)
        return [
            (" ▶ " if selected else "   ", look[Role.ACCENT]),
            (day_clock(epoch_s(entry.at))[5:] + " ", look[Role.DIM]),
            (fit(entry.action, 8) + " ", look[Role.STRONG]),
            (fit(entry.result, 8) + " ", look[Role.GOOD if entry.result == "done" else Role.BAD]),
            (fit(entry.login, 10) + " ", look[Role.TEXT]),
            (fit(entry.client or "—", 12) + " ", look[Role.TEXT]),
            (fit(changed, max(0, width - 61)), look[Role.DIM]),
        ]

    def empty_text(self) -> tuple[str, ...]:
        """Say that nothing was done yet."""
        return (
            "Nothing has been changed yet.",
            "Every change of a key, every pause and cancel will stand here.",
        )


class AuditPane(Pane):
    """The list, and under it the chosen entry in words."""

    DEFAULT_CSS = """
    AuditPane Static { height: 4; padding: 0 1; background: $surface; }
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context, id="audit")

    def compose(self) -> ComposeResult:
        """Show list and words."""
        yield AuditList(self.state, id="entries")
        yield Static(id="entry", markup=False)

    @property
    def rows(self) -> AuditList:
        """The list."""
        return self.query_one(AuditList)

    def refresh_data(self) -> None:
        """Show new entries."""
        self.rows.rows_changed()
        self._show_chosen()

    def focus_default(self) -> None:
        """Focus the list."""
        self.focus_now(self.rows)

    @on(LineList.Moved)
    def _show_chosen(self) -> None:
        key = self.rows.cursor_key
        entry = next((entry for entry in self.state.audit if entry.seq == key), None)
        self.query_one("#entry", Static).update("" if entry is None else _in_words(entry))

    def hints(self) -> list[Hint]:
        """Return the keys of this screen."""
        return [
            Hint("↑↓", "move", ""),
            Hint("K", "keys", "screen.show_screen('keys')"),
            Hint(":", "cmd", "app.command_palette"),
            Hint("?", "help", "screen.help"),
            Hint("Esc", "back", "screen.back"),
        ]


def _in_words(entry: AuditEntry) -> str:
    keys = f", keys {' → '.join(entry.key_ids)}" if entry.key_ids else ""
    client = f" for client {entry.client}" if entry.client else ""
    return (
        f"{day_clock(epoch_s(entry.at))}  {entry.action}: {entry.result}{client}{keys}\n"
        f"by {entry.login} (uid {entry.uid}, process {entry.pid}), ring generation {entry.generation}\n"
        f"{entry.detail or ''}"
    )
