"""Moving through the list of requests, and how it looks: jumps, marks, times, order, columns."""

from __future__ import annotations

from textual import work

from relayd.admin.schema import RequestRecord, epoch_s
from tui.model.marks import Mark
from tui.model.stats import is_error
from tui.model.view import Order
from tui.screens.pane import Pane
from tui.type_ahead import ASKS
from tui.widgets.detail import Detail
from tui.widgets.request_list import RequestList


class RequestMoves(Pane):
    """The part of the Requests screen that moves its list; the rest is in `requests`."""

    _bookmark: int | None = None

    @property
    def rows(self) -> RequestList:
        """The list."""
        return self.query_one("#list", RequestList)

    def _jump(self, key: int | None, what: str) -> None:
        if key is None:
            self.relayd_app.notify(f"No {what} that way.")
            return
        self.rows.go_to(self.relayd_app.state.view.place(key))

    def action_match(self, step: int) -> None:
        """To the next or previous match."""
        view = self.relayd_app.state.view
        if view.filter is None:
            self.relayd_app.notify("There is no filter; / makes one.")
        elif self.rows.cursor_key is not None:
            self._jump(view.neighbour_match(int(self.rows.cursor_key), step), "match")

    def action_error(self, step: int) -> None:
        """To the next or previous error; at the newest row the search goes up."""
        key = self.rows.cursor_key
        if key is None:
            return
        view = self.relayd_app.state.view
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
            self.relayd_app.notify(
                "Marked; m elsewhere comes back here." if self._bookmark else "Mark removed."
            )
            return
        self._jump(self._bookmark, "mark")

    @work(group=ASKS)
    async def action_go_to_time(self) -> None:
        """Ask for a time and go there."""
        from tui.screens.ask import AskTime  # noqa: PLC0415 - dialogs are loaded when first used

        at_s = await self.app.push_screen_wait(AskTime(self.relayd_app.now_s()))
        if at_s is None:
            return
        await self._load_back_to(at_s)
        found = self._place_of_time(at_s)
        self.rows.set_following(following=False)
        self.rows.go_to(found)
        if found == 0:
            self.relayd_app.notify("There is nothing older here.")

    async def _load_back_to(self, at_s: float) -> None:
        """Bring older records until this time is among them, as far as there are any and room for them."""
        store, history = self.relayd_app.state.store, self.relayd_app.feed.history
        told = False
        while (oldest_s := store.oldest_s) is not None and oldest_s > at_s:
            if not told:
                self.relayd_app.notify("Loading older records …")
                told = True
            if not await history.load_older():
                return

    def _place_of_time(self, at_s: float) -> int:
        view = self.relayd_app.state.view
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
        now = self.relayd_app.state.view.order
        self._sort(orders[(orders.index(now) + 1) % len(orders)])

    def _sort(self, order: Order) -> None:
        self.rows.set_following(following=False)
        self.relayd_app.state.view.sort(order)
        self.rows.action_follow() if order is Order.TIME else self.rows.action_first()
        self.refresh_data()

    @work(group=ASKS)
    async def action_columns(self) -> None:
        """Choose the columns."""
        from tui.screens.ask import AskColumns  # noqa: PLC0415 - dialogs are loaded when first used

        hidden = await self.app.push_screen_wait(AskColumns(self.rows.hidden))
        if hidden is not None:
            self.rows.hidden = hidden
            self.relayd_app.settings.columns_hidden = sorted(hidden)
            self.relayd_app.save_settings()
            self.rows.forget_drawn()

    def action_zoom(self) -> None:
        """The list or the detail over the whole screen, and back."""
        zoomed = not self.has_class("-zoom")
        self.set_class(zoomed and not self.query_one(Detail).has_focus, "-list")
        self.set_class(zoomed, "-zoom")
        self.focus_default()
