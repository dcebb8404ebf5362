"""Draws the app's screens as SVG, from a seeded daemon at a fixed time: the same pictures every time."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from textual.pilot import Pilot

from tui.app import Options, RelaydApp
from tui.demo.link import DemoLink
from tui.model.app_state import Connection
from tui.settings import SettingsFile

_NOON_S = 1_790_000_000.0
_WIDE, _NARROW = (140, 40), (80, 24)
_ENV = {"COLORTERM": "truecolor", "TERM": "xterm-256color"}


class _Play:
    """One app on a frozen daemon."""

    def __init__(self, app: RelaydApp, link: DemoLink, pilot: Pilot[int], directory: Path) -> None:
        self._app, self._link, self._pilot, self._directory = app, link, pilot, directory

    async def ready(self) -> None:
        for _ in range(1200):
            if self._app.state.connection is Connection.LIVE and self._app.feed.history.exhausted:
                return
            await asyncio.sleep(0.05)

    async def go_on(self, seconds: int) -> None:
        for _ in range(seconds):
            await self._link.advance(1)
            await asyncio.sleep(0.02)
        self._app.feed.look_soon()
        await asyncio.sleep(0.6)
        await self._pilot.pause()

    async def press(self, *keys: str) -> None:
        await self._pilot.press(*keys)
        await asyncio.sleep(0.4)
        await self._pilot.pause()

    def take(self, name: str) -> None:
        svg = self._app.export_screenshot(title=f"relayd-tui --demo   {name}")
        (self._directory / f"tui-{name}.svg").write_text(svg)


async def draw(directory: Path) -> None:
    """Write every picture into this directory."""
    await _scene(directory, _WIDE, _wide)
    await _scene(directory, _NARROW, _narrow)


async def _scene(directory: Path, size: tuple[int, int], play: Callable[[_Play], Awaitable[None]]) -> None:
    link = DemoLink(seed=4, clock=lambda: _NOON_S, moves=False)
    with tempfile.TemporaryDirectory() as home:
        app = RelaydApp(
            link, Options("demo", env=_ENV), SettingsFile(Path(home) / "tui.json"), now_s=link.now_s
        )
        async with app.run_test(size=size) as pilot:
            scene = _Play(app, link, pilot, directory)
            await scene.ready()
            await scene.go_on(40)
            await play(scene)


async def _wide(scene: _Play) -> None:
    await scene.press("e", "e", "e")
    scene.take("requests")
    await scene.press("end", "3", "right", "right")
    await asyncio.sleep(2)
    scene.take("stats")
    await scene.press("4", "end")
    scene.take("keys")


async def _narrow(scene: _Play) -> None:
    scene.take("narrow")
    await scene.press("2")
    scene.take("inflight")
    await scene.press("4", "r")
    scene.take("rotate")


if __name__ == "__main__":
    Path(sys.argv[1]).mkdir(parents=True, exist_ok=True)
    asyncio.run(draw(Path(sys.argv[1])))
