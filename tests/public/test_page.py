"""`GET /` and the page's files, as HTTP shows them; tests/e2e/test_page.py looks at them in browsers."""

from __future__ import annotations

import re

import pytest

from relayd.public.page import load_page
from tests.harness import running_relay
from tests.wire import fetch

_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css", "svg": "image/svg+xml"}


@pytest.mark.parametrize("name", ["", *load_page()])
async def test_every_file_of_the_page_comes_with_a_strict_policy(name: str) -> None:
    """Each file has its type and a policy that admits nothing inline and nothing from elsewhere."""
    async with running_relay() as relay:
        reply = await fetch(relay.port, f"/{name}")
    kind = _TYPES[(name or "index.html").rpartition(".")[2]]
    policy = reply.header("Content-Security-Policy") or ""
    assert reply.status == 200
    assert reply.body == load_page()[name or "index.html"]
    assert (reply.header("Content-Type") or "").partition(";")[0] == kind
    assert policy.startswith("default-src 'none'; script-src 'self'; ")
    assert "frame-ancestors 'none'" in policy
    assert not re.search(r"unsafe|https?:|data:|\*", policy)
    assert reply.header("Cross-Origin-Opener-Policy") == "same-origin"
    assert reply.header("Referrer-Policy") == "no-referrer"
    assert reply.header("X-Content-Type-Options") == "nosniff"
    assert reply.header("Cache-Control") == "no-cache"
    assert reply.header("Set-Cookie") is None


def test_the_page_needs_nothing_from_elsewhere() -> None:
    """No file names another host, no script or style stands inline, and what is named is there."""
    page = load_page()
    html = page["index.html"].decode()
    scripts = "".join(data.decode() for name, data in page.items() if name.endswith(".js"))
    texts = [data.decode().replace("http://www.w3.org/2000/svg", "") for data in page.values()]
    assert not any('src="//' in text or "@import" in text or 'from "http' in text for text in texts)
    assert not re.search(r"""=["']?https?:|url\(""", html + page["page.css"].decode())
    assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=", html)
    named = re.findall(r'(?:href|src)="([^"]+)"', html) + re.findall(r'from "\./([^"]+)"', scripts)
    assert set(named) == set(page) - {"index.html"}


async def test_a_browser_that_has_a_file_is_not_sent_it_again() -> None:
    """If-None-Match with the current tag is answered 304, another tag with the file."""
    async with running_relay() as relay:
        tag = (await fetch(relay.port, "/page.js")).header("Etag")
        assert tag
        assert (await fetch(relay.port, "/page.js", {"If-None-Match": tag})).status == 304
        assert (await fetch(relay.port, "/page.js", {"If-None-Match": '"other"'})).status == 200


async def test_head_is_get_without_the_body() -> None:
    """With the length of the file."""
    async with running_relay() as relay:
        reply = await fetch(relay.port, "/", method="HEAD")
    assert reply.status == 200
    assert reply.header("Content-Length") == str(len(load_page()["index.html"]))


async def test_the_page_can_be_turned_off() -> None:
    """Without it `/` says in two sentences what this is, and the page's files are not there."""
    async with running_relay(server__page=False) as relay:
        reply = await fetch(relay.port, "/")
        assert reply.status == 200
        assert b"relay for chat completions" in reply.body
        assert b"<script" not in reply.body
        assert (await fetch(relay.port, "/page.js")).status == 404


async def test_only_the_pages_own_files_are_served() -> None:
    """Whatever the path tries."""
    async with running_relay() as relay:
        for path in ("/page.py", "/page", "/static/page.js", "/../page.py", "/page.js/", "/pageXjs"):
            assert (await fetch(relay.port, path)).status == 404, path
