"""Headless Firefox, driven over WebDriver BiDi (https://w3c.github.io/webdriver-bidi/)."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.browser import Tab, Wire, running

_KEYS: Mapping[str, str] = {"Enter": "\ue007", "Escape": "\ue00c", "Tab": "\ue004", "Shift": "\ue008"}
"""Names and what WebDriver calls them."""


def firefox() -> str | None:
    """Where Firefox is; None where it is not installed."""
    return shutil.which("firefox-esr") or shutil.which("firefox")


class Firefox:
    """One that runs. It takes one session at a time, so the tabs of a test share one."""

    name = "firefox"

    def __init__(self, address: str) -> None:
        self._address = address
        self._wire: Wire | None = None
        self._tabs: dict[str, FirefoxTab] = {}

    @asynccontextmanager
    async def open_tab(self) -> AsyncIterator[FirefoxTab]:
        """A new tab with nothing remembered; closed on leaving."""
        if self._wire is not None:
            async with self._tab(self._wire) as tab:
                yield tab
            return
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(f"{self._address}/session", max_msg_size=0) as socket,
        ):
            self._wire = wire = Wire(socket)
            reading = asyncio.create_task(self._note(wire), name="bidi")
            try:
                # Certificates of test authorities are made on the spot.
                await wire.call(
                    "session.new", {"capabilities": {"alwaysMatch": {"acceptInsecureCerts": True}}}
                )
                try:
                    await wire.call("session.subscribe", {"events": ["log.entryAdded"]})
                    async with self._tab(wire) as tab:
                        yield tab
                finally:
                    await wire.call("session.end", {})
            finally:
                self._wire = None
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)

    @asynccontextmanager
    async def _tab(self, wire: Wire) -> AsyncIterator[FirefoxTab]:
        user = (await wire.call("browser.createUserContext", {}))["userContext"]
        created = await wire.call("browsingContext.create", {"type": "tab", "userContext": user})
        tab = self._tabs[created["context"]] = FirefoxTab(wire, created["context"])
        try:
            yield tab
            await wire.call("browser.removeUserContext", {"userContext": user})
        finally:
            del self._tabs[created["context"]]

    async def _note(self, wire: Wire) -> None:
        async for event in wire.events():
            if event.get("method") == "log.entryAdded" and event["params"]["level"] == "error":
                tab = self._tabs.get(event["params"]["source"].get("context"))
                if tab is not None:
                    tab.complaints.append(event["params"]["text"])


class FirefoxTab(Tab):
    """A tab of Firefox."""

    def __init__(self, wire: Wire, context: str) -> None:
        super().__init__()
        self._wire = wire
        self._context = context

    async def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return await self._wire.call(method, {"context": self._context, **parameters})

    async def goto(self, url: str) -> None:
        """Open an address and wait until its scripts have run."""
        await self._call("browsingContext.navigate", url=url, wait="complete")

    async def eval(self, script: str) -> Any:
        """The value of an expression; a promise is waited for."""
        reply = await self._wire.call(
            "script.evaluate",
            {
                "expression": f"Promise.resolve({script}).then((value) => JSON.stringify(value))",
                "target": {"context": self._context},
                "awaitPromise": True,
            },
        )
        assert reply["type"] == "success", reply
        value = reply["result"]
        return json.loads(value["value"]) if value["type"] == "string" else None

    async def click_at(self, x: float, y: float) -> None:
        """Click a place of the page."""
        await self._act(
            "pointer",
            {"type": "pointerMove", "x": round(x), "y": round(y)},
            {"type": "pointerDown", "button": 0},
            {"type": "pointerUp", "button": 0},
        )

    async def type(self, text: str) -> None:
        """Type where the focus is."""
        await self._act("key", *(step for key in text for step in _stroke(key)))

    async def press(self, key: str, *, shift: bool = False) -> None:
        """Press and release Enter, Escape or Tab."""
        steps = _stroke(_KEYS[key])
        if shift:
            down, up = _stroke(_KEYS["Shift"])
            steps = [down, *steps, up]
        await self._act("key", *steps)

    async def _act(self, device: str, *steps: dict[str, Any]) -> None:
        await self._call(
            "input.performActions", actions=[{"type": device, "id": device, "actions": list(steps)}]
        )

    async def show_as(self, width: int, height: int, *, phone: bool = False) -> None:
        """Set the window's size."""
        await self._call(
            "browsingContext.setViewport",
            viewport={"width": width, "height": height},
            devicePixelRatio=2 if phone else 1,
        )

    async def spoken(self, role: str | None, name: str) -> int:
        """How many things with this role (None: any) and this name a screen reader finds."""
        locator = {"type": "accessibility", "value": {"name": name} | ({"role": role} if role else {})}
        return len((await self._call("browsingContext.locateNodes", locator=locator))["nodes"])


def _stroke(key: str) -> list[dict[str, Any]]:
    return [{"type": "keyDown", "value": key}, {"type": "keyUp", "value": key}]


@contextmanager
def running_firefox(home: Path) -> Iterator[Firefox]:
    """Start Firefox with an empty profile in an empty directory."""
    program = firefox()
    assert program is not None
    command = [program, "--headless", "--remote-debugging-port", "0", "--profile", str(home)]
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "MOZ_CRASHREPORTER_DISABLE": "1"}
    told = home / "WebDriverBiDiServer.json"
    with running(command, home, lambda: _address(told), env) as address:
        yield Firefox(address)


def _address(told: Path) -> str | None:
    text = told.read_text().rstrip() if told.exists() else ""
    if not text.endswith("}"):
        return None
    server = json.loads(text)
    return f"ws://{server['ws_host']}:{server['ws_port']}"
