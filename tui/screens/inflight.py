"""The In flight screen: every open stream, how fast it moves, and whom it waits for."""

from __future__ import annotations

from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType

from relayd.admin.schema import RequestRecord
from tui.model.open_streams import OpenStream
from tui.screens.pane import Pane
from tui.widgets.bars import Hint
from tui.widgets.line_list import LineList
from tui.widgets.overview import StreamList


class InFlightPane(Pane):
    """Enter opens the request, x cancels it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("x", "cancel", "Cancel this stream"),
        Binding("y", "copy_id", "Copy the id"),
    ]

    def __init__(self) -> None:
        super().__init__(id="inflight")

    def compose(self) -> ComposeResult:
        """One list."""
        yield StreamList(self.relayd_app.state, self.relayd_app.now_s, id="streams")

    @property
    def rows(self) -> StreamList:
        """The list."""
        return self.query_one("#streams", StreamList)

    def refresh_data(self) -> None:
        """New numbers."""
        self.rows.rows_changed()

    def focus_default(self) -> None:
        """The list."""
        self.take_focus(self.rows)

    def chosen(self) -> RequestRecord | None:
        """The record of the stream under the cursor, as far as its progress tells."""
        stream = self._stream()
        return None if stream is None else stream.record()

    def _stream(self) -> OpenStream | None:
        key = self.rows.cursor_key
        return None if key is None else self.relayd_app.state.open_streams.streams.get(str(key))

    def hints(self) -> list[Hint]:
        """Keys of this screen."""
        empty = "" if self.rows.row_count() else "nothing is in flight"
        refusal = self.relayd_app.commands.refusal() or empty
        return [
            Hint("Enter", "open", "app.here('open')", empty),
            Hint("x", "cancel", "app.here('cancel')", refusal),
            Hint("P", "pause", "app.pause", self.relayd_app.commands.refusal()),
            Hint("D", "drain", "app.drain", self.relayd_app.commands.refusal()),
            Hint("K", "keys", "app.show_screen('keys')"),
            Hint(":", "cmd", "app.command_palette"),
            Hint("?", "help", "app.help"),
            Hint("y", "copy id", "app.here('copy_id')"),
        ]

    @on(LineList.Chosen)
    async def action_open(self) -> None:
        """The request, on the Requests screen."""
        stream = self._stream()
        if stream is not None:
            await self.relayd_app.open_request(stream.progress.id, stream.seq)

    def action_cancel(self) -> None:
        """Cancel it, after a dialog."""
        record = self.chosen()
        if record is not None:
            self.relayd_app.stream_actions.cancel(record)

    def action_copy_id(self) -> None:
        """Copy the request's id."""
        if self.rows.cursor_key is not None:
            self.relayd_app.take_out.copy(str(self.rows.cursor_key), "The id")
