"""Draws the terminal app's screens as SVG from the daemon behind `relayd-tui --demo`."""

from __future__ import annotations

import asyncio
import re
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from textual.pilot import Pilot

from relayd.admin.client import AdminClient
from tui.app import Options, RelaydApp
from tui.demo import demo_daemon
from tui.model.app_state import Connection
from tui.settings import SettingsFile

_ENV = {"COLORTERM": "truecolor", "TERM": "xterm-256color"}
_WIDE, _NARROW = (140, 40), (80, 24)
_LIVELY_AFTER_S = 12.0
_CRISP = ' shape-rendering="crispEdges"'
_ALL_CRISP = "rect:not([rx]) { shape-rendering: crispEdges }"
_CLIP = re.compile(r' clip-path="url\(#terminal-\d+-line-\d+\)"')
_RICH_NAME = re.compile(r"terminal-\d+-")
_ALERT_WITHIN_S = 120


class _Scene:
    """A running app whose pictures go into a directory."""

    def __init__(self, app: RelaydApp, pilot: Pilot[int], directory: Path) -> None:
        self._app, self._pilot, self._directory = app, pilot, directory

    async def press(self, *keys: str) -> None:
        """Press keys and wait until the screen has settled."""
        await self._pilot.press(*keys)
        await asyncio.sleep(1)
        await self._pilot.pause()

    async def alert(self) -> None:
        """Revoke the old key of web, and wait until somebody who still uses it is refused."""
        old = self._app.state.retiring()[0]
        await self.press("4", "exclamation_mark", *old.id[-4:], "enter")
        async with asyncio.timeout(_ALERT_WITHIN_S):
            while not self._app.state.alerts.live:  # noqa: ASYNC110 - no event tells
                await asyncio.sleep(0.05)

    def draw(self, name: str) -> None:
        """Write the screen to `tui-NAME.svg`."""
        svg = self._app.export_screenshot(title=f"relayd-tui --demo   {name}")
        (self._directory / f"tui-{name}.svg").write_text(_smaller(svg))


def _smaller(svg: str) -> str:
    """Return Rich's picture with short names, and without what each cell of a terminal does not need."""
    svg = _CLIP.sub("", svg.replace(_CRISP, ""))
    return _RICH_NAME.sub("t", svg.replace("<style>", f"<style>{_ALL_CRISP}", 1))


async def _play(directory: Path, size: tuple[int, int], scene: Callable[[_Scene], Awaitable[None]]) -> None:
    with demo_daemon() as socket, tempfile.TemporaryDirectory() as home:
        settings = SettingsFile(Path(home) / "tui.json")
        app = RelaydApp(AdminClient(socket), Options("demo", env=_ENV), settings)
        async with app.run_test(size=size) as pilot:
            async with asyncio.timeout(60):
                while app.state.connection is not Connection.LIVE or not app.feed.history.exhausted:  # noqa: ASYNC110 - no event tells
                    await asyncio.sleep(0.05)
            await asyncio.sleep(_LIVELY_AFTER_S)
            await scene(_Scene(app, pilot, directory))


async def _wide(scene: _Scene) -> None:
    await scene.press("e", "e", "e")
    scene.draw("requests")
    await scene.press("end", "3", "right")
    scene.draw("stats")
    await scene.press("4")
    scene.draw("clients")
    # The client web, its oldest living key, everybody who uses that.
    await scene.press("enter", "down", "enter")
    scene.draw("key")
    await scene.press("7")
    scene.draw("usage")
    await scene.press("8")
    scene.draw("config")
    await scene.alert()
    await scene.press("1", "A")
    scene.draw("alerts")


async def _narrow(scene: _Scene) -> None:
    scene.draw("narrow")
    await scene.press("2")
    scene.draw("inflight")
    await scene.press("4", "r")
    scene.draw("rotate")


async def _main(directory: Path) -> None:
    await _play(directory, _WIDE, _wide)
    await _play(directory, _NARROW, _narrow)


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1])))
