"""The app without a terminal."""

from __future__ import annotations

import asyncio
import html
import re
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from textual.content import Content
from textual.pilot import Pilot
from textual.screen import Screen
from textual.widgets import Static

from relayd.admin.archive import Archive
from relayd.admin.client import AdminClient
from tests.tui.past import PAST_S, Past, running_past
from tests.wire import PATIENCE_S, until
from tui.app import Options, RelaydApp
from tui.model.app_state import AppState, Connection
from tui.screens.main import MainScreen
from tui.screens.requests import RequestsPane
from tui.settings import SettingsFile

_IDLE_ROUNDS = 3
_TRUECOLOR = {"COLORTERM": "truecolor", "TERM": "xterm-256color"}
# Rich draws each piece of a line as an SVG text of its own.
_SVG_TEXT = re.compile(r'<text class="[^"]*-r\d+" x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)</text>')
_CELL_WIDTH, _CELL_HEIGHT = 12.2, 24.4


def files(directory: Path, pattern: str) -> list[Path]:
    """The files of this name."""
    return list(directory.glob(pattern))


@dataclass
class AppHarness:
    """The app, and the hands of an operator."""

    app: RelaydApp
    pilot: Pilot[int]

    @property
    def state(self) -> AppState:
        """What the app knows."""
        return self.app.state

    @property
    def main(self) -> MainScreen:
        """The window under the dialogs."""
        return self.app.main

    @property
    def screen(self) -> Screen[object]:
        """The window or the dialog that is on top."""
        return self.app.screen

    @property
    def requests(self) -> RequestsPane:
        """The Requests screen."""
        return self.main.query_one(RequestsPane)

    @property
    def windows(self) -> int:
        """How many windows and dialogs are open."""
        return len(self.app.screen_stack)

    async def press(self, *keys: str) -> None:
        """Press keys by Textual's names, or characters, and let the app settle after each."""
        for key in keys:
            await self.pilot.press(key)
            await self.idle()

    async def dialog(self, kind: type[Any]) -> None:
        """Wait until a dialog of this kind is open and drawn."""
        await until(lambda: isinstance(self.screen, kind) and self.screen.focused is not None)
        await self.idle()

    async def closed(self) -> None:
        """Wait until every dialog is closed."""
        await until(lambda: self.windows == 1)
        await self.idle()

    async def shows(self, *texts: str) -> None:
        """Wait until the screen shows every one of these texts, however its lines are broken."""
        for text in texts:
            try:
                await until(lambda text=text: text in " ".join(self.text().split()))  # type: ignore[misc]  # the loop's own value
            except TimeoutError:
                raise AssertionError(f"{text!r} is not on the screen:\n{self.text()}") from None

    async def idle(self) -> None:
        """Wait until no message waits anywhere, and all is drawn."""
        end_s, rounds = time.monotonic() + PATIENCE_S, 0
        while rounds < _IDLE_ROUNDS:
            assert time.monotonic() < end_s, "the app did not come to rest"
            drawn = asyncio.Event()
            self.screen.call_after_refresh(drawn.set)
            # A dialog that closes right now draws nothing any more.
            with suppress(TimeoutError):
                await asyncio.wait_for(drawn.wait(), 0.2)
            nodes = [n for screen in self.app.screen_stack for n in screen.walk_children(with_self=True)]
            waiting = self.app.message_queue_size + sum(node.message_queue_size for node in nodes)
            rounds = rounds + 1 if not waiting and self.app.type_ahead.idle else 0

    async def caught_up(self, past: Past) -> None:
        """Wait until the app knows all that is in the log, and has drawn it."""
        await past.logged()
        await until(lambda: self.state.log_seq == past.api.event_bus.newest_seq)
        await self.redraw()

    async def redraw(self) -> None:
        """Draw what is known."""
        self.app.refresh_data()
        await self.idle()

    def text(self) -> str:
        """The screen as lines of text."""
        lines = [""] * self.app.size.height
        for x, y, text in _SVG_TEXT.findall(self.app.export_screenshot()):
            row, column = int(float(y) / _CELL_HEIGHT), round(float(x) / _CELL_WIDTH)
            # Amid a change of the size there are more lines drawn than there will be.
            lines += [""] * (row + 1 - len(lines))
            lines[row] = lines[row].ljust(column) + html.unescape(text).replace("\xa0", " ")
        return "\n".join(line.rstrip() for line in lines)

    def detail_text(self) -> str:
        """The text of the open request, scrolled out of sight or not."""
        shown = self.requests.detail.query_one("#detail-text", Static).render()
        assert isinstance(shown, Content)
        return shown.plain


@asynccontextmanager
async def running_app(
    home: Path,
    client: AdminClient,
    *,
    size: tuple[int, int] = (80, 24),
    readonly: bool = False,
    archive: Archive | None = None,
    now_s: Callable[[], float] = time.time,
    redraw_every_s: float = 0.0,
) -> AsyncIterator[AppHarness]:
    """Run the app on this daemon."""
    # Silence is tried in a real terminal: here a busy machine must not look like a daemon that hangs.
    env = {"HOME": str(home), **_TRUECOLOR}
    options = Options("demo", readonly, env, redraw_every_s=redraw_every_s, stale_after_s=PATIENCE_S)
    app = RelaydApp(
        client, options, SettingsFile(home / "tui.json"), now_s=now_s, open_archive=lambda _: archive
    )
    async with app.run_test(size=size, notifications=True) as pilot:
        harness = AppHarness(app, pilot)
        try:
            yield harness
            if app.is_running:
                await harness.idle()
        finally:
            # As on the way out that a person takes, which this is not.
            await app.on_exit_app()


@asynccontextmanager
async def app_with_past(
    home: Path,
    *,
    size: tuple[int, int] = (80, 24),
    readonly: bool = False,
    past_s: float = PAST_S,
    backlog: bool = True,
) -> AsyncIterator[tuple[AppHarness, Past]]:
    """Run the app on a log of 25 minutes; without `backlog` it loads the newest page alone."""
    if not backlog:
        (home / "tui.json").write_text('{"backlog_records": 1}')
    async with (
        running_past(home, past_s) as past,
        running_app(home, past.api.client, size=size, readonly=readonly, now_s=lambda: past.now_s) as harness,
    ):
        await until(lambda: harness.state.connection is Connection.LIVE)
        if backlog:
            await until(lambda: harness.app.feed.history.exhausted)
        await harness.redraw()
        yield harness, past
