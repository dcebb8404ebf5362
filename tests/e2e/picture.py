"""Takes the picture of the page for the docs: `python -m tests.e2e.picture docs/img/page.png`."""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

from tests.e2e.daemon import KEY, Daemon
from tests.support.chromium import Chromium, running_chromium

_ANSWERS = "document.querySelectorAll('.model p').length"
_LAST_ANSWER = "[...document.querySelectorAll('.model p')].at(-1).innerText"


async def take(browser: Chromium, port: int) -> bytes:
    """The page of a relay that runs with the demo: one answer is whole, another is being written."""
    async with browser.open_tab() as tab:
        await tab.show_as(840, 600)
        await tab.goto(f"http://127.0.0.1:{port}/")
        await tab.type(KEY)
        await tab.click("#text")
        await tab.type("Say hi")
        await tab.press("Enter")
        await tab.until("document.getElementById('facts').innerText.includes('in all')")
        await tab.type("And once more, please")
        await tab.press("Enter")
        await tab.until(f"{_ANSWERS} === 2 && {_LAST_ANSWER}.includes('about it')")
        return await tab.screenshot()


def main() -> None:
    """Write the picture where the command line says."""
    with tempfile.TemporaryDirectory() as home:
        (Path(home) / "daemon").mkdir()
        with Daemon(Path(home) / "daemon") as daemon, running_chromium(Path(home)) as browser:
            Path(sys.argv[1]).write_bytes(asyncio.run(take(browser, daemon.port)))


if __name__ == "__main__":
    main()
