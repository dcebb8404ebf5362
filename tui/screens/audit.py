"""The Audit screen: who changed what, and when."""

from __future__ import annotations

from textual.app import ComposeResult
from textual.widgets import Static

from relayd.admin.schema import AuditEntry, epoch_s
from tui.model.units import day_clock
from tui.screens.pane import Pane
from tui.widgets.audit_list import AuditList
from tui.widgets.bars import Hint
from tui.widgets.line_list import LineList


class AuditPane(Pane):
    """The list, and under it the chosen entry in words."""

    DEFAULT_CSS = """
    AuditPane Static { height: 4; padding: 0 1; background: $surface; }
    """

    def __init__(self) -> None:
        super().__init__(id="audit")

    def compose(self) -> ComposeResult:
        """List and words."""
        yield AuditList(self.relayd_app.state, id="entries")
        yield Static(id="entry", markup=False)

    @property
    def rows(self) -> AuditList:
        """The list."""
        return self.query_one("#entries", AuditList)

    def refresh_data(self) -> None:
        """New entries."""
        self.rows.rows_changed()
        self._show()

    def focus_default(self) -> None:
        """The list."""
        self.take_focus(self.rows)

    def on_line_list_moved(self, event: LineList.Moved) -> None:
        """Another entry."""
        event.stop()
        self._show()

    def _show(self) -> None:
        key = self.rows.cursor_key
        entry = next((entry for entry in self.relayd_app.state.audit if entry.seq == key), None)
        self.query_one("#entry", Static).update("" if entry is None else _in_words(entry))

    def hints(self) -> list[Hint]:
        """Keys of this screen."""
        return [
            Hint("↑↓", "move", "app.here('nothing')"),
            Hint("K", "keys", "app.show_screen('keys')"),
            Hint(":", "cmd", "app.command_palette"),
            Hint("?", "help", "app.help"),
            Hint("Esc", "back", "app.back"),
        ]

    def action_nothing(self) -> None:
        """The arrows are for the keyboard."""


def _in_words(entry: AuditEntry) -> str:
    keys = f", keys {' → '.join(entry.key_ids)}" if entry.key_ids else ""
    client = f" for client {entry.client}" if entry.client else ""
    return (
        f"{day_clock(epoch_s(entry.at))}  {entry.action}: {entry.result}{client}{keys}\n"
        f"by {entry.login} (uid {entry.uid}, process {entry.pid}), ring generation {entry.generation}\n"
        f"{entry.detail or ''}"
    )
