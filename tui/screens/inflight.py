"""The In flight screen: every open stream, how fast it moves, and what it waits for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from tui.context import Context
from tui.model.app_state import AppState, Connection
from tui.model.open_streams import OpenStream
from tui.model.units import count, duration, rate
from tui.screens.pane import HELP_HINTS, KEYS_HINT, Pane
from tui.theme import Role, style
from tui.widgets.bars import Hint
from tui.widgets.cells import Piece, fit
from tui.widgets.line_list import ItemList, LineList

_STALE_MS = 3000


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

    def _layout(self, width: int) -> list[tuple[str, int, bool]]:
        """Return name, width and whether it is right-aligned, for each column."""
        fixed = [("phase", 10, False), ("age", 6, True), ("tokens", 6, True), ("tok/s", 5, True)]
        fixed += [("last", 5, True), ("waits for", 9, False)]
        left = max(8, width - 2 - sum(size + 1 for _, size, _ in fixed))
        client = min(20, max(8, left * 2 // 5))
        names = [("client", client, False), ("model", min(16, max(6, left - client - 1)), False)]
        spare = left - client - names[1][1] - 2
        if spare > 12 and not self._brief:  # noqa: PLR2004 - room for an address
            names.append(("address", min(24, spare), False))
            spare -= names[-1][1] + 1
        if spare > 16 and not self._brief:  # noqa: PLR2004 - room for an id
            fixed.append(("id", min(26, spare), False))
        return names + fixed

    def titles(self, width: int) -> str:
        """Return the column names."""
        return " ".join(fit(name, size, right=right) for name, size, right in self._layout(width))

    def item_pieces(self, item: OpenStream, width: int) -> Iterable[Piece]:
        """Return one stream."""
        cells = self._cells(item)
        for name, size, right in self._layout(width):
            text, role = cells[name]
            yield fit(text, size, right=right) + " ", style(self.app, role)

    def _cells(self, stream: OpenStream) -> dict[str, tuple[str, Role]]:
        progress = stream.progress
        late_ms = 0.0
        if self._state.connection is Connection.LIVE:
            late_ms = max(0.0, (self._now_s() - stream.at_s) * 1000)
        last_ms = None if progress.last_delta_ms is None else progress.last_delta_ms + late_ms
        stale = last_ms is not None and last_ms > _STALE_MS
        slow_reader = progress.waiting_for == "client"
        return {
            "client": (progress.client or "—", Role.STRONG),
            "model": (progress.model or "—", Role.TEXT),
            "address": (progress.ip, Role.DIM),
            "phase": (progress.phase.value, Role.RUN if progress.deltas else Role.WAIT),
            "age": (duration(progress.age_ms + late_ms), Role.TEXT),
            "tokens": (count(progress.deltas), Role.TEXT),
            "tok/s": (rate(stream.deltas_per_s) if progress.deltas else "—", Role.STREAM),
            "last": (duration(last_ms), Role.WARN if stale else Role.DIM),
            "waits for": (progress.waiting_for, Role.CLIENT if slow_reader else Role.DIM),
            "id": (progress.id, Role.DIM),
        }

    def empty_text(self) -> tuple[str, ...]:
        """Say that all is quiet, or that there is no news."""
        if self._state.connection is Connection.LIVE:
            return ("Nothing is in flight.",)
        return ("What is in flight is not known without the daemon.",)


class InflightPane(Pane):
    """Enter opens the request, x cancels it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("x", "cancel", "Cancel this stream"),
        Binding("y", "copy_id", "Copy the id"),
    ]

    def __init__(self, context: Context) -> None:
        super().__init__(context, id="inflight")

    def compose(self) -> ComposeResult:
        """Show one list."""
        yield StreamList(self.state, self.context.now_s, id="streams")

    @property
    def rows(self) -> StreamList:
        """The list."""
        return self.query_one(StreamList)

    def refresh_data(self) -> None:
        """Show new numbers."""
        self.rows.refresh_data()

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
            Hint("P", "pause", "screen.pause", refusal),
            Hint("D", "drain", "screen.drain", refusal),
            KEYS_HINT,
            *HELP_HINTS,
            Hint("y", "copy id", "copy_id"),
        ]

    @on(LineList.Chosen)
    def action_open(self) -> None:
        """Open the request, on the Requests screen."""
        stream = self.rows.chosen
        if stream is not None:
            self.post_message(self.OpenRequest(stream.progress.id, stream.seq))

    def action_cancel(self) -> None:
        """Cancel the stream, after a dialog."""
        stream = self.rows.chosen
        if stream is not None:
            self.context.stream_actions.cancel(stream.record())

    def action_copy_id(self) -> None:
        """Copy the request's id."""
        if self.rows.cursor_key is not None:
            self.context.exporter.copy(str(self.rows.cursor_key), "The id")
