"""The operator's app: holds the parts together and offers every action."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, cast

from textual.app import SystemCommand
from textual.screen import Screen

from relayd.admin.client import AdminClientError
from relayd.admin.link import Link
from tui.daemon_commands import DaemonCommands
from tui.feed import Feed
from tui.history import Reader
from tui.model.app_state import AppState, Connection
from tui.model.stats import Window
from tui.model.store import record_key
from tui.model.units import plural
from tui.screens.main import MainScreen
from tui.settings import SettingsFile
from tui.takeout import TakeOut
from tui.terminal_app import Options, TerminalApp
from tui.theme import themes
from tui.widgets.bars import TABS

if TYPE_CHECKING:
    from tui.key_actions import KeyActions
    from tui.stream_actions import StreamActions

SECOND_S = 1.0


class RelaydApp(TerminalApp):
    """Everything a screen needs is an attribute or a method here."""

    TITLE = "relayd"
    CSS_PATH = "app.tcss"
    ENABLE_COMMAND_PALETTE = True
    COMMAND_PALETTE_BINDING = "ctrl+p"

    def __init__(
        self,
        link: Link,
        options: Options,
        settings_file: SettingsFile,
        *,
        now_s: Callable[[], float] = time.time,
        open_archive: Callable[[], Reader | None] | None = None,
    ) -> None:
        super().__init__(options, settings_file)
        self.now_s = now_s
        self.link = link
        self.state = AppState(self.settings.keep_records)
        self.feed = Feed(
            self.state,
            link,
            changed=self.changed,
            backlog_records=self.settings.backlog_records,
            open_archive=open_archive,
        )
        self.commands = DaemonCommands(link, self.state, readonly=options.readonly, unknown=self.notify)
        self.take_out = TakeOut(self)
        self._drawn_at_s = 0.0
        self._draw_due: asyncio.TimerHandle | None = None
        self._feed_task: asyncio.Task[None] | None = None
        self._scan_task: asyncio.Task[None] | None = None
        self._older_task: asyncio.Task[None] | None = None

    def get_default_screen(self) -> Screen[None]:
        """The one window."""
        names = {tab.name for tab in TABS}
        first = self.settings.screen if self.settings.screen in names else TABS[0].name
        return MainScreen(first)

    @property
    def main(self) -> MainScreen:
        """The window under the dialogs."""
        return cast("MainScreen", self.screen_stack[0])

    def on_mount(self) -> None:
        """Choose the colours and start following the daemon."""
        ours = {theme.name for theme in themes()}
        for name in set(self.available_themes) - ours:
            self.unregister_theme(name)
        self._feed_task = asyncio.create_task(self.feed.run(), name="tui-feed")
        self._feed_task.add_done_callback(self._feed_ended)
        self.set_interval(SECOND_S, self._second_passed)
        if self.settings_file.trouble:
            self.notify(self.settings_file.trouble, severity="error")

    def _feed_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self._handle_exception(error)

    async def on_unmount(self) -> None:
        """Stop following."""
        ours = (self._feed_task, self._scan_task, self._older_task)
        tasks = [task for task in ours if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.keys.close()
        await self.feed.close()
        await self.link.close()

    # Drawing.

    def changed(self) -> None:
        """The state changed: draw soon, once for all changes until then."""
        if self._draw_due is None:
            wait_s = max(0.0, self._drawn_at_s + self.options.redraw_every_s - time.monotonic())
            self._draw_due = asyncio.get_running_loop().call_later(wait_s, self._draw)

    def _draw(self) -> None:
        self._draw_due = None
        self._drawn_at_s = time.monotonic()
        if self.is_running and self.screen_stack and self.main.is_mounted:
            self.call_later(self._refresh_data)

    def _refresh_data(self) -> None:
        self.main.refresh_data()
        for screen in self.screen_stack[1:]:
            look = getattr(screen, "refresh_data", None)
            if look is not None:
                look()

    def _second_passed(self) -> None:
        if self.state.open_streams.streams or self.state.retiring() or len(self.screen_stack) > 1:
            self.changed()

    def refresh_hints(self) -> None:
        """The keys of the footer may differ now."""
        if self.main.is_mounted:
            self.main.refresh_hints()

    def badge(self, tab: str) -> str:
        """The number beside a tab's name."""
        if tab == "inflight":
            return str(len(self.state.open_streams.streams) or "")
        if tab == "keys":
            return "!" if self.state.dead_keys_in_use(self.now_s()) else ""
        return ""

    # Getting around.

    async def action_show_screen(self, name: str) -> None:
        """Turn to a screen."""
        await self.main.show(name)
        self.settings.screen = name

    async def action_here(self, action: str) -> None:
        """An action of the screen that is on."""
        await self.main.pane.run_action(action)

    async def open_request(self, request_id: str, seq: int | None) -> None:
        """One request in full, on the Requests screen; one that is not loaded is asked for."""
        if seq is None or self.state.store.get(record_key(seq)) is None:
            try:
                seq = await self.feed.history.bring(request_id)
            except AdminClientError as error:
                self.notify(f"Not opened: {error}", severity="error")
                return
        from tui.screens.requests import RequestsPane  # noqa: PLC0415 - loaded by the main screen already

        await self.action_show_screen("requests")
        pane = self.main.pane
        if isinstance(pane, RequestsPane):
            pane.show_record(seq)

    async def action_back(self) -> None:
        """One step back; on the first screen nothing."""
        if not self.main.pane.step_back() and self.main.pane.id != TABS[0].name:
            await self.action_show_screen(TABS[0].name)

    async def action_quit(self) -> None:
        """Leave; the daemon goes on."""
        self.save_settings()
        self.exit(0)

    def action_help(self) -> None:
        """Every key."""
        from tui.screens.help import HelpScreen  # noqa: PLC0415 - loaded when first used

        self.push_screen(HelpScreen(self.main.pane))

    def action_retry(self) -> None:
        """Connect now instead of at the next try."""
        self.feed.retry_now()

    @cached_property
    def key_actions(self) -> KeyActions:
        """Changes of keys; loaded when first used."""
        from tui.key_actions import KeyActions  # noqa: PLC0415 - see above

        return KeyActions(self, Path(self.options.env.get("HOME") or Path.cwd()))

    @cached_property
    def stream_actions(self) -> StreamActions:
        """Cancel, pause, resume, drain; loaded when first used."""
        from tui.stream_actions import StreamActions  # noqa: PLC0415 - see above

        return StreamActions(self)

    def action_pause(self) -> None:
        """Take no new work, or take it again."""
        self.stream_actions.pause_or_resume()

    def action_drain(self) -> None:
        """Let the daemon finish and stop."""
        self.stream_actions.drain()

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:  # noqa: ARG002 - Textual's signature
        """Every action, for the palette."""
        from tui.palette import commands  # noqa: PLC0415 - loaded when first used

        yield from commands(self)

    async def attempt(self, what: str, act: Awaitable[object]) -> bool:
        """Do a change; a refusal is told, not raised. True when it was done."""
        try:
            await act
        except AdminClientError as error:
            self.notify(f"{what}: {error}", severity="error")
            return False
        return True

    async def look_at_ring(self) -> None:
        """See the keys as they are after a change; without contact the reconnect will."""
        with suppress(AdminClientError):
            await self.feed.refresh_ring()

    def copy_to_clipboard(self, text: str) -> None:
        """Textual's own copying of selected text, by our way."""
        self.take_out.copy(text, "The selection")

    # History and filter.

    def load_older(self) -> None:
        """One more page of older records; with a filter on, of those that pass it."""
        if self._older_task is None or self._older_task.done():
            self._older_task = asyncio.create_task(self._load_older(), name="tui-older")

    async def _load_older(self) -> None:
        if self.state.connection is Connection.CONNECTING:
            return
        if self.state.view.narrowed:
            try:
                await self.feed.history.load_older_matches()
            except AdminClientError as error:
                self.state.view.asked_all = True
                self.notify(f"Older records were not searched: {error}", severity="error")
            return
        if self.feed.history.exhausted:
            return
        if len(self.state.store) >= self.state.store.keep:
            held = f"The app holds {plural(self.state.store.record_count, 'record')}"
            self.notify(f"{held}; keep_records in its settings allows more.")
            return
        await self.feed.history.load_older()

    @property
    def history_complete(self) -> bool:
        """Whether every record on disk has been counted."""
        return self.feed.history.counted_all

    async def load_history(self, window: Window) -> None:
        """Count what is older than memory, as far back as the window goes."""
        await self.feed.history.count_history(self.now_s() - window.span_s)

    async def filter_requests(self, text: str) -> None:
        """The Requests screen with this filter."""
        from tui.screens.requests import RequestsPane  # noqa: PLC0415 - loaded by the main screen already

        await self.action_show_screen("requests")
        pane = self.main.pane
        if isinstance(pane, RequestsPane):
            pane.set_filter(text)

    def scan(self) -> None:
        """Try the records against the filter, a slice at a time."""
        if self._scan_task is None or self._scan_task.done():
            self._scan_task = asyncio.create_task(self._scan(), name="tui-scan")

    async def _scan(self) -> None:
        while self.state.view.scan():
            self.changed()
            await asyncio.sleep(0)
        self.changed()
