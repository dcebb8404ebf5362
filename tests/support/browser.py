"""A browser as a test sees it: keys, clicks, and what is seen. Chromium and Firefox stand behind it.

The process is started once for several tests; each test opens tabs of its own.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import aiohttp

_PATIENCE_S = 60.0
_START_S = 90.0


class Browser(Protocol):
    """One that runs."""

    name: str

    def open_tab(self) -> AbstractAsyncContextManager[Tab]:
        """A new tab with nothing remembered; closed on leaving."""
        ...


class Tab(ABC):
    """One tab in a private context: its own storage, its own cache."""

    def __init__(self) -> None:
        self.complaints: list[str] = []
        """Errors of scripts, and what the browser refused by policy."""

    @abstractmethod
    async def goto(self, url: str) -> None:
        """Open an address and wait until its scripts have run."""

    @abstractmethod
    async def eval(self, script: str) -> Any:
        """The value of an expression; a promise is waited for."""

    @abstractmethod
    async def click_at(self, x: float, y: float) -> None:
        """Click a place of the page."""

    @abstractmethod
    async def type(self, text: str) -> None:
        """Type where the focus is."""

    @abstractmethod
    async def press(self, key: str, *, shift: bool = False) -> None:
        """Press and release Enter, Escape or Tab."""

    @abstractmethod
    async def show_as(self, width: int, height: int, *, phone: bool = False) -> None:
        """Set the window's size."""

    @abstractmethod
    async def spoken(self, role: str | None, name: str) -> int:
        """How many things with this role (None: any) and this name a screen reader finds."""

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
        x, y = await self.eval(
            f"(() => {{ const box = document.querySelector({selector!r}).getBoundingClientRect();"
            " return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        await self.click_at(x, y)


class Wire:
    """Commands and their answers over one WebSocket: the DevTools protocol and WebDriver BiDi alike."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}

    async def call(self, method: str, parameters: Mapping[str, Any], **envelope: Any) -> dict[str, Any]:
        """One command; its result. What the browser refuses fails the test."""
        self._number += 1
        answer = self._waiting[self._number] = asyncio.get_running_loop().create_future()
        message = {"id": self._number, "method": method, "params": parameters, **envelope}
        await self._socket.send_json(message)
        return await asyncio.wait_for(answer, _PATIENCE_S)

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """Everything that is no answer; answers are handed out on the way."""
        async for message in self._socket:
            data: dict[str, Any] = message.json()
            answer = self._waiting.pop(data.get("id") or 0, None)
            if answer is None:
                yield data
            elif "error" in data:
                answer.set_exception(AssertionError(json.dumps(data)))
            else:
                answer.set_result(data["result"])


@contextmanager
def running(
    command: Sequence[str],
    home: Path,
    find_address: Callable[[], str | None],
    env: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """A browser's process and the address it is driven by, as soon as it has told one; ended on leaving.

    Args:
        command: the program and its arguments.
        home: where its own messages go.
        find_address: looks for the address; None while there is none.
        env: its environment; None for this process's.
    """
    messages = home / "browser.log"
    with messages.open("wb") as log:
        process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + _START_S
        while (address := find_address()) is None:
            assert process.poll() is None, messages.read_text()
            assert time.monotonic() < deadline, f"it does not start:\n{messages.read_text()}"
            time.sleep(0.02)
        yield address
    finally:
        process.terminate()
        process.wait(_PATIENCE_S)
