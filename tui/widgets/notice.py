"""The line that says why there is no live contact, and what to do."""

from __future__ import annotations

from rich.text import Text
from textual.widgets import Static

from tui.model.app_state import AppState, Connection
from tui.theme import Role, style

_WHAT_IS_SHOWN = {
    Connection.CONNECTING: "Connecting.",
    Connection.DOWN: "History is read from disk; nothing can be changed. Trying again; R tries now.",
    Connection.DENIED: "Nothing can be read. R tries again.",
    Connection.MISMATCH: "Reading may work; nothing can be changed.",
}


class Notice(Static):
    """Hidden while all is well."""

    DEFAULT_CSS = """
    Notice { height: auto; max-height: 8; padding: 0 1; display: none; background: $panel; }
    Notice.-on { display: block; }
    """

    def __init__(self, state: AppState) -> None:
        super().__init__(id="notice", markup=False)
        self._state = state
        self._told = ""

    def refresh_data(self) -> None:
        """Say how things stand."""
        state = self._state
        on = bool(state.trouble) and state.connection is not Connection.LIVE
        trouble = state.trouble if state.trouble.endswith((".", "!", "?")) else f"{state.trouble}."
        told = f"{state.connection}: {trouble} {_WHAT_IS_SHOWN[state.connection]}" if on else ""
        if told != self._told:
            self._told = told
            self.update(Text(told, style=style(self.app, Role.WARN)))
            self.set_class(on, "-on")
