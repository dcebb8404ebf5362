"""The Audit screen: who changed what, and when."""

from __future__ import annotations

from textual import on
from textual.app import ComposeResult
from textual.widgets import Static

from relayd.admin.schema import AuditEntry, epoch_s
from tui.context import Context
from tui.model.units import day_clock
from tui.screens.pane import BACK_HINT, CLIENTS_HINT, HELP_HINTS, Pane
from tui.theme import Role
from tui.widgets.bars import Hint
from tui.widgets.line_list import Field, ItemList, LineList


class AuditList(ItemList[AuditEntry]):
    """What operators did, newest first."""

    def fields(self, width: int) -> list[Field]:
        """Return the columns."""
        fixed = (("time", 14), ("action", 8), ("result", 8), ("by", 10), ("client", 12))
        return [*(Field(*given) for given in fixed), Field("keys and detail", max(0, width - 60))]

    def cells(self, item: AuditEntry) -> dict[str, tuple[str, Role]]:
        """Return one entry."""
        return {
            "time": (day_clock(epoch_s(item.at))[5:], Role.DIM),
            "action": (item.action, Role.STRONG),
            "result": (item.result, Role.GOOD if item.result == "done" else Role.BAD),
            "by": (item.login, Role.TEXT),
            "client": (item.client or "—", Role.TEXT),
            "keys and detail": ("  ".join(filter(None, [_keys(item), item.detail])), Role.DIM),
        }

    def empty_text(self) -> tuple[str, ...]:
        """Say that nothing was done yet."""
        return (
            "Nothing has been changed yet.",
            "Every change of a key, every pause and cancel will be listed here.",
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
        yield AuditList(lambda entry: entry.seq, id="entries")
        yield Static(id="entry", markup=False)

    @property
    def rows(self) -> AuditList:
        """The list."""
        return self.query_one(AuditList)

    def refresh_data(self) -> None:
        """Show new entries."""
        self.rows.show(self.state.audit)
        self._show_chosen()

    def focus_default(self) -> None:
        """Focus the list."""
        self.focus_now(self.rows)

    @on(LineList.Moved)
    def _show_chosen(self) -> None:
        entry = self.rows.chosen
        self.query_one("#entry", Static).update("" if entry is None else _in_words(entry))

    def hints(self) -> list[Hint]:
        """Return the keys of this screen."""
        return [Hint("↑↓", "move", ""), CLIENTS_HINT, *HELP_HINTS, BACK_HINT]


def _keys(entry: AuditEntry) -> str:
    """Return the keys of a change; of two, the one that gave way comes first."""
    if entry.action in {"rotate", "undo"}:
        return " → ".join(reversed(entry.key_ids))
    return ", ".join(entry.key_ids)


def _in_words(entry: AuditEntry) -> str:
    keys = f", keys {_keys(entry)}" if entry.key_ids else ""
    client = f" for client {entry.client}" if entry.client else ""
    return (
        f"{day_clock(epoch_s(entry.at))}  {entry.action}: {entry.result}{client}{keys}\n"
        f"by {entry.login} (uid {entry.uid}, process {entry.pid}), ring generation {entry.generation}\n"
        f"{entry.detail or ''}"
    )
