"""The list of alerts: what holds now, and what was wrong before."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from textual import on
from textual.binding import Binding, BindingType
from textual.widget import Widget
from textual.widgets import Static

from relayd.admin.client import AdminClientError
from relayd.admin.schema import Alert, AlertKind, epoch_s
from tui.context import Context
from tui.model.alerts import KnownAlert
from tui.model.units import clock
from tui.screens.dialogs import Dialog
from tui.theme import Role
from tui.widgets.line_list import Field, ItemList, LineList

_SECOND_S = 1.0
_MIN_ROWS = 3
_OTHER_LINES = 14
NAMES = {
    AlertKind.DEAD_KEY: "dead key in use",
    AlertKind.KEY_ENDS: "key ends in use",
    AlertKind.ERRORS: "error spike",
    AlertKind.BOUND: "bound nearly used",
    AlertKind.ROUTE: "route cools down",
    AlertKind.LOG: "log loses records",
    AlertKind.DISK: "disk nearly full",
    AlertKind.ENGINE: "database down",
    AlertKind.CONTACT: "no contact",
}


class AlertRows(ItemList[KnownAlert]):
    """One row for each alert: those that hold first."""

    def __init__(self) -> None:
        super().__init__(lambda known: known.key, id="alerts")

    def fields(self, width: int) -> list[Field]:
        """Return the columns."""
        return [Field("since", 8), Field("ended", 8), Field("alert", 17), Field("what", max(0, width - 38))]

    def cells(self, item: KnownAlert) -> dict[str, tuple[str, Role]]:
        """Return one alert."""
        alert, is_over = item.alert, item.alert.ended_at is not None
        return {
            "since": (clock(epoch_s(alert.since)), Role.DIM if is_over else Role.TEXT),
            "ended": (
                clock(epoch_s(alert.ended_at)) if alert.ended_at else "now",
                Role.DIM if is_over else Role.BAD,
            ),
            "alert": (NAMES[alert.kind], Role.DIM if is_over else Role.STRONG),
            "what": (alert.sentence, Role.DIM if is_over else Role.TEXT),
        }

    def empty_text(self) -> tuple[str, ...]:
        """Say that all is well."""
        return ("No alerts: nothing is wrong, and nothing was since the app started.",)


class AlertsScreen(Dialog[Alert]):
    """A dialog with all alerts. Enter answers with the one whose place is wanted."""

    DEFAULT_CSS = """
    AlertsScreen #alerts { margin: 0 0 1 0; }
    AlertsScreen #sentence { height: auto; min-height: 2; max-height: 5; }
    """
    AUTO_FOCUS = "#alerts"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("b", "bell", "Bell on or off"),
        Binding("A", "leave", "Close", show=False),
    ]

    def __init__(self, context: Context) -> None:
        super().__init__("Alerts", no="Close")
        self._feed = context.feed
        self._settings_file = context.settings_file
        self._alerts = context.state.alerts

    def body(self) -> Iterable[Widget]:
        """Show the list, and under it the chosen alert in full."""
        yield AlertRows()
        yield Static(id="sentence", markup=False)
        yield Static(id="bell", classes="note", markup=False)

    def on_mount(self) -> None:
        """Show all; looking at them answers them. Ask the daemon for those from before this run."""
        self.refresh_data()
        self._show_bell()
        self.set_interval(_SECOND_S, self.refresh_data)
        self.run_worker(self._ask_past(), name="alerts-past")

    def refresh_data(self) -> None:
        """Show new alerts."""
        self._alerts.answer()
        rows, alerts = self.query_one(AlertRows), self._alerts.all
        # With the line of titles, and room for the rest of the dialog.
        rows.styles.height = max(_MIN_ROWS, min(len(alerts), self.app.size.height - _OTHER_LINES)) + 1
        rows.show(alerts)
        self._show_chosen()

    async def _ask_past(self) -> None:
        try:
            await self._feed.refresh_alerts()
        except AdminClientError:
            # The header says that there is no contact.
            return
        self.refresh_data()

    @on(LineList.Moved)
    def _show_chosen(self) -> None:
        known = self.query_one(AlertRows).chosen
        self.query_one("#sentence", Static).update("" if known is None else known.alert.sentence)

    @on(LineList.Chosen)
    def _go(self) -> None:
        known = self.query_one(AlertRows).chosen
        if known is not None:
            self.dismiss(known.alert)

    def _show_bell(self) -> None:
        is_on = self._settings_file.settings.bell
        bell = "b silences the bell, which rings once for each" if is_on else "The bell is off; b turns it on"
        self.query_one("#bell", Static).update(f"Enter goes to the place. {bell}.")

    def action_bell(self) -> None:
        """Let the bell ring at each new alert, or not, and remember it."""
        settings = self._settings_file.settings
        settings.bell = not settings.bell
        if problem := self._settings_file.save():
            self.app.notify(problem, severity="error")
        self._show_bell()
