"""The Requests screen: the list, its filter line, and one request in full."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical

from relayd.admin.client import AdminClientError
from relayd.admin.schema import Phase, RequestRecord, epoch_s
from tui.model.marks import Mark, MarkKind
from tui.model.stats import error_cause, is_error
from tui.model.store import record_key
from tui.model.units import plural
from tui.model.view import Order
from tui.screens.request_filter import RequestFilter
from tui.widgets.bars import Hint
from tui.widgets.columns import COLUMN_NAMES
from tui.widgets.detail import Detail
from tui.widgets.filter_line import FilterLine
from tui.widgets.line_list import LineList
from tui.widgets.overview import CauseList, StreamList
from tui.widgets.request_list import RequestList

SIDE_BY_SIDE = 100
OVERVIEW_ROWS = 30
_SIMILAR_S = 3600
_SIMILAR_LOOK_AT = 20_000


class RequestsPane(RequestFilter):
    """List on the left, detail beside it from 100 columns, full-screen below that."""

    DEFAULT_CSS = """
    RequestsPane #middle { height: 1fr; }
    RequestsPane #left { width: 3fr; }
    RequestsPane Detail { width: 2fr; display: none; }
    RequestsPane.-detail Detail { display: block; }
    RequestsPane.-narrow.-detail #left { display: none; }
    RequestsPane.-zoom #left, RequestsPane.-zoom #overview { display: none; }
    RequestsPane #overview { height: 9; display: none; }
    RequestsPane.-overview #overview { display: block; }
    RequestsPane.-zoom.-list #left { display: block; }
    RequestsPane.-zoom.-list Detail { display: none; }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter"),
        Binding("f", "toggle_filter", "Filter on or off"),
        Binding("n", "match(1)", "Next match"),
        Binding("N", "match(-1)", "Match before"),
        Binding("e", "error(1)", "Next error"),
        Binding("E", "error(-1)", "Error before"),
        Binding("t", "go_to_time", "Go to a time"),
        Binding("m", "bookmark", "Mark, or go back to the mark"),
        Binding("s", "sort", "Sort"),
        Binding("c", "columns", "Columns"),
        Binding("z", "zoom", "Maximise"),
        Binding("right_square_bracket,right", "turn(1)", "Next view of the request"),
        Binding("left_square_bracket,left", "turn(-1)", "View before"),
        Binding("y", "copy_id", "Copy the id"),
        Binding("Y", "copy_curl", "Copy as curl"),
        Binding("w", "export", "Export what is shown"),
        Binding("x", "cancel", "Cancel this stream"),
    ]

    def __init__(self) -> None:
        super().__init__(id="requests")

    def compose(self) -> ComposeResult:
        """Filter line, list, detail, overview."""
        app = self.relayd_app
        yield FilterLine(app.state, self.focus_default)
        with Horizontal(id="middle"):
            with Vertical(id="left"):
                yield RequestList(app.state, app.now_s, id="list")
            yield Detail(id="detail")
        with Horizontal(id="overview"):
            yield StreamList(app.state, app.now_s, id="overview-streams", brief=True)
            yield CauseList(app.state, app.now_s, id="overview-causes")

    def on_mount(self) -> None:
        """Take over what was remembered."""
        self.rows.hidden = frozenset(self.relayd_app.settings.columns_hidden) & set(COLUMN_NAMES)
        if self.relayd_app.settings.filter:
            self._apply(self.relayd_app.settings.filter)
        self._lay_out()

    def on_resize(self) -> None:
        """Another layout for another size."""
        self._lay_out()

    def _lay_out(self) -> None:
        width, height = self.size if self.size.width else self.app.size
        wide = width >= SIDE_BY_SIDE
        self.set_class(not wide, "-narrow")
        self.set_class(wide and height >= OVERVIEW_ROWS - 4, "-overview")
        if wide and not self.has_class("-closed"):
            self.add_class("-detail")
        elif not wide and not self.has_class("-opened"):
            self.remove_class("-detail")

    def focus_default(self) -> None:
        """The list, or the detail when it covers the list."""
        covered = self.has_class("-narrow") and self.has_class("-detail")
        self.take_focus(self.query_one(Detail) if covered else self.rows)

    def refresh_data(self) -> None:
        """New rows, new numbers."""
        self.rows.rows_changed()
        self.line.following = self.rows.following
        self.line.new_count = self.rows.new_count
        self.line.redraw()
        self._show_detail()
        self._fill_with_older()
        if self.has_class("-overview"):
            self.query_one(StreamList).rows_changed()
            self.query_one(CauseList).rows_changed()

    def _show_detail(self) -> None:
        if self.has_class("-detail"):
            self.query_one(Detail).show(self.chosen(), self._similar, self.relayd_app.now_s())

    def chosen(self) -> RequestRecord | None:
        """The record under the cursor, with its live numbers while it runs."""
        key = self.rows.cursor_key
        row = None if key is None else self.relayd_app.state.view.get(int(key))
        return row if isinstance(row, RequestRecord) else None

    def _similar(self, record: RequestRecord) -> list[RequestRecord]:
        store = self.relayd_app.state.store
        since_s = self.relayd_app.now_s() - _SIMILAR_S
        wanted = error_cause(record)
        found = []
        for index in range(len(store) - 1, max(-1, len(store) - _SIMILAR_LOOK_AT), -1):
            row = store.row_at(index)
            if not isinstance(row, RequestRecord):
                continue
            if epoch_s(row.started_at) < since_s:
                break
            if row.id != record.id and is_error(row) and error_cause(row) == wanted:
                found.append(row)
        return found

    def hints(self) -> list[Hint]:
        """For the list, or for the open detail."""
        record = self.chosen()
        running = record is not None and record.phase is not Phase.DONE
        refusal = self.relayd_app.commands.refusal() or ("" if running else "this request has ended")
        covered = self.has_class("-narrow") and self.has_class("-detail")
        follow = Hint("Space", "freeze" if self.rows.following else "follow", "app.here('freeze')")
        lead = (
            [Hint("Esc", "back", "app.back")]
            if covered
            else [Hint("Enter", "open", "app.here('open')"), follow]
        )
        return [
            *lead,
            Hint("/", "filter", "app.here('filter')"),
            *([Hint("→", "view", "app.here('turn(1)')")] if self.has_class("-detail") else []),
            Hint("e", "error", "app.here('error(1)')"),
            Hint("x", "cancel", "app.here('cancel')", refusal),
            Hint("K", "keys", "app.show_screen('keys')"),
            Hint(":", "cmd", "app.command_palette"),
            Hint("?", "help", "app.help"),
            Hint("s", "sort", "app.here('sort')"),
            Hint("t", "time", "app.here('go_to_time')"),
            Hint("c", "columns", "app.here('columns')"),
            Hint("w", "export", "app.here('export')"),
            Hint("y", "copy id", "app.here('copy_id')"),
            Hint("Y", "curl", "app.here('copy_curl')"),
            Hint("z", "zoom", "app.here('zoom')"),
        ]

    def step_back(self) -> bool:
        """Close the filter input, then zoom, then the detail, then the sort."""
        if self.line.editing:
            self.line.cancel()
            self.focus_default()
            return True
        if self.has_class("-zoom"):
            self.action_zoom()
            return True
        if self.has_class("-narrow") and self.has_class("-detail"):
            self._close_detail()
            return True
        if self.relayd_app.state.view.order is not Order.TIME:
            self._sort(Order.TIME)
            return True
        return False

    # The list's news.

    @on(LineList.Moved, "#list")
    def _moved(self) -> None:
        self._show_detail()
        self.relayd_app.refresh_hints()

    @on(RequestList.FollowChanged)
    def _follow_changed(self, event: RequestList.FollowChanged) -> None:
        self.line.following = event.following
        self.line.new_count = self.rows.new_count
        self.line.redraw()
        self.relayd_app.refresh_hints()

    @on(RequestList.AtTop)
    def _at_top(self) -> None:
        self.relayd_app.load_older()

    @on(LineList.Chosen, "#list")
    def _chosen(self) -> None:
        self.action_open()

    def action_open(self) -> None:
        """Open the request, or load what a gap hides."""
        key = self.rows.cursor_key
        row = None if key is None else self.relayd_app.state.view.get(int(key))
        if isinstance(row, Mark):
            if row.kind is MarkKind.GAP and key is not None:
                self._fill_gap(int(key), row)
            return
        self.remove_class("-closed")
        self.add_class("-detail", "-opened")
        self.rows.set_following(following=False)
        self._show_detail()
        self.focus_default()
        self.relayd_app.refresh_hints()

    def action_turn(self, step: int) -> None:
        """Another view of the open request."""
        if self.has_class("-detail"):
            self.query_one(Detail).action_turn(step)

    def _close_detail(self) -> None:
        self.remove_class("-detail", "-opened")
        self.focus_default()
        self.relayd_app.refresh_hints()

    @work
    async def _fill_gap(self, key: int, mark: Mark) -> None:
        try:
            came = await self.relayd_app.feed.history.fill_gap(key, mark)
        except AdminClientError as error:
            self.relayd_app.notify(f"The gap stays: {error}", severity="error")
        else:
            self.relayd_app.notify(f"{plural(came, 'record')} loaded.")

    def show_record(self, seq: int) -> None:
        """Put the cursor on a record, from another screen."""
        self.rows.set_following(following=False)
        view = self.relayd_app.state.view
        self.rows.go_to(view.place(record_key(seq)))
        self.action_open()

    # Taking out and acting.

    def _with_chosen(self, act: Callable[[RequestRecord], None]) -> None:
        record = self.chosen()
        if record is None:
            self.relayd_app.notify("No request is chosen.")
        else:
            act(record)

    def action_copy_id(self) -> None:
        """Copy the request's id."""
        self._with_chosen(lambda record: self.relayd_app.take_out.copy(record.id, "The id"))

    def action_copy_curl(self) -> None:
        """Copy a curl command like this request."""
        self._with_chosen(self.relayd_app.take_out.copy_curl)

    def action_export(self) -> None:
        """Write what is shown to a file."""
        self.relayd_app.take_out.export()

    def action_cancel(self) -> None:
        """Cancel this stream, after a dialog."""
        self._with_chosen(self.relayd_app.stream_actions.cancel)

    def action_freeze(self) -> None:
        """From the footer."""
        self.rows.action_freeze()
