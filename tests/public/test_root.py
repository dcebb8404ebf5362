"""`GET /` and the page's files, as HTTP shows them."""

from __future__ import annotations

import re

import pytest

from relayd.public.root import load_page
from tests.public.room import Setup, public_room
from tests.wire import Reply, Wire


async def _get(port: int, path: str, *headers: str, method: str = "GET") -> Reply:
    async with await Wire.open(port) as wire:
        wire.send("\r\n".join([f"{method} {path} HTTP/1.1", "Host: relay", *headers, "", ""]).encode())
        reply = await wire.head()
        if method == "GET" and reply.status != 304:
            async for _ in wire.pieces(reply):
                pass
        return reply


@pytest.mark.parametrize("name", ["", *load_page()])
async def test_every_file_of_the_page_comes_with_a_strict_policy(name: str) -> None:
    """Each file has its type and a policy that admits nothing inline and nothing from elsewhere."""
    async with public_room() as room:
        reply = await _get(room.port, f"/{name}")
    policy = reply.header("Content-Security-Policy") or ""
    assert reply.status == 200
    assert reply.body
    assert (reply.header("Content-Type") or "").startswith(("text/", "image/svg+xml"))
    assert policy.startswith("default-src 'none'; script-src 'self'; ")
    assert not re.search(r"unsafe|https?:|data:|\*", policy)
    assert reply.header("X-Content-Type-Options") == "nosniff"
    assert reply.header("Set-Cookie") is None


def test_the_page_needs_nothing_from_elsewhere() -> None:
    """No file names another host, no script or style stands inline, and what is named is there."""
    page = load_page()
    html = page["index.html"].decode()
    texts = [data.decode().replace("http://www.w3.org/2000/svg", "") for data in page.values()]
    assert not any("://" in text or 'src="//' in text or "@import" in text for text in texts)
    assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=", html)
    named = set(re.findall(r'(?:href|src)="([^"]+)"', html)) | {"chat.js"}
    assert named == set(page) - {"index.html"}


async def test_a_browser_that_has_a_file_is_not_sent_it_again() -> None:
    """If-None-Match with the current tag is answered 304."""
    async with public_room() as room:
        tag = (await _get(room.port, "/page.js")).header("Etag")
        assert tag
        assert (await _get(room.port, "/page.js", f"If-None-Match: {tag}")).status == 304


async def test_head_is_get_without_the_file() -> None:
    """HEAD says what GET would send."""
    async with public_room() as room:
        reply = await _get(room.port, "/", method="HEAD")
    assert reply.status == 200
    assert reply.header("Content-Length") == str(len(load_page()["index.html"]))


async def test_the_page_can_be_turned_off() -> None:
    """Without it `/` says in two sentences what this is, and the page's files are not there."""
    async with public_room(Setup(page=None)) as room:
        reply = await _get(room.port, "/")
        assert reply.status == 200
        assert b"relay for chat completions" in reply.body
        assert b"<script" not in reply.body
        assert (await _get(room.port, "/page.js")).status == 404


async def test_other_files_are_not_there() -> None:
    """Only the page's own files are served, whatever the path tries."""
    async with public_room() as room:
        for path in ("/root.py", "/page", "/page/page.js", "/../root.py", "/page.js/", "/pageXjs"):
            assert (await _get(room.port, path)).status == 404, path
