"""The Requests screen: the list, its filter line, and one request in full."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Input

from relayd.admin.link import LinkError
from relayd.admin.wire import FilterError, Phase, RequestRecord, epoch_s, parse_filter
from tui.model.marks import Mark, MarkKind
from tui.model.stats import error_cause, is_error
from tui.model.store import record_key
from tui.model.units import plural
from tui.model.view import Order
from tui.screens.pane import Pane
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


class RequestsPane(Pane):
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
        Binding("y", "copy_id", "Copy the id"),
        Binding("Y", "copy_curl", "Copy as curl"),
        Binding("w", "export", "Export what is shown"),
        Binding("x", "cancel", "Cancel this stream"),
    ]

    def __init__(self) -> None:
        super().__init__(id="requests")
        self._bookmark: int | None = None

    def compose(self) -> ComposeResult:
        """Filter line, list, detail, overview."""
        app = self.desk_app
        yield FilterLine(app.desk)
        with Horizontal(id="middle"):
            with Vertical(id="left"):
                yield RequestList(app.desk, app.now_s, id="list")
            yield Detail(id="detail")
        with Horizontal(id="overview"):
            yield StreamList(app.desk, app.now_s, id="overview-streams", brief=True)
            yield CauseList(app.desk, app.now_s, id="overview-causes")

    def on_mount(self) -> None:
        """Take over what was remembered."""
        self.rows.hidden = frozenset(self.desk_app.settings.columns_hidden) & set(COLUMN_NAMES)
        if self.desk_app.settings.filter:
            self._apply(self.desk_app.settings.filter)
        self._lay_out()

    @property
    def rows(self) -> RequestList:
        """The list."""
        return self.query_one("#list", RequestList)

    @property
    def line(self) -> FilterLine:
        """The filter line."""
        return self.query_one(FilterLine)

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

    def settle_focus(self) -> None:
        """The list, or the detail when it covers the list."""
        covered = self.has_class("-narrow") and self.has_class("-detail")
        (self.query_one(Detail) if covered else self.rows).focus()

    def look_again(self) -> None:
        """New rows, new numbers."""
        self.rows.rows_changed()
        self.line.following = self.rows.following
        self.line.new_count = self.rows.new_count
        self.line.redraw()
        self._show_detail()
        if self.has_class("-overview"):
            self.query_one(StreamList).rows_changed()
            self.query_one(CauseList).rows_changed()

    def _show_detail(self) -> None:
        if self.has_class("-detail"):
            self.query_one(Detail).show(self.chosen(), self._similar, self.desk_app.now_s())

    def chosen(self) -> RequestRecord | None:
        """The record under the cursor, with its live numbers while it runs."""
        key = self.rows.cursor_key
        row = None if key is None else self.desk_app.desk.store.get(int(key))
        if not isinstance(row, RequestRecord):
            return None
        stream = self.desk_app.desk.live.streams.get(row.id)
        if row.outcome is None and stream is not None:
            stream.fill(row)
        return row

    def _similar(self, record: RequestRecord) -> list[RequestRecord]:
        store = self.desk_app.desk.store
        since_s = self.desk_app.now_s() - _SIMILAR_S
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
        refusal = self.desk_app.operator.refusal() or ("" if running else "this request has ended")
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
            self.settle_focus()
            return True
        if self.has_class("-zoom"):
            self.action_zoom()
            return True
        if self.has_class("-narrow") and self.has_class("-detail"):
            self._close_detail()
            return True
        if self.desk_app.desk.view.order is not Order.TIME:
            self._sort(Order.TIME)
            return True
        return False

    # The list's news.

    @on(LineList.Moved, "#list")
    def _moved(self) -> None:
        self._show_detail()
        self.desk_app.refresh_hints()

    @on(RequestList.FollowChanged)
    def _follow_changed(self, event: RequestList.FollowChanged) -> None:
        self.line.following = event.following
        self.line.new_count = self.rows.new_count
        self.line.redraw()
        self.desk_app.refresh_hints()

    @on(RequestList.AtTop)
    def _at_top(self) -> None:
        self.desk_app.load_older()

    @on(LineList.Chosen, "#list")
    def _chosen(self) -> None:
        self.action_open()

    def action_open(self) -> None:
        """Open the request, or load what a gap hides."""
        key = self.rows.cursor_key
        row = None if key is None else self.desk_app.desk.store.get(int(key))
        if isinstance(row, Mark):
            if row.kind is MarkKind.GAP and key is not None:
                self._fill_gap(int(key), row)
            return
        self.remove_class("-closed")
        self.add_class("-detail", "-opened")
        self.rows.set_following(following=False)
        self._show_detail()
        self.settle_focus()
        self.desk_app.refresh_hints()

    def _close_detail(self) -> None:
        self.remove_class("-detail", "-opened")
        self.settle_focus()
        self.desk_app.refresh_hints()

    @work
    async def _fill_gap(self, key: int, mark: Mark) -> None:
        try:
            came = await self.desk_app.feed.fill_gap(key, mark)
        except LinkError as error:
            self.desk_app.tell(f"The gap stays: {error}", bad=True)
        else:
            self.desk_app.tell(f"{plural(came, 'record')} loaded.")

    def show_record(self, seq: int) -> None:
        """Put the cursor on a record, from another screen."""
        self.rows.set_following(following=False)
        view = self.desk_app.desk.view
        self.rows.go_to(view.place(record_key(seq)))
        self.action_open()

    # Filter.

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
        self.desk_app.desk.view.set_filter(parsed)
        self.desk_app.scan()
        self._filter_changed()

    @on(FilterLine.Closed)
    def _filter_closed(self, event: FilterLine.Closed) -> None:
        self._apply(event.text)
        self.desk_app.settings.filter = event.text
        self.desk_app.save_settings()
        self.settle_focus()

    def _apply(self, text: str) -> None:
        try:
            self.desk_app.desk.view.set_filter(parse_filter(text))
        except FilterError as error:
            self.desk_app.tell(f"The filter stays as it was: {error}", bad=True)
            return
        self.desk_app.scan()
        self._filter_changed()

    def set_filter(self, text: str) -> None:
        """Filter by this, from another screen."""
        self.line.text = text
        self._apply(text)
        self.rows.action_follow()

    def _filter_changed(self) -> None:
        self.rows.rows_changed()
        self.look_again()

    def action_toggle_filter(self) -> None:
        """Show everything, or only what passes; the filter itself is kept."""
        view = self.desk_app.desk.view
        if view.filter is None:
            self.desk_app.tell("There is no filter; / makes one.")
            return
        view.filtering = not view.filtering
        self._filter_changed()

    # Moving.

    def _jump(self, key: int | None, what: str) -> None:
        if key is None:
            self.desk_app.tell(f"No {what} that way.")
            return
        self.rows.go_to(self.desk_app.desk.view.place(key))

    def action_match(self, step: int) -> None:
        """To the next or previous match."""
        view = self.desk_app.desk.view
        if view.filter is None:
            self.desk_app.tell("There is no filter; / makes one.")
        elif self.rows.cursor_key is not None:
            self._jump(view.neighbour_match(int(self.rows.cursor_key), step), "match")

    def action_error(self, step: int) -> None:
        """To the next or previous error; at the newest row the search goes up."""
        key = self.rows.cursor_key
        if key is None:
            return
        view = self.desk_app.desk.view
        if step > 0 and self.rows.following:
            step = -1
        found = view.find(int(key), step, is_error)
        if found == key:
            found = view.find(int(key) + step, step, is_error)
        self._jump(found, "error")

    def action_bookmark(self) -> None:
        """Mark this place; on another one, go back to the mark."""
        key = self.rows.cursor_key
        if key is None:
            return
        if self._bookmark is None or self._bookmark == key:
            self._bookmark = None if self._bookmark == key else int(key)
            self.desk_app.tell("Marked; m elsewhere comes back here." if self._bookmark else "Mark removed.")
            return
        self._jump(self._bookmark, "mark")

    @work
    async def action_go_to_time(self) -> None:
        """Ask for a time and go there."""
        from tui.screens.ask import AskTime  # noqa: PLC0415 - dialogs are loaded when first used

        at_s = await self.app.push_screen_wait(AskTime(self.desk_app.now_s()))
        if at_s is None:
            return
        found = self._place_of_time(at_s)
        self.rows.set_following(following=False)
        self.rows.go_to(found)
        if found == 0:
            self.desk_app.tell("The oldest loaded record; g loads older ones.")

    def _place_of_time(self, at_s: float) -> int:
        view = self.desk_app.desk.view
        low, high = 0, len(view)
        while low < high:
            middle = (low + high) // 2
            row = view.row_at(middle)
            row_s = epoch_s(row.started_at) if isinstance(row, RequestRecord) else 0.0
            if isinstance(row, Mark):
                row_s = row.at_ms / 1000
            low, high = (middle + 1, high) if row_s < at_s else (low, middle)
        return low

    # Looks.

    def action_sort(self) -> None:
        """The next order."""
        orders = list(Order)
        now = self.desk_app.desk.view.order
        self._sort(orders[(orders.index(now) + 1) % len(orders)])

    def _sort(self, order: Order) -> None:
        self.rows.set_following(following=False)
        self.desk_app.desk.view.sort(order)
        self.rows.action_follow() if order is Order.TIME else self.rows.action_first()
        self.look_again()

    @work
    async def action_columns(self) -> None:
        """Choose the columns."""
        from tui.screens.ask import AskColumns  # noqa: PLC0415 - dialogs are loaded when first used

        hidden = await self.app.push_screen_wait(AskColumns(self.rows.hidden))
        if hidden is not None:
            self.rows.hidden = hidden
            self.desk_app.settings.columns_hidden = sorted(hidden)
            self.desk_app.save_settings()
            self.rows.forget_drawn()

    def action_zoom(self) -> None:
        """The list or the detail over the whole screen, and back."""
        zoomed = not self.has_class("-zoom")
        self.set_class(zoomed and not self.query_one(Detail).has_focus, "-list")
        self.set_class(zoomed, "-zoom")
        self.settle_focus()

    # Taking out and acting.

    def _with_chosen(self, act: Callable[[RequestRecord], None]) -> None:
        record = self.chosen()
        if record is None:
            self.desk_app.tell("No request is chosen.")
        else:
            act(record)

    def action_copy_id(self) -> None:
        """Copy the request's id."""
        self._with_chosen(lambda record: self.desk_app.take_out.copy(record.id, "The id"))

    def action_copy_curl(self) -> None:
        """Copy a curl command like this request."""
        self._with_chosen(self.desk_app.take_out.copy_curl)

    def action_export(self) -> None:
        """Write what is shown to a file."""
        self.desk_app.take_out.export()

    def action_cancel(self) -> None:
        """Cancel this stream, after a dialog."""
        self._with_chosen(self.desk_app.control.cancel)

    def action_freeze(self) -> None:
        """From the footer."""
        self.rows.action_freeze()
