"""The Keys screen: the ring, live evidence, and every change of a key."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll

from relayd.admin.schema import KeyInfo, KeyState
from tui.screens.pane import Pane
from tui.widgets.bars import Hint
from tui.widgets.evidence_view import EvidenceView
from tui.widgets.key_list import KeyList
from tui.widgets.line_list import LineList

SIDE_BY_SIDE = 130


class KeysPane(Pane):
    """The list, and what the log says about the client of the chosen key."""

    DEFAULT_CSS = """
    KeysPane Horizontal { height: 1fr; }
    KeysPane KeyList { width: 3fr; }
    KeysPane VerticalScroll { width: 2fr; background: $surface; }
    KeysPane.-narrow Horizontal { layout: vertical; }
    KeysPane.-narrow KeyList { width: 1fr; height: 1fr; }
    KeysPane.-narrow VerticalScroll { width: 1fr; height: 1fr; }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r", "rotate", "Rotate this key"),
        Binding("a", "add", "Add a client"),
        Binding("plus", "extend", "Extend the grace"),
        Binding("u", "undo", "Undo the rotation"),
        Binding("exclamation_mark", "revoke", "Revoke a key now"),
        Binding("h", "ended", "Show or hide ended keys"),
        Binding("y", "copy_id", "Copy the key's id"),
    ]

    def __init__(self) -> None:
        super().__init__(id="keys")

    def compose(self) -> ComposeResult:
        """List and evidence."""
        app = self.relayd_app
        with Horizontal():
            yield KeyList(app.state, app.now_s, id="ring")
            with VerticalScroll(can_focus=False):
                yield EvidenceView(app.state, app.now_s)

    @property
    def rows(self) -> KeyList:
        """The list."""
        return self.query_one("#ring", KeyList)

    def on_mount(self) -> None:
        """The right layout at once, and the cursor on the new key of a rotation that is under way."""
        self.set_class(self.app.size.width < SIDE_BY_SIDE, "-narrow")
        self.rows.rows_changed()
        for key in self.relayd_app.state.retiring()[:1]:
            self.rows.go_to(self.rows.row_place(key.replaced_by or key.id) or 0)

    def on_resize(self) -> None:
        """Another layout for another width."""
        self.set_class(self.size.width < SIDE_BY_SIDE, "-narrow")

    def refresh_data(self) -> None:
        """New numbers."""
        self.rows.rows_changed()
        self.query_one(EvidenceView).show(self.rows.chosen)

    def focus_default(self) -> None:
        """The list."""
        self.take_focus(self.rows)

    @on(LineList.Moved)
    def _moved(self) -> None:
        self.query_one(EvidenceView).show(self.rows.chosen)
        self.relayd_app.refresh_hints()

    def hints(self) -> list[Hint]:
        """Keys of this screen, with the reason where one can't be used."""
        key = self.rows.chosen
        refusal = self.relayd_app.commands.refusal()
        none = refusal or ("" if key else "no key is chosen")
        active = none or ("" if key and key.state is KeyState.ACTIVE else "only an active key is rotated")
        grace = none or ("" if self._retiring() else "no rotation of this client is in its grace")
        return [
            Hint("r", "rotate", "app.here('rotate')", active),
            Hint("a", "add", "app.here('add')", refusal),
            Hint("+", "extend", "app.here('extend')", grace),
            Hint("u", "undo", "app.here('undo')", grace),
            Hint("!", "revoke", "app.here('revoke')", refusal),
            Hint("h", "ended", "app.here('ended')"),
            Hint(":", "cmd", "app.command_palette"),
            Hint("?", "help", "app.help"),
            Hint("Esc", "back", "app.back"),
        ]

    def _retiring(self) -> KeyInfo | None:
        """The retiring key that is meant: the chosen one, or that of the chosen client."""
        chosen = self.rows.chosen
        if chosen is None:
            return None
        if chosen.state is KeyState.RETIRING:
            return chosen
        return next((key for key in self.relayd_app.state.retiring() if key.client == chosen.client), None)

    def _may(self, action: str) -> bool:
        reason = next((hint.reason for hint in self.hints() if hint.action == f"app.here('{action}')"), "")
        if reason:
            self.relayd_app.action_explain(reason)
        return not reason

    def action_rotate(self) -> None:
        """Rotate the chosen key."""
        key = self.rows.chosen
        if key is not None and self._may("rotate"):
            self.relayd_app.key_actions.rotate(key)

    def action_add(self) -> None:
        """Add a client."""
        if self._may("add"):
            self.relayd_app.key_actions.add()

    def action_extend(self) -> None:
        """Give the old key more time."""
        key = self._retiring()
        if self._may("extend") and key is not None:
            self.relayd_app.key_actions.extend(key)

    def action_undo(self) -> None:
        """Take the rotation back."""
        key = self._retiring()
        if self._may("undo") and key is not None:
            self.relayd_app.key_actions.undo(key)

    def action_revoke(self) -> None:
        """End a key now."""
        if self._may("revoke"):
            self.relayd_app.key_actions.revoke(self.rows.chosen)

    def action_ended(self) -> None:
        """Show or hide keys that have ended."""
        self.rows.show_ended = not self.rows.show_ended
        self.rows.rows_changed()

    def action_copy_id(self) -> None:
        """Copy the key's id."""
        key = self.rows.chosen
        if key is not None:
            self.relayd_app.take_out.copy(key.id, "The key's id")
