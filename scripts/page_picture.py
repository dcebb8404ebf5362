"""Take the picture of the page for the docs: one answer is whole, another is being written."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from playwright.sync_api import expect, sync_playwright

_KEY = "a-key-for-the-picture"


def main(path: str) -> None:
    """Start the demo, ask twice in Chromium, and write the picture to this path."""
    with tempfile.TemporaryDirectory() as home:
        env = {"PATH": os.environ["PATH"], "HOME": home, "AUTHORIZATION_KEY": _KEY, "SERVER_PORT": "0"}
        command = [sys.executable, "-m", "relayd", "serve", "--demo"]
        with subprocess.Popen(command, env=env, cwd=home, stderr=subprocess.PIPE, text=True) as daemon:
            try:
                serving = daemon.stderr.readline() if daemon.stderr else ""
                _take(serving.split("serving on ")[1].split()[0], path)
            finally:
                daemon.terminate()


def _take(url: str, path: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 840, "height": 600})
        page.goto(url)
        page.fill("#key", _KEY)
        for question, awaited in (("Say hi", "#facts >> text=in all"), ("And once more, please", None)):
            page.fill("#text", question)
            page.press("#text", "Enter")
            if awaited:
                page.wait_for_selector(awaited)
        expect(page.locator(".model p").last).to_contain_text("demo upstream")
        page.screenshot(path=path)
        browser.close()


if __name__ == "__main__":
    main(sys.argv[1])
