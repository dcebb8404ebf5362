"""The dialog that asks which server's daemon to show."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import ClassVar

from textual.binding import Binding, BindingType
from textual.widget import Widget
from textual.widgets import Input

from tui.hosts import Host
from tui.screens.dialogs import Dialog, paragraph
from tui.widgets.choices import Choices


class AskHost(Dialog[Host]):
    """Which server to switch to: a known one, or another that is written.

    Args:
        known: this machine and the servers that were shown before.
        current: the one that is shown now.
        forget: forgets a server that was shown before; returns why not, or an empty text.
    """

    AUTO_FOCUS = "#known"
    YES_KEY = "Enter"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("delete", "forget", "Forget", show=False)]

    def __init__(self, known: Sequence[Host], current: Host, forget: Callable[[Host], str]) -> None:
        super().__init__("Show the daemon of", yes="Connect")
        self._known = list(known)
        self._current = current
        self._forget = forget

    def body(self) -> Iterable[Widget]:
        """Show one choice for each known server, and a line for another."""
        labels = [f"{host} (now)" if host == self._current else str(host) for host in self._known]
        chosen = self._known.index(self._current) if self._current in self._known else 0
        yield Choices(labels, [chosen], id="known")
        yield Input(placeholder="another: [user@]server[:port]", id="another", compact=True)
        yield paragraph(
            "ssh connects, with its agent, configuration and known hosts. It may ask for a password before"
            " the app is back; Ctrl-C there returns here.",
            note=True,
        )
        yield paragraph("Tab goes to the line. Del forgets the chosen server.", id="fault", note=True)

    def accept(self) -> None:
        """Answer with the server that is written, else with the chosen one."""
        written = self.query_one("#another", Input).value.strip()
        try:
            host = Host.parse(written) if written else self._known[self.query_one(Choices).index]
        except ValueError as error:
            self.explain(str(error))
        else:
            self.dismiss(host)

    def action_forget(self) -> None:
        """Forget the chosen server."""
        choices = self.query_one(Choices)
        if fault := self._forget(self._known[choices.index]):
            self.explain(fault)
        else:
            del self._known[choices.index]
            choices.leave_out(choices.index)
