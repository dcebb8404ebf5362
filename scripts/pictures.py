"""Draws the terminal app's screens as SVG from the daemon behind `relayd-tui --demo`."""

from __future__ import annotations

import asyncio
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


class _Scene:
    """A running app whose pictures go into a directory."""

    def __init__(self, app: RelaydApp, pilot: Pilot[int], directory: Path) -> None:
        self._app, self._pilot, self._directory = app, pilot, directory

    async def press(self, *keys: str) -> None:
        """Press keys and wait until the screen has settled."""
        await self._pilot.press(*keys)
        await asyncio.sleep(1)
        await self._pilot.pause()

    def draw(self, name: str) -> None:
        """Write the screen to `tui-NAME.svg`."""
        svg = self._app.export_screenshot(title=f"relayd-tui --demo   {name}")
        (self._directory / f"tui-{name}.svg").write_text(svg)


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
