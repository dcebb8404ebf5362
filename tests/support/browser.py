"""Debian's Chromium, headless and with an empty profile, driven by Playwright."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from playwright.async_api import ConsoleMessage, Page, async_playwright, expect

from tests.support.programs import require
from tests.wire import HOST, PATIENCE_S

_PATIENCE_MS = PATIENCE_S * 1000
expect.set_options(timeout=_PATIENCE_MS)
_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@asynccontextmanager
async def open_page(*arguments: str, **context: Any) -> AsyncIterator[Page]:
    """Open a page; skip the test if Chromium is not installed.

    Args:
        arguments: more arguments for Chromium.
        context: settings of Playwright's `new_context`, such as `viewport` or `color_scheme`.
    """
    require("chromium")
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=[*_ARGUMENTS, *arguments]
        )
        try:
            page = await (await browser.new_context(**context)).new_page()
            page.set_default_timeout(_PATIENCE_MS)
            yield page
        finally:
            await browser.close()


def errors_of(page: Page) -> list[str]:
    """Return a list that fills with the errors of the page's scripts and of its security policy."""
    errors: list[str] = []

    def note(message: ConsoleMessage) -> None:
        # A reply that is not 200 is an error for the console, not for the page.
        if message.type == "error" and not message.text.startswith("Failed to load resource"):
            errors.append(message.text)

    page.on("console", note)
    page.on("pageerror", lambda error: errors.append(str(error)))
    return errors


@asynccontextmanager
async def page_server(page: bytes) -> AsyncIterator[str]:
    """Serve one page, with a cookie, from an origin of its own; yield the origin.

    Not Playwright's `route`: that would answer preflights in the browser's stead.
    """

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            request = await reader.readuntil(b"\r\n\r\n")
            body = page if request.startswith(b"GET / ") else b""
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nSet-Cookie: session=of-the-page\r\n")
            writer.write(b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
            await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, HOST, 0) as server:
        yield f"http://{HOST}:{server.sockets[0].getsockname()[1]}"
