"""A page of another origin, in real browsers, reads what the relay sends: success, 401s, failures.

The page reads as simply as can be: it splits each piece that it gets on newlines and parses each part.
That works because no write of relayd ends inside a line.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from tornado.httpserver import HTTPServer
from tornado.httputil import HTTPHeaders, HTTPServerRequest, ResponseStartLine
from tornado.netutil import bind_sockets

from tests.e2e.daemon import KEY, Daemon
from tests.harness import running_relay
from tests.support.browser import Browser, Tab
from tests.wire import DONE, HOST

_PAGE = Path(__file__).with_name("page.html")


@asynccontextmanager
async def _page(browser: Browser) -> AsyncIterator[tuple[Tab, str]]:
    """A tab that shows the page, and the page's origin."""

    def serve(request: HTTPServerRequest) -> None:
        assert request.connection is not None
        page = _PAGE.read_bytes() if request.path == "/" else b""
        headers = HTTPHeaders({"Content-Type": "text/html", "Content-Length": str(len(page))})
        # A cookie of the page's site goes along with credentials: "include", and must do no harm.
        headers["Set-Cookie"] = "session=of-the-page"
        request.connection.write_headers(ResponseStartLine("HTTP/1.1", 200, "OK"), headers, page)
        request.connection.finish()

    server = HTTPServer(serve)
    sockets = bind_sockets(0, HOST)
    server.add_sockets(sockets)
    origin = f"http://{HOST}:{sockets[0].getsockname()[1]}"
    try:
        async with browser.open_tab() as tab:
            await tab.goto(f"{origin}/")
            yield tab, origin
    finally:
        server.stop()
        await server.close_all_connections()


async def _ask(tab: Tab, daemon: Daemon, key: str, model: str) -> dict[str, Any]:
    url = json.dumps(f"http://{HOST}:{daemon.port}/chat")
    seen: dict[str, Any] = await tab.eval(f"ask({url}, {json.dumps(key)}, {json.dumps(model)})")
    assert seen["thrown"] is None, seen
    assert seen["pieces"][-1] == DONE
    return seen


async def test_an_answer_is_read_as_it_comes(browser: Browser, daemon: Daemon) -> None:
    """Every piece parses, the text is whole, and it took as long to come as it took to say."""
    async with _page(browser) as (tab, origin):
        seen = await _ask(tab, daemon, KEY, "demo:text=words,deltas=8,interval_ms=100")
    assert (seen["status"], seen["code"]) == (200, None)
    text = "".join(piece["content"] for piece in seen["pieces"] if not piece["done"])
    assert text == "The relay passes each delta on as one "
    assert seen["times"][-1] - seen["times"][0] > 200
    assert any(record.id == seen["id"] and record.origin == origin for record in daemon.records())


@pytest.mark.parametrize("text", ["cjk", "emoji"])
async def test_letters_of_several_bytes_stay_whole(browser: Browser, daemon: Daemon, text: str) -> None:
    """Even a reader that decodes each piece by itself sees no broken character."""
    async with _page(browser) as (tab, _):
        seen = await _ask(tab, daemon, KEY, f"demo:text={text},deltas=12,interval_ms=1,fault=one_byte")
    assert len(seen["pieces"]) == 13
    assert "\ufffd" not in json.dumps(seen["pieces"], ensure_ascii=False)


async def test_a_wrong_key_is_seen_by_the_page(browser: Browser, daemon: Daemon) -> None:
    """The browser lets the page read status, code and sentence of a 401."""
    async with _page(browser) as (tab, _):
        seen = await _ask(tab, daemon, "not-a-key", "demo")
    assert (seen["status"], seen["code"]) == (401, "unauthorized")
    assert seen["id"]
    assert [piece["error"] for piece in seen["pieces"]] == [True, False]


async def test_a_failure_of_the_provider_is_seen_by_the_page(browser: Browser, daemon: Daemon) -> None:
    """The same for what the provider refuses, with its Retry-After."""
    async with _page(browser) as (tab, _):
        seen = await _ask(tab, daemon, KEY, "demo:fault=status,code=429,retry_after=9")
    assert (seen["status"], seen["code"], seen["retry"]) == (429, "upstream_limited", "9")
    assert [piece["error"] for piece in seen["pieces"]] == [True, False]


@pytest.mark.parametrize("fault", ["cut_mid", "error_event", "end_early"])
async def test_a_failure_in_the_middle_is_seen_by_the_page(
    browser: Browser, daemon: Daemon, fault: str
) -> None:
    """The text so far, the error, the end: nothing is thrown at the page."""
    async with _page(browser) as (tab, _):
        seen = await _ask(tab, daemon, KEY, f"demo:text=words,deltas=8,interval_ms=5,fault={fault}")
    assert seen["status"] == 200
    assert [piece["content"] for piece in seen["pieces"][:3]] == ["The ", "relay ", "passes "]
    assert [piece["error"] for piece in seen["pieces"]] == [False, False, False, True, False]


async def test_a_page_that_is_not_listed_reads_nothing(browser: Browser) -> None:
    """With a list of origins, the browser itself keeps other pages out."""
    async with (
        running_relay(cors__allow_origins=["https://page.example"]) as room,
        _page(browser) as (tab, _),
    ):
        url = json.dumps(f"http://{HOST}:{room.port}/chat")
        seen = await tab.eval(f"ask({url}, 'any', 'demo')")
        assert seen["thrown"].startswith("TypeError: ")
        assert seen["pieces"] == []
        assert room.records == []
