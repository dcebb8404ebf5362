"""The line that says why there is no live contact, and what to do."""

from __future__ import annotations

from rich.text import Text
from textual.widgets import Static

from tui.model.desk import Contact, Desk
from tui.theme import Role, style

_WHAT_IS_SHOWN = {
    Contact.CONNECTING: "Connecting.",
    Contact.DOWN: "History is read from disk; nothing can be changed. Trying again; R tries now.",
    Contact.DENIED: "Nothing can be read. R tries again.",
    Contact.MISMATCH: "Reading may work; nothing can be changed.",
}


class Notice(Static):
    """Hidden while all is well."""

    DEFAULT_CSS = """
    Notice { height: auto; max-height: 8; padding: 0 1; display: none; background: $panel; }
    Notice.-on { display: block; }
    """

    def __init__(self, desk: Desk) -> None:
        super().__init__(id="notice", markup=False)
        self._desk = desk
        self._told = ""

    def look_again(self) -> None:
        """Say how things stand."""
        desk = self._desk
        on = bool(desk.trouble) and desk.contact is not Contact.LIVE
        trouble = desk.trouble if desk.trouble.endswith((".", "!", "?")) else f"{desk.trouble}."
        told = f"{desk.contact}: {trouble} {_WHAT_IS_SHOWN[desk.contact]}" if on else ""
        if told != self._told:
            self._told = told
            self.update(Text(told, style=style(self.app, Role.WARN)))
            self.set_class(on, "-on")
