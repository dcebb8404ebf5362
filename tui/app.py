"""The operator's app: holds the parts together and offers every action."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, cast

from rich.segment import Segments
from rich.traceback import Traceback
from textual import work
from textual.app import App, SystemCommand
from textual.binding import Binding, BindingType
from textual.driver import Driver
from textual.screen import Screen

from relayd.admin.link import Link, LinkError
from relayd.admin.wire import Intake, RequestRecord
from tui import clipboard
from tui.driver import RelaydDriver
from tui.feed import Feed, Reader
from tui.model import export
from tui.model.desk import Contact, Desk
from tui.model.text import neutral
from tui.model.units import plural
from tui.operate import Operator
from tui.screens.main import MainScreen
from tui.settings import Settings, SettingsFile
from tui.theme import best_theme, themes
from tui.widgets.bars import TABS

REDRAW_EVERY_S = 0.22
SECOND_S = 1.0
"""Updates are drawn at most four to five times a second, however many events come."""


@dataclass(frozen=True, slots=True)
class Options:
    """How this run was asked for."""

    place: str
    """What the header calls the daemon: the host's name, or `demo`."""
    readonly: bool = False
    env: dict[str, str] = field(default_factory=lambda: dict(os.environ))


class RelaydApp(App[int]):
    """Everything a screen needs is an attribute or a method here."""

    TITLE = "relayd"
    CSS_PATH = "app.tcss"
    ENABLE_COMMAND_PALETTE = True
    COMMAND_PALETTE_BINDING = "ctrl+p"
    BINDINGS: ClassVar[list[BindingType]] = [Binding("ctrl+c", "copy_selected", "Copy", show=False)]

    def __init__(
        self,
        link: Link,
        options: Options,
        settings_file: SettingsFile,
        *,
        now_s: Callable[[], float] = time.time,
        open_archive: Callable[[], Reader | None] | None = None,
    ) -> None:
        super().__init__()
        self.options = options
        self.settings_file = settings_file
        self.now_s = now_s
        self.link = link
        self.desk = Desk(self.settings.keep_records)
        self.feed = Feed(
            self.desk,
            link,
            changed=self.changed,
            backlog_records=self.settings.backlog_records,
            open_archive=open_archive,
        )
        self.operator = Operator(link, self.desk, readonly=options.readonly, unknown=self.tell)
        self.hung = False
        self._drawn_at_s = 0.0
        self._draw_due: asyncio.TimerHandle | None = None
        self._feed_task: asyncio.Task[None] | None = None
        self._scan_task: asyncio.Task[None] | None = None
        for theme in themes():
            self.register_theme(theme)
        self.theme = self._wanted_theme()

    @property
    def settings(self) -> Settings:
        """What is remembered between runs."""
        return self.settings_file.settings

    def _wanted_theme(self) -> str:
        if self.no_color:
            return best_theme({"NO_COLOR": "1"})
        remembered = self.settings.theme
        known = {theme.name for theme in themes()}
        return remembered if remembered in known else best_theme(self.options.env)

    def get_driver_class(self) -> type[Driver]:
        """The driver that survives real terminals."""
        return RelaydDriver

    def get_theme_variable_defaults(self) -> dict[str, str]:
        """Our own variables, for the moments before the theme is on."""
        return dict(themes()[0].variables)

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
            self.tell(self.settings_file.trouble, bad=True)

    def _feed_ended(self, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if isinstance(error, Exception):
            self._handle_exception(error)

    async def on_unmount(self) -> None:
        """Stop following."""
        tasks = [task for task in (self._feed_task, self._scan_task) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.link.close()

    # Drawing.

    def changed(self) -> None:
        """The desk changed: draw soon, once for all changes until then."""
        if self._draw_due is None:
            wait_s = max(0.0, self._drawn_at_s + REDRAW_EVERY_S - time.monotonic())
            self._draw_due = asyncio.get_running_loop().call_later(wait_s, self._draw)

    def _draw(self) -> None:
        self._draw_due = None
        self._drawn_at_s = time.monotonic()
        if self.is_running and self.screen_stack and self.main.is_mounted:
            self.call_later(self._look_again)

    def _look_again(self) -> None:
        self.main.look_again()
        for screen in self.screen_stack[1:]:
            look = getattr(screen, "look_again", None)
            if look is not None:
                look()

    def _second_passed(self) -> None:
        if self.desk.live.streams or self.desk.retiring() or len(self.screen_stack) > 1:
            self.changed()

    def refresh_hints(self) -> None:
        """The keys of the footer may differ now."""
        if self.main.is_mounted:
            self.main.refresh_hints()

    def badge(self, tab: str) -> str:
        """The number beside a tab's name."""
        if tab == "inflight":
            return str(len(self.desk.live.streams) or "")
        if tab == "keys":
            return "!" if self.desk.evidence.straggler_count(self.desk.ring.keys) else ""
        return ""

    def _fatal_error(self) -> None:
        """A crash shows where, never the values: a variable may hold a key."""
        self._exit_renderables.append(
            Segments(self.console.render(Traceback(show_locals=False), self.console.options))
        )
        self._close_messages_no_wait()

    # Saying things.

    def tell(self, text: str, *, bad: bool = False) -> None:
        """A sentence in the corner, for a few seconds."""
        severity = "error" if bad else "information"
        self.notify(neutral(text, 600), severity=severity, markup=False, timeout=8 if bad else 5)

    def action_explain(self, reason: str) -> None:
        """Why an action can't run now."""
        self.tell(f"Not now: {reason}.")

    def save_settings(self) -> None:
        """Remember; failing to is worth a word, not an end."""
        try:
            self.settings_file.save()
        except OSError as error:
            self.tell(f"The settings were not saved: {error}", bad=True)

    # Getting around.

    async def action_show_screen(self, name: str) -> None:
        """Turn to a screen."""
        await self.main.show(name)
        self.settings.screen = name

    async def action_here(self, action: str) -> None:
        """An action of the screen that is on."""
        await self.main.pane.run_action(action)

    async def open_request(self, seq: int) -> None:
        """One request in full, on the Requests screen."""
        from tui.screens.requests import RequestsPane  # noqa: PLC0415 - loaded by the main screen already

        await self.action_show_screen("requests")
        pane = self.main.pane
        if isinstance(pane, RequestsPane):
            pane.show_record(seq)

    def action_back(self) -> None:
        """One step back; on the first screen nothing."""
        if not self.main.pane.step_back() and self.main.pane.id != TABS[0].name:
            self.run_worker(self.action_show_screen(TABS[0].name))

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

    def action_mouse(self) -> None:
        """Give the mouse to the terminal, for its own selection, or take it back."""
        driver = self._driver
        self.settings.mouse = not self.settings.mouse
        if isinstance(driver, RelaydDriver):
            driver.set_mouse(on=self.settings.mouse)
        self.tell(
            "The mouse works in the app again."
            if self.settings.mouse
            else "The mouse is your terminal's now: select and copy with it. M takes it back."
        )

    def get_system_commands(self, screen: Screen[object]) -> Iterable[SystemCommand]:
        """Every action, for the palette."""
        from tui.palette import commands  # noqa: PLC0415 - loaded when first used

        yield from commands(self)

    def hung_up(self) -> None:
        """The terminal is gone: leave at once."""
        if not self.hung:
            self.hung = True
            self.exit(129)

    # History and filter.

    @work(exclusive=True, group="older")
    async def load_older(self) -> None:
        """One more page of older records."""
        if self.feed.exhausted or self.desk.contact is Contact.CONNECTING:
            return
        if len(self.desk.store) >= self.desk.store.keep:
            self.tell(
                f"The app holds {len(self.desk.store):,} records; keep_records in its settings allows more."
            )
            return
        await self.feed.load_older()

    def scan(self) -> None:
        """Try the records against the filter, a slice at a time."""
        if self._scan_task is None or self._scan_task.done():
            self._scan_task = asyncio.create_task(self._scan(), name="tui-scan")

    async def _scan(self) -> None:
        while self.desk.view.scan():
            self.changed()
            await asyncio.sleep(0)
        self.changed()

    # Taking out.

    @work
    async def copy(self, text: str, what: str) -> None:
        """Towards the operator's clipboard; says by which way."""
        self.tell(await self.send_to_clipboard(text, what))

    async def send_to_clipboard(self, text: str, what: str, *, secret: bool = False) -> str:
        """The same, returning the sentence; a secret never goes to a file on its own."""
        write = self._driver.write if self._driver is not None else lambda _: None
        return await clipboard.copy(text, what, self.options.env, write, may_use_file=not secret)

    def copy_curl(self, record: RequestRecord) -> None:
        """A command that sends a request like this one."""
        address = self.desk.status.address if self.desk.status is not None else "http://127.0.0.1:3666"
        self.copy(export.curl_command(record, address), "The curl command (put the key into $RELAYD_KEY)")

    @work(exclusive=True, group="export")
    async def export(self) -> None:
        """What is shown, into a new file, after asking for its form."""
        from tui.screens.ask import AskExport  # noqa: PLC0415 - loaded when first used

        total = len(self.desk.view)
        form = await self.push_screen_wait(AskExport(total))
        if form is None:
            return
        try:
            path, written = await self._export(form)
        except OSError as error:
            self.tell(f"Nothing was exported: {error}", bad=True)
        else:
            self.tell(f"{plural(written, 'record')} written to {path} (only you can read it).")

    async def _export(self, form: str) -> tuple[Path, int]:
        view = self.desk.view
        lines = [export.csv_header()] if form == "csv" else []
        for index in range(len(view)):
            row = view.row_at(index)
            if isinstance(row, RequestRecord):
                line = export.csv_line(row) if form == "csv" else export.ndjson_line(row).decode()
                lines.append(line)
            if index % 500 == 0:
                await asyncio.sleep(0)
        name = time.strftime("relayd-%Y%m%d-%H%M%S-", time.localtime(self.now_s()))
        written = len(lines) - (form == "csv")
        path = await asyncio.to_thread(clipboard.private_file, "".join(lines), name, Path.cwd(), f".{form}")
        return path, written

    # Acting.

    async def attempt(self, what: str, act: Awaitable[object]) -> bool:
        """Do a change; a refusal is told, not raised. True when it was done."""
        try:
            await act
        except LinkError as error:
            self.tell(f"{what}: {error}", bad=True)
            return False
        return True

    @work
    async def cancel_stream(self, record: RequestRecord) -> None:
        """Ask, then end one stream."""
        from tui.screens.confirm import Confirm  # noqa: PLC0415 - loaded when first used

        refusal = self.operator.refusal() or ("" if record.outcome is None else "this request has ended")
        if refusal:
            self.action_explain(refusal)
            return
        who = f"{record.client or 'no client'} at {record.ip}"
        sure = await self.push_screen_wait(
            Confirm(
                "Cancel this request?",
                f"{record.model or '—'} for {who}, {plural(record.deltas, 'delta')} so far.\n"
                "The client gets one line that says so; the provider is told to stop.",
                "Cancel the request",
                no="Leave it",
            )
        )
        if sure and await self.attempt("Not cancelled", self.operator.cancel(record.id)):
            self.tell("The daemon cancelled the request.")

    @work
    async def action_pause(self) -> None:
        """Take no new work, or take it again."""
        refusal = self.operator.refusal()
        if refusal:
            self.action_explain(refusal)
            return
        status = self.desk.status
        if status is not None and status.intake is Intake.LIVE:
            from tui.screens.confirm import Confirm  # noqa: PLC0415 - loaded when first used

            sure = await self.push_screen_wait(
                Confirm(
                    "Pause intake?",
                    "New requests get 503 with Retry-After until you resume. Open streams go on.",
                    "Pause",
                )
            )
            if sure and await self.attempt("Not paused", self.operator.pause()):
                self.tell("Intake is paused; P resumes it.")
        elif await self.attempt("Not resumed", self.operator.resume()):
            self.tell("The daemon takes new work again.")
        self.feed.look_soon()

    @work
    async def action_drain(self) -> None:
        """Ask, with the count and an estimate, then let the daemon finish and stop."""
        from tui.screens.confirm import Confirm  # noqa: PLC0415 - loaded when first used

        refusal = self.operator.refusal()
        if refusal:
            self.action_explain(refusal)
            return
        status = self.desk.status
        at_most = f"{status.drain_timeout_s:.0f} s" if status is not None else "the drain timeout"
        sure = await self.push_screen_wait(
            Confirm(
                "Drain, then stop the daemon?",
                f"{plural(len(self.desk.live.streams), 'stream')} open now. They may finish, for at most"
                f" {at_most}; what is left then ends with `draining`.\nAfter that the daemon stops. It does"
                " not come back unless a supervisor starts it.",
                "Drain and stop",
            )
        )
        if sure and await self.attempt("Not drained", self.operator.drain()):
            self.tell("Draining.")
            self.feed.look_soon()
