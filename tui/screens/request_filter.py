"""Filtering the list of requests: typing, preview, keeping, turning off and on."""

from __future__ import annotations

from textual import on
from textual.widgets import Input

from relayd.admin.schema import Filter, FilterError, parse_filter
from tui.screens.request_moves import RequestMoves
from tui.widgets.filter_line import FilterLine


class RequestFilter(RequestMoves):
    """The part of the Requests screen that narrows its list; the rest is in `requests`."""

    @property
    def line(self) -> FilterLine:
        """The filter line."""
        return self.query_one(FilterLine)

    def action_filter(self) -> None:
        """Type a filter."""
        self.line.edit()

    @on(Input.Changed, "#filter-input")
    def _typed(self, event: Input.Changed) -> None:
        event.stop()
        if not self.line.editing:
            return
        try:
            parsed = parse_filter(event.value)
        except FilterError as error:
            self.line.fault(error)
            return
        self.line.fault(None)
        self._show(parsed)

    @on(FilterLine.Closed)
    def _filter_closed(self, event: FilterLine.Closed) -> None:
        self._apply(event.text)
        self.relayd_app.settings.filter = event.text
        self.relayd_app.save_settings()

    def _apply(self, text: str) -> None:
        try:
            parsed = parse_filter(text)
        except FilterError as error:
            self.relayd_app.notify(f"The filter stays as it was: {error}", severity="error")
            return
        self._show(parsed)

    def _show(self, wanted: Filter) -> None:
        """Show what passes; the newest matches are there when this returns, for the next key to act on."""
        view = self.relayd_app.state.view
        now = view.filter
        if not view.filtering or wanted.alternatives != (now.alternatives if now is not None else ()):
            view.set_filter(wanted)
            view.scan()
            self.relayd_app.scan()
        self._filter_changed()

    def set_filter(self, text: str) -> None:
        """Filter by this, from another screen."""
        self.line.text = text
        self._apply(text)
        self.rows.action_follow()

    def _filter_changed(self) -> None:
        self.rows.rows_changed()
        self.refresh_data()

    def _fill_with_older(self) -> None:
        """Few matches leave the screen half empty: look for older ones, unless a filter is being typed."""
        view = self.relayd_app.state.view
        wanted = view.narrowed and not view.scanning and not view.asked_all and not self.line.editing
        if wanted and self.rows.row_count() < self.rows.body_height:
            self.relayd_app.load_older()

    def action_toggle_filter(self) -> None:
        """Show everything, or only what passes; the filter itself is kept."""
        view = self.relayd_app.state.view
        if view.filter is None:
            self.relayd_app.notify("There is no filter; / makes one.")
            return
        view.filtering = not view.filtering
        self._filter_changed()
