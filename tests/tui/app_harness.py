"""The app without a terminal, on a daemon whose time stands still until a test moves it."""

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
from tests.tui.fake_daemon import FakeDaemon
from tui.app import Options, RelaydApp
from tui.model.app_state import AppState, Connection
from tui.screens.main import MainScreen
from tui.screens.requests import RequestsPane
from tui.settings import SettingsFile

WAIT_S = 30.0
SHORT_HISTORY_S = 1500.0
_IDLE_ROUNDS = 3
_TRUECOLOR = {"COLORTERM": "truecolor", "TERM": "xterm-256color"}
# Rich draws each piece of a line as an SVG text of its own.
_SVG_TEXT = re.compile(r'<text class="[^"]*-r\d+" x="([\d.]+)" y="([\d.]+)"[^>]*>([^<]*)</text>')
_CELL_WIDTH, _CELL_HEIGHT = 12.2, 24.4


async def until(holds: Callable[[], object], what: str = "it") -> None:
    """Wait until it holds; fails after 30 s."""
    end_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < end_s, f"{what} did not come"
        await asyncio.sleep(0.01)


def files(directory: Path, pattern: str) -> list[Path]:
    """The files of this name."""
    return list(directory.glob(pattern))


@dataclass
class AppHarness:
    """The app, the daemon behind it, and the hands of an operator."""

    app: RelaydApp
    daemon: FakeDaemon
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
        await until(lambda: isinstance(self.screen, kind) and self.screen.focused is not None, kind.__name__)
        await self.idle()

    async def closed(self) -> None:
        """Wait until every dialog is closed."""
        await until(lambda: self.windows == 1, "the end of the dialog")
        await self.idle()

    async def shows(self, *texts: str) -> None:
        """Wait until the screen shows every one of these texts, however its lines are broken."""
        for text in texts:
            await until(lambda text=text: text in " ".join(self.text().split()), text)  # type: ignore[misc]  # the loop's own value

    async def idle(self) -> None:
        """Wait until no message waits anywhere, and all is drawn."""
        end_s, rounds = time.monotonic() + WAIT_S, 0
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

    async def go_on(self, seconds: float) -> None:
        """Let the daemon's time pass, and its news arrive."""
        await self.daemon.advance(seconds)
        await until(self._knows_all, "the news")
        await self.redraw()

    def _knows_all(self) -> bool:
        state, daemon = self.state, self.daemon
        if state.ring.keys != list(daemon.ring.values()):
            self.app.feed.look_soon()
            return False
        return state.log_seq == daemon.seq and state.open_streams.at_s > daemon.time_s - 0.999

    async def redraw(self) -> None:
        """Draw what is known."""
        self.app.refresh_data()
        await self.idle()

    def text(self) -> str:
        """The screen as lines of text."""
        lines = [""] * self.app.size.height
        for x, y, text in _SVG_TEXT.findall(self.app.export_screenshot()):
            row, column = int(float(y) / _CELL_HEIGHT), round(float(x) / _CELL_WIDTH)
            lines[row] = lines[row].ljust(column) + html.unescape(text).replace("\xa0", " ")
        return "\n".join(line.rstrip() for line in lines)

    def detail_text(self) -> str:
        """The text of the open request, scrolled out of sight or not."""
        shown = self.requests.detail.query_one("#detail-text", Static).render()
        assert isinstance(shown, Content)
        return shown.plain


@asynccontextmanager
async def running_app(
    tmp_path: Path,
    *,
    size: tuple[int, int] = (80, 24),
    readonly: bool = False,
    client: AdminClient | None = None,
    archive: Archive | None = None,
    wait_live: bool = True,
    history_s: float = SHORT_HISTORY_S,
) -> AsyncIterator[AppHarness]:
    """Run the app on a fake daemon with 25 minutes of history, or on `client`."""
    daemon = FakeDaemon(history_s)
    options = Options("demo", readonly, {"HOME": str(tmp_path), **_TRUECOLOR}, redraw_every_s=0.0)
    app = RelaydApp(
        client or daemon,
        options,
        SettingsFile(tmp_path / "tui.json"),
        now_s=time.time if client else daemon.now_s,
        open_archive=lambda: archive,
    )
    async with app.run_test(size=size, notifications=True) as pilot:
        harness = AppHarness(app, daemon, pilot)
        if wait_live:
            await until(lambda: app.state.connection is Connection.LIVE, "contact")
            await until(lambda: app.feed.history.exhausted, "the backlog")
            await harness.redraw()
        yield harness
