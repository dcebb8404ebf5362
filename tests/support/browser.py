"""Headless Chromium, driven over the DevTools protocol as a person would: keys, clicks, what is seen.

The process is started once for several tests; each test opens tabs of its own.
"""

from __future__ import annotations

import asyncio
import base64
import shutil
import subprocess
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp

_START_S = 60.0
_PATIENCE_S = 20.0
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


@contextmanager
def running_chromium(home: Path, *, local_name: str = "") -> Iterator[str]:
    """Start Chromium with an empty profile; yields its DevTools address.

    Args:
        home: an empty directory.
        local_name: a host name that leads to this machine.
    """
    program = chromium()
    assert program is not None
    with (home / "chromium.log").open("wb") as log:
        process = subprocess.Popen(
            [
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
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield _address(process, home)
    finally:
        process.terminate()
        process.wait(_PATIENCE_S)


def _address(process: subprocess.Popen[bytes], home: Path) -> str:
    told = home / "profile" / "DevToolsActivePort"
    deadline = time.monotonic() + _START_S
    while not (told.exists() and len(told.read_text().splitlines()) > 1):
        assert process.poll() is None, (home / "chromium.log").read_text()
        assert time.monotonic() < deadline, "Chromium does not start"
        time.sleep(0.02)
    port, path = told.read_text().splitlines()
    return f"ws://127.0.0.1:{port}{path}"


class Tab:
    """One tab in a private context: its own storage, its own cache."""

    def __init__(self, wire: _Wire, session: str) -> None:
        self._wire = wire
        self._session = session
        self.complaints: list[str] = []
        """Errors of scripts, and what the browser refused by policy."""

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One DevTools command."""
        return await self._wire.call(method, parameters, self._session)

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

    async def until(self, condition: str) -> None:
        """Wait until an expression is true."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while not await self.eval(condition):  # noqa: ASYNC110 - the page announces nothing
                    await asyncio.sleep(0.01)
        except TimeoutError:
            shown = await self.eval("document.body?.innerText")
            raise AssertionError(f"never held: {condition}; the page shows: {shown!r}") from None

    async def text(self, selector: str) -> str:
        """What is seen of an element."""
        return str(await self.eval(f"document.querySelector({selector!r}).innerText"))

    async def click(self, selector: str) -> None:
        """Click the middle of an element."""
        place = await self.eval(
            f"(() => {{ const box = document.querySelector({selector!r}).getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            await self.call(
                "Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1
            )

    async def type(self, text: str) -> None:
        """Type where the focus is."""
        await self.call("Input.insertText", text=text)

    async def press(self, key: str, *, shift: bool = False) -> None:
        """Press and release a key by its name."""
        code, number, text = _KEYS[key]
        common = {
            "key": key,
            "code": code,
            "windowsVirtualKeyCode": number,
            "modifiers": _SHIFT if shift else 0,
        }
        await self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        await self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    async def show_as(self, width: int, height: int, *, dark: bool = False, phone: bool = False) -> None:
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

    async def spoken(self) -> list[tuple[str, str]]:
        """Role and name of everything that a screen reader finds."""
        nodes = (await self.call("Accessibility.getFullAXTree"))["nodes"]
        return [
            (node["role"]["value"], node.get("name", {}).get("value", ""))
            for node in nodes
            if not node["ignored"]
        ]

    def note(self, method: str, parameters: dict[str, Any]) -> None:
        """Keep what the browser complains of."""
        if method == "Runtime.exceptionThrown":
            self.complaints.append(str(parameters["exceptionDetails"]))
        elif method == "Log.entryAdded" and parameters["entry"]["source"] in {"security", "javascript"}:
            self.complaints.append(parameters["entry"]["text"])


class _Wire:
    """Commands and their answers over one WebSocket."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.tabs: dict[str, Tab] = {}

    async def call(
        self, method: str, parameters: Mapping[str, Any], session: str | None = None
    ) -> dict[str, Any]:
        self._number += 1
        answer = self._waiting[self._number] = asyncio.get_running_loop().create_future()
        message = {"id": self._number, "method": method, "params": parameters}
        await self._socket.send_json(message | ({"sessionId": session} if session else {}))
        return await asyncio.wait_for(answer, _PATIENCE_S)

    async def read(self) -> None:
        async for message in self._socket:
            data = message.json()
            answer = self._waiting.pop(data.get("id"), None)
            if answer is None:
                tab = self.tabs.get(data.get("sessionId"))
                if tab is not None:
                    tab.note(data["method"], data["params"])
            elif "error" in data:
                answer.set_exception(AssertionError(data["error"]["message"]))
            else:
                answer.set_result(data["result"])


@asynccontextmanager
async def open_tab(address: str) -> AsyncIterator[Tab]:
    """A new tab with nothing remembered; closed on leaving."""
    async with aiohttp.ClientSession() as http, http.ws_connect(address, max_msg_size=0) as socket:
        wire = _Wire(socket)
        reading = asyncio.create_task(wire.read(), name="devtools")
        try:
            context = (await wire.call("Target.createBrowserContext", {}))["browserContextId"]
            target = await wire.call(
                "Target.createTarget", {"url": "about:blank", "browserContextId": context}
            )
            attached = await wire.call(
                "Target.attachToTarget", {"targetId": target["targetId"], "flatten": True}
            )
            tab = wire.tabs[attached["sessionId"]] = Tab(wire, attached["sessionId"])
            for domain in ("Page", "Runtime", "Log", "Accessibility"):
                await tab.call(f"{domain}.enable")
            yield tab
            await wire.call("Target.disposeBrowserContext", {"browserContextId": context})
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
