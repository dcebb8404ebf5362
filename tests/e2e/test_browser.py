"""A page of another origin, in a real browser, reads what the relay sends: success, 401s, failures.

The page reads as simply as can be: it splits each piece that it gets on newlines and parses each part.
That works because no write of relayd ends inside a line.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from playwright.async_api import Page

from tests.e2e.daemon import KEY, Daemon
from tests.support.browser import open_page, page_server
from tests.support.certificates import certificate
from tests.wire import DONE, HOST, until

_PAGE = Path(__file__).with_name("page.html")


@asynccontextmanager
async def _page(**context: Any) -> AsyncIterator[tuple[Page, str]]:
    """The page and its origin; its site's cookie goes along to the relay and must do no harm."""
    async with page_server(_PAGE.read_bytes()) as origin, open_page(**context) as page:
        await page.goto(f"{origin}/")
        yield page, origin


async def _ask(page: Page, port: int, model: str, key: str = KEY) -> dict[str, Any]:
    seen: dict[str, Any] = await page.evaluate(
        "([url, key, model]) => ask(url, key, model)", [f"http://{HOST}:{port}/chat", key, model]
    )
    return seen


async def _seen(page: Page, daemon: Daemon, model: str, key: str = KEY) -> dict[str, Any]:
    seen = await _ask(page, daemon.port, model, key)
    assert seen["thrown"] is None, seen
    assert seen["pieces"][-1] == DONE
    return seen


async def test_an_answer_is_read_as_it_comes(daemon: Daemon) -> None:
    """Every piece parses and the text is whole; it is seen before the model says more.

    Even a reader that decodes each piece by itself sees no broken character.
    """
    async with _page() as (page, origin):
        seen = await _seen(page, daemon, "demo:text=words,deltas=8,interval_ms=5")
        assert (seen["status"], seen["code"]) == (200, None)
        text = "".join(piece["content"] for piece in seen["pieces"] if not piece["done"])
        assert text == "The relay passes each delta on as one "
        sent = seen["id"], origin
        await until(lambda: any((record.id, record.origin) == sent for record in daemon.records()))
        for script in ("cjk", "emoji"):
            seen = await _seen(page, daemon, f"demo:text={script},deltas=12,interval_ms=1,fault=one_byte")
            assert len(seen["pieces"]) == 13
            assert "\ufffd" not in json.dumps(seen["pieces"], ensure_ascii=False)
        asking = asyncio.create_task(_ask(page, daemon.port, "demo:text=words,interval_ms=5,fault=stall_mid"))
        await page.wait_for_function(
            "seen.pieces.map((piece) => piece.content).join('') === 'The relay passes '"
        )
        assert not asking.done()
        await page.close()
        await asyncio.gather(asking, return_exceptions=True)


async def test_a_failure_is_seen_by_the_page(daemon: Daemon) -> None:
    """The browser lets it read status, code, request id, sentence and Retry-After, and throws nothing."""
    async with _page() as (page, _):
        for model, key, *expected in (
            ("demo", "not-a-key", 401, "unauthorized", None),
            ("demo:fault=status,code=429,retry_after=9", KEY, 429, "upstream_limited", "9"),
        ):
            seen = await _seen(page, daemon, model, key)
            assert [seen["status"], seen["code"], seen["retry"]] == expected
            assert seen["id"]
            assert [piece["error"] for piece in seen["pieces"]] == [True, False]
        for fault in ("cut_mid", "error_event", "end_early"):
            seen = await _seen(page, daemon, f"demo:text=words,deltas=8,interval_ms=5,fault={fault}")
            assert seen["status"] == 200
            assert [piece["content"] for piece in seen["pieces"][:3]] == ["The ", "relay ", "passes "]
            assert [piece["error"] for piece in seen["pieces"]] == [False, False, False, True, False]


@pytest.fixture(scope="module", params=["http", "https"])
def address(
    request: pytest.FixtureRequest, daemon: Daemon, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[str]:
    """Where /chat is, over each of both protocols."""
    if request.param == "http":
        yield f"http://{HOST}:{daemon.port}/chat"
        return
    home = tmp_path_factory.mktemp("https")
    certificate(home, f"IP:{HOST}", days=2)
    tls = {"tls.cert": str(home / "chain.pem"), "tls.key": str(home / "key.pem")}
    with Daemon(home, settings=tls) as secure:
        yield f"https://{HOST}:{secure.port}/chat"


@pytest.mark.timeout(seconds=1800)
async def test_a_beginning_longer_than_chromiums_first_read_stays_whole(address: str, *, large: bool) -> None:
    """Chromium reads 4,096 bytes first, head included: no answer may be cut inside a line there."""
    async with _page(ignore_https_errors=True) as (page, _):
        for model in (
            "demo:text=words,deltas=380,interval_ms=0,fault=coalesced,batch=1000",
            "demo:text=x6000,deltas=1,interval_ms=0",
            "demo:text=x6000,deltas=3,interval_ms=0",
        ):
            thrown = await page.evaluate(
                "([url, key, model, n]) => askManyTimes(url, key, model, n)",
                [address, KEY, model, 500 if large else 10],
            )
            assert thrown == [], model


async def test_a_page_that_is_not_listed_reads_nothing(tmp_path: Path) -> None:
    """With a list of origins, the browser itself keeps other pages out."""
    settings = {"cors.allow_origins": ["https://another.example"]}
    with Daemon(tmp_path, settings=settings) as daemon:
        async with _page() as (page, _):
            seen = await _ask(page, daemon.port, "demo")
        assert seen["thrown"].startswith("TypeError: ")
        assert seen["pieces"] == []
        assert daemon.records() == []
