"""The In flight screen: every open stream, how fast it moves, and what it waits for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical

from relayd.admin.schema import RequestRecord
from tui.context import Context
from tui.model.app_state import AppState, Connection
from tui.model.filter_kinds import STREAMS
from tui.model.open_streams import HISTORY_S, OpenStream
from tui.model.sorting import Value
from tui.model.store import record_key
from tui.model.units import count, duration, rate
from tui.screens.filtered import FILTER, FILTER_FIELDS, NAMED_FILTERS, TOGGLE_FILTER, FilteredItems
from tui.screens.pane import CLIENTS_HINT, HELP_HINTS, SORT_HINT
from tui.theme import Role
from tui.widgets.bars import Hint
from tui.widgets.detail import Detail
from tui.widgets.line_list import FILTERED_OUT, Field, ItemList, LineList, dimmed
from tui.widgets.plot import Line, Plot

SIDE_BY_SIDE = 130
_HIGH = 28
_STALE_MS = 3000
_WIDE = 110
_NAMES = 16
"""What client and model need at least."""


class StreamList(ItemList[OpenStream]):
    """Open streams, the oldest first; `brief` for the overview of the Requests screen."""

    def __init__(
        self,
        state: AppState,
        now_s: Callable[[], float],
        *,
        id: str,  # noqa: A002 - Textual's own name for it
        brief: bool = False,
    ) -> None:
        super().__init__(lambda stream: stream.progress.id, id=id, cursor_always=not brief)
        self._state = state
        self._now_s = now_s
        self._brief = brief

    def refresh_data(self) -> None:
        """Take over the streams."""
        streams = self._state.open_streams.streams.values()
        self.show(sorted(streams, key=lambda stream: (stream.started_s, stream.progress.id)))

    def fields(self, width: int) -> list[Field]:
        """Return the columns; client, model, address and id share what the others leave."""
        fixed = [
            Field("phase", 10),
            Field("age", 6, right=True),
            Field("tokens", 6, right=True),
            Field("tok/s", 5, right=True),
            Field("last", 5, right=True),
            Field("waits for", 9),
        ]
        # The last ones give way: half a column says nothing.
        while len(fixed) > 1 and width - 2 - sum(field.width + 1 for field in fixed) < _NAMES:
            fixed.pop()
        if self._state.is_shared and not self._brief:
            fixed.append(Field("instance", 10 if width < _WIDE else 20))
        left = max(8, width - 2 - sum(field.width + 1 for field in fixed))
        client = min(20, max(8, left * 2 // 5))
        model = min(16, max(6, left - client - 1))
        names, spare = [Field("client", client), Field("model", model)], left - client - model - 2
        if spare > 12 and not self._brief:  # noqa: PLR2004 - room for an address
            names.append(Field("address", min(24, spare)))
            spare -= names[-1].width + 1
        if spare > 16 and not self._brief:  # noqa: PLR2004 - room for an id
            fixed.append(Field("id", min(26, spare)))
        return names + fixed

    def sort_values(self) -> Mapping[str, Value[OpenStream]]:
        """Return what a stream is sorted by."""
        return {
            "age": lambda stream: stream.progress.age_ms,
            "tokens": lambda stream: stream.progress.deltas,
            "tok/s": lambda stream: stream.deltas_per_s,
            "last": lambda stream: stream.progress.last_delta_ms,
            "client": lambda stream: stream.progress.client,
            "model": lambda stream: stream.progress.model,
            "phase": lambda stream: stream.progress.phase.value,
            "waits for": lambda stream: stream.progress.waiting_for,
            "address": lambda stream: stream.progress.ip,
            "instance": lambda stream: stream.progress.instance,
        }

    def cells(self, item: OpenStream) -> dict[str, tuple[str, Role]]:
        """Return one stream."""
        progress = item.progress
        late_ms = 0.0
        if self._state.connection is Connection.LIVE:
            late_ms = max(0.0, (self._now_s() - item.at_s) * 1000)
        last_ms = None if progress.last_delta_ms is None else progress.last_delta_ms + late_ms
        stale = last_ms is not None and last_ms > _STALE_MS
        slow_reader = progress.waiting_for == "client"
        cells = {
            "client": (progress.client or "—", Role.STRONG),
            "model": (progress.model or "—", Role.TEXT),
            "address": (progress.ip, Role.DIM),
            "phase": (progress.phase.value, Role.RUN if progress.deltas else Role.WAIT),
            "age": (duration(progress.age_ms + late_ms), Role.TEXT),
            "tokens": (count(progress.deltas), Role.TEXT),
            "tok/s": ("—" if item.deltas_per_s is None else rate(item.deltas_per_s), Role.STREAM),
            "last": (duration(last_ms), Role.WARN if stale else Role.DIM),
            "waits for": (progress.waiting_for, Role.CLIENT if slow_reader else Role.DIM),
            "instance": (progress.instance, Role.DIM),
            "id": (progress.id, Role.DIM),
        }
        return cells if self._state.connection is Connection.LIVE else dimmed(cells)

    def empty_text(self) -> tuple[str, ...]:
        """Say that all is quiet, or that there is no news."""
        if self._state.connection is Connection.LIVE:
            return ("Nothing is in flight.",) if not self.all_items else FILTERED_OUT
        return ("What is in flight is not known without the daemon.",)


class InflightPane(FilteredItems):
    """Enter opens the request, x cancels it. With room, the chosen one is beside the list, a plot below."""

    DEFAULT_CSS = """
    InflightPane #left { width: 3fr; }
    InflightPane Detail { width: 2fr; }
    InflightPane #tokens { height: 12; }
    InflightPane.-narrow Detail, InflightPane.-low #tokens { display: none; }
    """
    KIND = STREAMS
    MOVES_EVERY_S = 10
    CHANGES: ClassVar[frozenset[str]] = frozenset({"cancel"})
    BINDINGS: ClassVar[list[BindingType]] = [
        FILTER,
        TOGGLE_FILTER,
        NAMED_FILTERS,
        FILTER_FIELDS,
        Binding("enter", "open", "Open the request", key_display="Enter"),
        Binding("x", "cancel", "Cancel this stream"),
        Binding("y", "copy_id", "Copy the id"),
        Binding("o", "owner", "Show its key and client"),
    ]

    def __init__(self, context: Context) -> None:
        super().__init__(context, id="inflight")

    def compose(self) -> ComposeResult:
        """Show filter line, list, plot and the chosen stream."""
        now_s = self.context.now_s
        yield self.filter_line()
        with Horizontal():
            with Vertical(id="left"):
                yield StreamList(self.state, now_s, id="streams")
                yield Plot(id="tokens")
            yield Detail(lambda _: [], now_s)

    def on_mount(self) -> None:
        """Lay out for the size."""
        self._lay_out()

    def on_resize(self) -> None:
        """Lay out for another size."""
        self._lay_out()

    def _lay_out(self) -> None:
        width, height = self.size if self.size.width else self.app.size
        self.set_class(width < SIDE_BY_SIDE, "-narrow")
        self.set_class(height < _HIGH, "-low")

    @property
    def rows(self) -> StreamList:
        """The list."""
        return self.query_one(StreamList)

    def refresh_data(self) -> None:
        """Show new numbers."""
        self.rows.refresh_data()
        self.line.redraw()
        if not self.has_class("-low"):
            history = tuple(self.state.open_streams.history)
            title, lines = "Tokens a second", [Line("now", history, Role.STREAM, history[-1])]
            if self.state.connection not in {Connection.LIVE, Connection.STALE}:
                title, lines = f"{title}: not known without the daemon", []
            self.query_one(Plot).show(title, lines, (f"{HISTORY_S} s ago", "now"), rate)
        self._show_chosen()

    @on(LineList.Moved)
    def _show_chosen(self) -> None:
        if not self.has_class("-narrow"):
            self.query_one(Detail).show(self._chosen_record())

    def _chosen_record(self) -> RequestRecord | None:
        stream = self.rows.chosen
        if stream is None:
            return None
        known = None if stream.seq is None else self.state.view.get(record_key(stream.seq))
        return known if isinstance(known, RequestRecord) else stream.record()

    def focus_default(self) -> None:
        """Focus the list."""
        self.focus_now(self.rows)

    def hints(self) -> list[Hint]:
        """Return the keys of this screen, with the reason for each that can't be used."""
        empty = "" if self.rows.row_count() else "nothing is in flight"
        refusal = self.context.commands.refusal()
        return [
            Hint("Enter", "open", "open", empty),
            Hint("x", "cancel", "cancel", refusal or empty),
            Hint("o", "key", "owner", empty),
            Hint("P", "pause", "screen.pause", refusal),
            Hint("D", "drain", "screen.drain", refusal),
            CLIENTS_HINT,
            *HELP_HINTS,
            Hint("F", "filters", "named_filters"),
            Hint("y", "copy id", "copy_id"),
            SORT_HINT,
        ]

    @on(LineList.Chosen)
    def action_open(self) -> None:
        """Open the request, on the Requests screen."""
        stream = self.rows.chosen
        if stream is not None:
            self.post_message(self.OpenRequest(stream.progress.id, stream.seq))

    def action_cancel(self) -> None:
        """Cancel the stream, after a dialog."""
        stream = self._chosen()
        if stream is not None:
            self.context.stream_actions.cancel(stream.record())

    def action_owner(self) -> None:
        """Show the key and the client of the stream."""
        stream = self._chosen()
        if stream is not None:
            self.post_message(self.OpenOwner(stream.progress.client, stream.progress.key_id))

    def action_copy_id(self) -> None:
        """Copy the request's id."""
        stream = self._chosen()
        if stream is not None:
            self.context.exporter.copy(stream.progress.id, "The id")

    def _chosen(self) -> OpenStream | None:
        """Return the chosen stream; if there is none, say why."""
        if self.rows.chosen is None:
            self.app.notify(self.rows.empty_text()[0])
        return self.rows.chosen
