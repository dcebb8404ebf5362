"""The app on a harness: a frozen, seeded daemon before it, no terminal behind it."""

from __future__ import annotations

import asyncio
import time
import unicodedata
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.style import Style
from textual import events
from textual.color import Color
from textual.keys import REPLACED_KEYS, _character_to_key, _get_unicode_name_from_key
from textual.message_pump import MessagePump
from textual.pilot import Pilot

from relayd.admin.link import Link
from tests.tui.samples import NOON_S
from tui.app import RelaydApp
from tui.demo.link import DemoLink
from tui.history import Reader
from tui.model.app_state import Connection
from tui.settings import SettingsFile
from tui.terminal_app import Options

WAIT_S = 30.0
CALM_ROUNDS = 3
SHORT_HISTORY_S = 1500.0
TRUECOLOR = {"COLORTERM": "truecolor", "TERM": "xterm-256color"}


def _character(key: str) -> str | None:
    """What the key of this name types."""
    try:
        return unicodedata.lookup(_get_unicode_name_from_key(REPLACED_KEYS.get(key, key)))
    except KeyError:
        return key if len(key) == 1 else None


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
    """The app, the daemon that it plays with, and the hands of an operator."""

    app: RelaydApp
    link: DemoLink
    pilot: Pilot[int]

    async def press(self, *keys: str) -> None:
        """Press keys by Textual's names, and let the app settle after each."""
        for key in keys:
            self._send(key, _character(key))
            await self.quiet()

    async def type(self, text: str) -> None:
        """Type a text."""
        for char in text:
            self._send(_character_to_key(char), char)
        await self.quiet()

    def _send(self, key: str, char: str | None) -> None:
        assert self.app._driver is not None
        self.app._driver.send_message(events.Key(key, char))

    async def quiet(self) -> None:
        """Wait until no message waits anywhere, and all is drawn.

        Textual's own pause takes a process that gets no processor time for one that has nothing to do.
        """
        end_s = time.monotonic() + WAIT_S
        calm = 0
        while calm < CALM_ROUNDS:
            assert time.monotonic() < end_s, "the app did not come to rest"
            await self.pilot._wait_for_screen()
            self.app.screen._on_timer_update()
            await asyncio.sleep(0)
            calm = calm + 1 if self._at_rest() else 0

    def _at_rest(self) -> bool:
        screens = self.app.screen_stack
        nodes: list[MessagePump] = [self.app, *(n for s in screens for n in s.walk_children(with_self=True))]
        waiting = sum(node.message_queue_size + len(node._next_callbacks) for node in nodes)
        waiting += sum(len(screen._callbacks) for screen in screens)
        return waiting == 0 and self.app.keys.idle

    async def go_on(self, seconds: float) -> None:
        """Let the daemon's time pass, and its news arrive."""
        await self.link.advance(seconds)
        await until(self._knows_all, "the news")
        await self.settle()

    def _knows_all(self) -> bool:
        state, daemon = self.app.state, self.link.daemon
        if state.status is None or state.status.seq != daemon.seq or state.ring != daemon.ring.ring():
            self.app.feed.look_soon()
            return False
        told = not daemon.open or state.open_streams.at_s > daemon.now_s - 0.999
        return state.log_seq == daemon.seq and told

    async def settle(self) -> None:
        """Wait until what is known is drawn."""
        self.app.changed()
        await until(lambda: self.app._draw_due is None)
        await self.quiet()

    def text(self) -> str:
        """The screen as lines of text."""
        strips = self.app.screen._compositor.render_strips()
        return "\n".join(strip.text.rstrip() for strip in strips)

    def styles(self) -> set[Style]:
        """Every style that reaches the terminal."""
        found = set()
        for strip in self.app.screen._compositor.render_strips():
            for line_filter in self.app.get_line_filters():
                strip = strip.apply_filter(line_filter, Color(0, 0, 0))  # noqa: PLW2901 - each filter works on the last one's result
            found |= {segment.style for segment in strip if segment.style is not None}
        return found


@asynccontextmanager
async def running_app(  # noqa: PLR0913 - a harness is set by many things
    tmp_path: Path,
    *,
    size: tuple[int, int] = (80, 24),
    seed: int = 7,
    readonly: bool = False,
    env: dict[str, str] | None = None,
    wrap: Callable[[DemoLink], Link] = lambda link: link,
    archive: Callable[[], Reader | None] | None = None,
    wait_live: bool = True,
    history_s: float = SHORT_HISTORY_S,
) -> AsyncIterator[AppHarness]:
    """A running app on a frozen demo daemon of 25 minutes of history."""
    link = DemoLink(seed=seed, clock=lambda: NOON_S, moves=False, history_s=history_s)
    options = Options("demo", readonly, {"HOME": str(tmp_path), **(env or TRUECOLOR)}, redraw_every_s=0.0)
    app = RelaydApp(
        wrap(link), options, SettingsFile(tmp_path / "tui.json"), now_s=link.now_s, open_archive=archive
    )
    async with app.run_test(size=size) as pilot:
        harness = AppHarness(app, link, pilot)
        if wait_live:
            await until(lambda: app.state.connection is Connection.LIVE, "contact")
            await until(lambda: app.feed.history.exhausted, "the backlog")
            await harness.settle()
        yield harness
