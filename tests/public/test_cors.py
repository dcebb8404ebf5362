"""Which pages may read what the relay says (Fetch standard, "CORS protocol")."""

from __future__ import annotations

import pytest

from tests.public.room import KEY, Setup, public_room
from tests.wire import Reply, Wire, body, post

_PAGE = "https://page.example"
_PREFLIGHT = (
    b"OPTIONS %b HTTP/1.1\r\nHost: relay\r\nOrigin: %b\r\n"
    b"Access-Control-Request-Method: POST\r\n"
    b"Access-Control-Request-Headers: authorization,content-type,x-requested-with\r\n\r\n"
)


async def _preflight(port: int, origin: str = _PAGE, path: str = "/chat") -> Reply:
    async with await Wire.open(port) as wire:
        wire.send(_PREFLIGHT % (path.encode(), origin.encode()))
        return await wire.reply()


@pytest.mark.parametrize("path", ["/chat", "/healthz", "/readyz", "/", "/nowhere"])
async def test_a_preflight_needs_no_key(path: str) -> None:
    """204 with all that a browser asks for, at every path; nothing is recorded."""
    async with public_room() as room:
        reply = await _preflight(room.port, path=path)
        assert room.book.opened == []
    assert (reply.status, reply.body) == (204, b"")
    assert reply.header("Access-Control-Allow-Origin") == _PAGE
    assert reply.header("Access-Control-Allow-Credentials") == "true"
    assert reply.header("Access-Control-Allow-Methods") == "GET, POST, OPTIONS"
    assert reply.header("Access-Control-Allow-Headers") == "Content-Type, Authorization, X-Requested-With"
    assert reply.header("Access-Control-Max-Age") == "7200"
    assert reply.header("Vary") == "Origin"


async def test_a_connection_goes_on_after_a_preflight() -> None:
    """The request that follows it uses the same connection, as browsers do."""
    async with public_room() as room, await Wire.open(room.port) as wire:
        wire.send(_PREFLIGHT % (b"/chat", _PAGE.encode()))
        assert (await wire.reply()).status == 204
        wire.send(post(KEY, body("demo:deltas=1"), {"Origin": _PAGE}))
        assert (await wire.reply()).status == 200


@pytest.mark.parametrize("origin", [_PAGE, "http://localhost:5173", "null", "capacitor://app"])
async def test_any_origin_is_echoed_by_default(origin: str) -> None:
    """Never `*`, which pages that fetch with credentials do not accept."""
    async with public_room() as room:
        assert (await _preflight(room.port, origin)).header("Access-Control-Allow-Origin") == origin


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "https://page.example.evil.example", "http://page.example", "null"]
)
async def test_a_list_admits_exact_matches_only(origin: str) -> None:
    """Another page gets no CORS header, on a preflight or on a reply; caches are told all the same."""
    async with public_room(Setup(origins=[_PAGE, "https://two.example"])) as room:
        assert (await _preflight(room.port)).header("Access-Control-Allow-Origin") == _PAGE
        refused = await _preflight(room.port, origin)
        async with await Wire.open(room.port) as wire:
            wire.send(post(KEY, body("demo:deltas=1"), {"Origin": origin}))
            reply = await wire.reply()
    for answer in (refused, reply):
        assert not [name for name, _ in answer.headers if name.startswith("Access-Control")]
        assert answer.header("Vary") == "Origin"


async def test_without_an_origin_there_is_nothing_to_allow() -> None:
    """A program that is no page gets no CORS headers."""
    async with public_room() as room:
        reply = await room.ask("demo:deltas=1")
    assert not [name for name, _ in reply.headers if name.startswith("Access-Control")]


async def test_no_cookie_is_set_or_read() -> None:
    """What `credentials: "include"` sends along changes nothing."""
    async with public_room() as room, await Wire.open(room.port) as wire:
        wire.send(post(KEY, body("demo:deltas=1"), {"Origin": _PAGE, "Cookie": "a=b; session=x"}))
        reply = await wire.reply()
        assert "cookie" not in room.demo.requests[0].headers
    assert reply.header("Set-Cookie") is None
