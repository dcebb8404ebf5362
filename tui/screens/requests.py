"""The Requests screen: the list, its filter line, and one request in full."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical

from relayd.admin.client import AdminClientError
from relayd.admin.schema import Filter, Phase, RequestRecord, epoch_s
from relayd.printable import plural
from tui.context import Context
from tui.model.app_state import Connection
from tui.model.filter_kinds import REQUESTS, may_hold_key
from tui.model.stats import WINDOWS, cause_filter, error_cause, is_error
from tui.model.store import Mark, MarkKind, record_key
from tui.screens.dialogs import AskColumns, AskTime
from tui.screens.filtered import FILTER, FILTER_FIELDS, NAMED_FILTERS, TOGGLE_FILTER, FilteredPane
from tui.screens.inflight import StreamList
from tui.screens.pane import BACK_HINT, CLIENTS_HINT, HELP_HINTS, SORT_HINT
from tui.theme import Role, style
from tui.type_ahead import ASKS, Work
from tui.widgets.bars import Hint
from tui.widgets.cause_list import CauseList
from tui.widgets.cells import Piece
from tui.widgets.columns import COLUMN_NAMES, SORT_KEYS
from tui.widgets.detail import Detail
from tui.widgets.filter_line import Filtered
from tui.widgets.line_list import LineList
from tui.widgets.request_list import RequestList

SIDE_BY_SIDE = 100
OVERVIEW_ROWS = 26
_SIMILAR_S = 3600
_NONE = "there is no request"
_NO_CLIENT = "it had no key of a client"
_SIMILAR_MAX_LOOKED_AT = 20_000


class RequestsPane(FilteredPane):
    """List on the left, detail beside it from 100 columns, full-screen below that."""

    DEFAULT_CSS = """
    RequestsPane #middle { height: 1fr; }
    RequestsPane #left { width: 8fr; }
    RequestsPane Detail { width: 5fr; display: none; }
    RequestsPane.-detail Detail { display: block; }
    RequestsPane.-narrow.-detail #left { display: none; }
    RequestsPane.-zoom #left, RequestsPane.-zoom #overview { display: none; }
    RequestsPane #overview { height: 9; display: none; }
    RequestsPane.-overview #overview { display: block; }
    RequestsPane.-zoom.-list #left { display: block; }
    RequestsPane.-zoom.-list Detail { display: none; }
    """

    KIND = REQUESTS
    MOVES_EVERY_S = 10
    CHANGES: ClassVar[frozenset[str]] = frozenset({"cancel"})
    BINDINGS: ClassVar[list[BindingType]] = [
        FILTER,
        TOGGLE_FILTER,
        NAMED_FILTERS,
        FILTER_FIELDS,
        Binding("enter", "open", "Open the request", key_display="Enter"),
        Binding("space", "freeze", "Freeze the list, or follow again", key_display="Space"),
        Binding("n", "match(1)", "Next match"),
        Binding("N", "match(-1)", "Match before"),
        Binding("e", "error(1)", "Next error"),
        Binding("E", "error(-1)", "Error before"),
        Binding("t", "go_to_time", "Go to a time"),
        Binding("m", "bookmark", "Mark, or go back to the mark"),
        Binding("c", "columns", "Columns"),
        Binding("z", "zoom", "Maximise"),
        Binding("right_square_bracket,right", "turn(1)", "Next view of the request", key_display="→ ]"),
        Binding("left_square_bracket,left", "turn(-1)", "View before", key_display="← ["),
        Binding("y", "copy_id", "Copy the id"),
        Binding("Y", "copy_curl", "Copy as curl"),
        Binding("w", "export", "Export what is shown"),
        Binding("x", "cancel", "Cancel this stream"),
        Binding("o", "owner", "Show its key and client"),
    ]

    def __init__(self, context: Context) -> None:
        super().__init__(context, id="requests")
        self._view = context.state.view
        self._bookmark: int | None = None
        self._row_wanted: int | None = None
        """The key of the row to go to once the filter has come to it."""

    def compose(self) -> ComposeResult:
        """Show filter line, list, detail and overview."""
        now_s = self.context.now_s
        yield self.filter_line()
        with Horizontal(id="middle"):
            with Vertical(id="left"):
                yield RequestList(self.state, now_s, id="list")
            yield Detail(self._similar, now_s)
        with Horizontal(id="overview"):
            yield StreamList(self.state, now_s, id="overview-streams", brief=True)
            yield CauseList(now_s, id="overview-causes")

    @property
    def rows(self) -> RequestList:
        """The list."""
        return self.query_one(RequestList)

    @property
    def detail(self) -> Detail:
        """One request in full."""
        return self.query_one(Detail)

    def on_mount(self) -> None:
        """Take over what was remembered."""
        settings = self.context.settings_file.settings
        self.rows.hidden = frozenset(settings.columns_hidden) & set(COLUMN_NAMES)
        if settings.filter:
            self.apply_filter(settings.filter)
        self._lay_out()

    def on_resize(self) -> None:
        """Lay out for another size."""
        self._lay_out()

    def _lay_out(self) -> None:
        width, height = self.size if self.size.width else self.app.size
        wide = width >= SIDE_BY_SIDE
        self.set_class(not wide, "-narrow")
        self.set_class(wide and height >= OVERVIEW_ROWS, "-overview")
        self.set_class(wide or self.has_class("-opened"), "-detail")

    @property
    def _detail_covers_list(self) -> bool:
        return self.has_class("-narrow") and self.has_class("-detail")

    def focus_default(self) -> None:
        """Focus the list, or the detail where it covers the list."""
        self.focus_now(self.detail if self._detail_covers_list else self.rows)

    def refresh_data(self) -> None:
        """Show new rows and new numbers."""
        self.rows.rows_changed()
        self.line.redraw()
        self._show_detail()
        self._fill_with_older()
        if self.has_class("-overview"):
            self.query_one(StreamList).refresh_data()
            self.query_one(CauseList).show_window(self.state.stats, WINDOWS[1], self.context.feed.history)

    def _show_detail(self) -> None:
        if self.has_class("-detail"):
            self.detail.show(self.chosen())

    def chosen(self) -> RequestRecord | None:
        """Return the record under the cursor, with its live numbers while it runs."""
        key = self.rows.cursor_key
        row = None if key is None else self._view.get(int(key))
        return row if isinstance(row, RequestRecord) else None

    def _similar(self, record: RequestRecord) -> list[RequestRecord]:
        """Return the failures of the same kind in the last hour, newest first."""
        store, wanted = self.state.store, error_cause(record)
        since_s = self.context.now_s() - _SIMILAR_S
        found = []
        for index in range(len(store) - 1, max(-1, len(store) - _SIMILAR_MAX_LOOKED_AT), -1):
            row = store.row_at(index)
            if not isinstance(row, RequestRecord):
                continue
            if epoch_s(row.started_at) < since_s:
                break
            if row.id != record.id and is_error(row) and error_cause(row) == wanted:
                found.append(row)
        return found

    def hints(self) -> list[Hint]:
        """Return the keys for the list, or for the open detail."""
        record = self.chosen()
        running = record is not None and record.phase is not Phase.DONE
        none = "" if self.rows.row_count() else _NONE
        refusal = none or self.context.commands.refusal() or ("" if running else "this request has ended")
        lead = [BACK_HINT]
        if not self._detail_covers_list:
            follow = "freeze" if self.rows.following else "follow"
            lead = [Hint("Enter", "open", "open", none), Hint("Space", follow, "freeze")]
        return [
            *lead,
            Hint("/", "filter", "filter"),
            *([Hint("→", "view", "turn(1)")] if self.has_class("-detail") else []),
            Hint("e", "error", "error(1)", none),
            Hint("x", "cancel", "cancel", refusal),
            Hint("o", "key", "owner", none or ("" if record is None or record.client else _NO_CLIENT)),
            CLIENTS_HINT,
            *HELP_HINTS,
            Hint("F", "filters", "named_filters"),
            SORT_HINT,
            Hint("t", "time", "go_to_time"),
            Hint("c", "columns", "columns"),
            Hint("w", "export", "export"),
            Hint("y", "copy id", "copy_id"),
            Hint("Y", "curl", "copy_curl"),
            Hint("z", "zoom", "zoom"),
        ]

    @property
    def depth(self) -> int:
        """How often Escape would close something."""
        is_sorted = self._view.sorting is not None
        return sum((self.line.editing, self.has_class("-zoom"), self._detail_covers_list, is_sorted))

    def way_back(self) -> Callable[[], None]:
        """Return a function that shows this filter, this order and this row again."""
        view = self._view
        text, filtering, sorting = (
            "" if view.filter is None else view.filter.text,
            view.filtering,
            view.sorting,
        )
        row = None if self.rows.following else self.rows.cursor_key
        opened = self.has_class("-opened")

        def restore() -> None:
            self.set_class(opened, "-opened")
            self._lay_out()
            self.set_filter(text)
            if not filtering:
                self.action_toggle_filter()
            if sorting is not None:
                self.rows.sort(sorting)
            if row is not None:
                self.rows.set_following(following=False)
                self._row_wanted = int(row)
                self._go_to_wanted()

        return restore

    def _go_to_wanted(self) -> None:
        """Put the cursor on the row that is wanted, once the filter has come to it."""
        if self._row_wanted is not None and not self._view.scanning:
            self.rows.go_to(self._view.index_of(self._row_wanted))
            self._row_wanted = None

    def stay(self) -> None:
        """Hold the list still."""
        self.rows.set_following(following=False)

    def step_back(self) -> bool:
        """Close the text box of the filter, then zoom, then the detail, then the sort."""
        if self.line.editing:
            self.line.cancel()
        elif self.has_class("-zoom"):
            self.action_zoom()
        elif self._detail_covers_list:
            self.remove_class("-detail", "-opened")
            self.focus_default()
            self.post_message(self.HintsChanged())
        elif self._view.sorting is not None:
            self.rows.sort(None)
        else:
            return False
        return True

    # The list, and the request under its cursor.

    @on(LineList.Moved, "#list")
    def _moved(self) -> None:
        self._show_detail()
        self.post_message(self.HintsChanged())

    @on(RequestList.FollowChanged)
    @on(LineList.Sorted, "#list")
    def _follow_changed(self) -> None:
        self.line.redraw()
        self.post_message(self.HintsChanged())

    @on(LineList.Chosen, "#list")
    def action_open(self) -> None:
        """Open the request, or load what a gap hides."""
        key = self.rows.cursor_key
        row = None if key is None else self._view.get(int(key))
        if isinstance(row, Mark):
            if row.kind is MarkKind.GAP and key is not None:
                self._fill_gap(int(key), row)
            return
        self.add_class("-detail", "-opened")
        self.rows.set_following(following=False)
        self._show_detail()
        self.focus_default()
        self.post_message(self.HintsChanged())

    @work
    async def _fill_gap(self, key: int, mark: Mark) -> None:
        try:
            count = await self.context.feed.history.fill_gap(key, mark)
        except AdminClientError as error:
            self.app.notify(f"The gap stays: {error}", severity="error")
        else:
            self.app.notify(f"{plural(count, 'record')} loaded.")

    def show_record(self, seq: int) -> None:
        """Open the record with this `seq`, from another screen; a filter or an order that hides it is off."""
        view, key = self._view, record_key(seq)
        self.rows.set_following(following=False)
        if not view.has(key):
            view.unsort()
        if not view.has(key):
            view.filtering = False
        self.rows.go_to(view.index_of(key))
        self.action_open()

    def action_turn(self, step: int) -> None:
        """Show another view of the open request."""
        if self.has_class("-detail"):
            self.detail.action_turn(step)

    def action_freeze(self) -> None:
        """Hold the list still, or follow again."""
        self.rows.action_freeze()

    def action_copy_id(self) -> None:
        """Copy the request's id."""
        self._with_chosen(lambda record: self.context.exporter.copy(record.id, "The id"))

    def action_copy_curl(self) -> None:
        """Copy a curl command like this request."""
        self._with_chosen(self.context.exporter.copy_curl)

    def action_owner(self) -> None:
        """Show the key and the client of this request."""
        self._with_chosen(self._open_owner)

    def _open_owner(self, record: RequestRecord) -> None:
        if record.client is None:
            self.app.notify(f"Not now: {_NO_CLIENT}.")
        else:
            self.post_message(self.OpenOwner(record.client, record.key_id))

    def action_cancel(self) -> None:
        """Cancel this stream, after a dialog."""
        self._with_chosen(self.context.stream_actions.cancel)

    def _with_chosen(self, act: Callable[[RequestRecord], None]) -> None:
        record = self.chosen()
        if record is None:
            self.app.notify("No request is chosen.")
        else:
            act(record)

    def action_export(self) -> None:
        """Write what is shown to a file."""
        view = self._view
        # The list goes on to change while it is written.
        keys = [view.key_at(index) for index in range(len(view))]
        self.context.exporter.export(RequestRecord, lambda at: view.get(keys[at]), len(keys), "record")

    # The filter.

    def filtered(self) -> Filtered:
        """Return how the list is filtered, and whether it follows."""
        view, total = self._view, self.state.store.record_count
        if view.filter is None:
            count, matches = plural(total, "record"), "everything"
        else:
            more = "…" if view.scanning else ""
            older = f" + {view.older_count:,} older" if view.older_count else ""
            count = f"{view.match_count:,}{more} of {total:,}{older}"
            matches = plural(view.match_count, "match", "matches") + (" so far" if view.scanning else "")
        text = "" if view.filter is None else view.filter.text
        return Filtered(text, view.filtering, count, matches, self._follow_piece())

    def _follow_piece(self) -> Piece:
        sorting = self._view.sorting
        if sorting is not None:
            words = f"{SORT_KEYS[sorting.column].words} {sorting.mark}"
            return f" SORTED by {words} · Esc ", style(self.app, Role.WARN)
        if self.rows.following:
            return " FOLLOW ", style(self.app, Role.GOOD)
        new = f" {self.rows.new_count:,} new (End)" if self.rows.new_count else " (End)"
        return f" FROZEN{new} ", style(self.app, Role.WARN)

    def newest_rows(self) -> Iterator[RequestRecord]:
        """Yield the records that are held, the newest first."""
        store = self.state.store
        for index in range(len(store) - 1, -1, -1):
            row = store.row_at(index)
            if isinstance(row, RequestRecord):
                yield row

    def chosen_row(self) -> RequestRecord | None:
        """Return the record under the cursor."""
        return self.chosen()

    def filter_kept(self, text: str) -> None:
        """Begin with this filter at the next start."""
        self.context.settings_file.settings.filter = "" if may_hold_key(text) else text

    @on(LineList.Chosen, "#overview-causes")
    def _cause_chosen(self, event: LineList.Chosen) -> None:
        self.post_message(self.FilterRequests(cause_filter(str(event.key))))

    def set_filter(self, text: str) -> None:
        """Filter by this, from another list or screen, and follow."""
        super().set_filter(text)
        self.rows.action_follow()

    def show_matches(self, wanted: Filter) -> None:
        """Show what passes; the newest matches are there when this returns, for the next key to act on."""
        view = self._view
        now = view.filter.alternatives if view.filter is not None else ()
        if not view.filtering or wanted.alternatives != now:
            view.set_filter(wanted)
            view.scan()
            scanning: Work = self._scan
            self.run_worker(scanning, name="scan", group="scan", exclusive=True)
        self.refresh_data()

    async def _scan(self) -> None:
        """Try the records against the filter, a slice at a time."""
        while self._view.scan():
            self.refresh_data()
            await asyncio.sleep(0)
        self._sort_again()
        self.refresh_data()
        self._go_to_wanted()

    def turn_filter(self) -> None:
        """Show everything, or only what passes; the filter itself is kept."""
        self._view.filtering = not self._view.filtering
        self._sort_again()
        self.refresh_data()

    def _sort_again(self) -> None:
        """Sort all that is shown now, if other rows were sorted; stay with a chosen row."""
        if self._view.sorting is None:
            return
        chosen = self.rows.cursor_key if self.rows.cursor else None
        self.rows.sort(self._view.sorting)
        if chosen is not None:
            self.rows.go_to(self._view.index_of(int(chosen)))

    # Older records.

    @on(RequestList.AtTop)
    def _at_top(self) -> None:
        self.start_once("older", self._load_older)

    def _fill_with_older(self) -> None:
        """Look for older matches while few leave the screen half empty, unless a filter is being typed."""
        view = self._view
        wanted = view.narrowed and not view.scanning and not view.asked_all and not self.line.editing
        if wanted and self.rows.row_count() < self.rows.body_height:
            self._at_top()

    async def _load_older(self) -> None:
        """Load one more page of older records; with a filter on, of those that pass it."""
        state, history = self.state, self.context.feed.history
        if state.connection is Connection.CONNECTING:
            return
        if self._view.narrowed:
            try:
                await history.load_older_matches()
            except AdminClientError as error:
                self._view.asked_all = True
                self.app.notify(f"Older records were not searched: {error}", severity="error")
        elif not history.exhausted and len(state.store) >= state.store.keep:
            held = f"The app holds {plural(state.store.record_count, 'record')}"
            self.app.notify(f"{held}; keep_records in its settings allows more.")
        else:
            await history.load_older()

    # Jumps: matches, errors, marks, times.

    def _jump(self, key: int | None, what: str) -> None:
        if key is None:
            self.app.notify(f"No {what} that way.")
        else:
            self.rows.go_to(self._view.index_of(key))

    def action_match(self, step: int) -> None:
        """Go to the next or previous match."""
        if self._view.filter is None:
            self.app.notify("There is no filter; / makes one.")
        elif self.rows.cursor_key is not None:
            self._jump(self._view.neighbour_match(int(self.rows.cursor_key), step), "match")

    def action_error(self, step: int) -> None:
        """Go to the next or previous error; at the newest row the search goes up."""
        key = self.rows.cursor_key
        if key is None:
            self.app.notify(self.rows.empty_text()[0])
            return
        if step > 0 and self.rows.following:
            step = -1
        found = self._view.find(int(key), step, is_error)
        if found == key:
            found = self._view.find(int(key) + step, step, is_error)
        self._jump(found, "error")

    def action_bookmark(self) -> None:
        """Mark this row; on another one, go back to the marked row."""
        key = self.rows.cursor_key
        if key is None:
            self.app.notify(self.rows.empty_text()[0])
            return
        if self._bookmark is None or self._bookmark == key:
            self._bookmark = None if self._bookmark == key else int(key)
            self.app.notify("Marked; m elsewhere comes back here." if self._bookmark else "Mark removed.")
        else:
            self._jump(self._bookmark, "mark")

    @work(group=ASKS)
    async def action_go_to_time(self) -> None:
        """Ask for a time and go there."""
        at_s = await self.app.push_screen_wait(AskTime(self.context.now_s()))
        if at_s is None:
            return
        await self._load_back_to(at_s)
        # Only in the order of time is there a place for it.
        self.rows.sort(None)
        index = self._view.index_of_time(at_s)
        self.rows.set_following(following=False)
        self.rows.go_to(index)
        if index == 0:
            self.app.notify("There is nothing older here.")

    async def _load_back_to(self, at_s: float) -> None:
        """Load older records until this time is among them, while there are any and there is room."""
        store = self.state.store
        if store.oldest_s is not None and store.oldest_s > at_s:
            self.app.notify("Loading older records …")
        more = True
        while more and store.oldest_s is not None and store.oldest_s > at_s:
            more = await self.context.feed.history.load_older()

    # Columns, size.

    @work(group=ASKS)
    async def action_columns(self) -> None:
        """Choose the columns."""
        hidden = await self.app.push_screen_wait(AskColumns(self.rows.hidden))
        if hidden is not None:
            self.rows.hidden = hidden
            self.rows.forget_drawn()
            self.context.settings_file.settings.columns_hidden = sorted(hidden)
            self.save_settings()

    def action_zoom(self) -> None:
        """Show the list or the detail over the whole screen, or both again."""
        zoomed = not self.has_class("-zoom")
        self.set_class(zoomed and not self.detail.has_focus, "-list")
        self.set_class(zoomed, "-zoom")
        self.focus_default()
