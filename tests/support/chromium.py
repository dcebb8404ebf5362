"""Headless Chromium, driven over the DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp

from tests.support.browser import Tab, Wire, running

_KEYS: Mapping[str, tuple[str, int, str]] = {
    "Enter": ("Enter", 13, "\r"),
    "Escape": ("Escape", 27, ""),
    "Tab": ("Tab", 9, ""),
}
"""Name: DOM code, virtual key code, text."""
_SHIFT = 8


def chromium() -> str | None:
    """Where Chromium is; None where it is not installed."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Chromium:
    """One that runs."""

    name = "chromium"

    def __init__(self, address: str) -> None:
        self._address = address

    @asynccontextmanager
    async def open_tab(self) -> AsyncIterator[ChromiumTab]:
        """A new tab with nothing remembered; closed on leaving."""
        async with (
            aiohttp.ClientSession() as http,
            http.ws_connect(self._address, max_msg_size=0) as socket,
        ):
            wire = Wire(socket)
            tabs: list[ChromiumTab] = []
            reading = asyncio.create_task(_note(wire, tabs), name="devtools")
            try:
                context = (await wire.call("Target.createBrowserContext", {}))["browserContextId"]
                target = await wire.call(
                    "Target.createTarget", {"url": "about:blank", "browserContextId": context}
                )
                attached = await wire.call(
                    "Target.attachToTarget", {"targetId": target["targetId"], "flatten": True}
                )
                tab = ChromiumTab(wire, attached["sessionId"])
                tabs.append(tab)
                for domain in ("Page", "Runtime", "Log", "Accessibility"):
                    await tab.call(f"{domain}.enable")
                yield tab
                await wire.call("Target.disposeBrowserContext", {"browserContextId": context})
            finally:
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)


async def _note(wire: Wire, tabs: list[ChromiumTab]) -> None:
    async for event in wire.events():
        for tab in tabs:
            tab.note(event["method"], event["params"])


class ChromiumTab(Tab):
    """A tab, and what only Chromium lets one do with it."""

    def __init__(self, wire: Wire, session: str) -> None:
        super().__init__()
        self._wire = wire
        self._session = session

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One DevTools command."""
        return await self._wire.call(method, parameters, sessionId=self._session)

    async def goto(self, url: str) -> None:
        """Open an address and wait until its scripts have run."""
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    async def eval(self, script: str) -> Any:
        """The value of an expression; a promise is waited for."""
        reply = await self.call(
            "Runtime.evaluate",
            expression=script,
            awaitPromise=True,
            returnByValue=True,
            # Else the tool's own scripts are let through the page's policy.
            allowUnsafeEvalBlockedByCSP=False,
        )
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    async def click_at(self, x: float, y: float) -> None:
        """Click a place of the page."""
        for kind in ("mousePressed", "mouseReleased"):
            await self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    async def type(self, text: str) -> None:
        """Type where the focus is."""
        await self.call("Input.insertText", text=text)

    async def press(self, key: str, *, shift: bool = False) -> None:
        """Press and release Enter, Escape or Tab."""
        code, number, text = _KEYS[key]
        common = {
            "key": key,
            "code": code,
            "windowsVirtualKeyCode": number,
            "modifiers": _SHIFT if shift else 0,
        }
        await self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    async def show_as(self, width: int, height: int, *, phone: bool = False, dark: bool = False) -> None:
        """Set the window's size, and whether the person prefers the dark."""
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])

    async def screenshot(self) -> bytes:
        """What is seen, as PNG."""
        return base64.b64decode((await self.call("Page.captureScreenshot", format="png"))["data"])

    async def all_spoken(self) -> list[tuple[str, str]]:
        """Role and name of everything that a screen reader finds."""
        nodes = (await self.call("Accessibility.getFullAXTree"))["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node["ignored"]
        ]

    async def spoken(self, role: str | None, name: str) -> int:
        """How many things with this role (None: any) and this name a screen reader finds."""
        return sum(
            role in {None, its_role} and name == its_name for its_role, its_name in await self.all_spoken()
        )

    def note(self, method: str, parameters: dict[str, Any]) -> None:
        """Keep what the browser complains of."""
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(parameters["exceptionDetails"]))
        elif method == "Log.entryAdded" and parameters["entry"]["source"] in {"security", "javascript"}:
            self.complaints.append(parameters["entry"]["text"])


@contextmanager
def running_chromium(home: Path, *, local_name: str = "") -> Iterator[Chromium]:
    """Start Chromium with an empty profile.

    Args:
        home: an empty directory.
        local_name: a host name that leads to this machine.
    """
    program = chromium()
    assert program is not None
    command = [
        program,
        "--headless=new",
        "--no-sandbox",  # tests may run as root, where its own sandbox refuses to start
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--remote-debugging-port=0",
        # Certificates of test authorities are made on the spot.
        "--ignore-certificate-errors",
        f"--host-resolver-rules=MAP {local_name or 'localhost'} 127.0.0.1",
        f"--user-data-dir={home / 'profile'}",
        "about:blank",
    ]
    told = home / "profile" / "DevToolsActivePort"
    with running(command, home, lambda: _address(told)) as address:
        yield Chromium(address)


def _address(told: Path) -> str | None:
    lines = told.read_text().splitlines() if told.exists() else []
    return f"ws://127.0.0.1:{lines[0]}{lines[1]}" if len(lines) > 1 else None
