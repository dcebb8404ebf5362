"""Which pages may read what the relay says (Fetch standard, "CORS protocol")."""

from __future__ import annotations

import pytest

from tests.harness import KEY, running_relay
from tests.wire import Reply, Wire, ask, body, fetch, post

_PAGE = "https://page.example"
_ASKED = {
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-requested-with",
}
_QUICK = "demo:deltas=1"


async def _preflight(port: int, origin: str = _PAGE, path: str = "/chat", **more: str) -> Reply:
    return await fetch(port, path, {"Origin": origin, **_ASKED, **more}, method="OPTIONS")


def _cors(reply: Reply) -> set[str]:
    return {name for name, _ in reply.headers if name.startswith("Access-Control")}


@pytest.mark.parametrize("path", ["/chat", "/healthz", "/", "/page.js", "/nowhere", "*"])
@pytest.mark.parametrize("private", [False, True])
async def test_a_preflight_needs_no_key(path: str, private: bool) -> None:  # noqa: FBT001 - the example
    """204 with all that a browser asks for, at every path, a relay in its private network included."""
    asked = {"Access-Control-Request-Private-Network": "true"} if private else {}
    async with running_relay() as relay:
        reply = await _preflight(relay.port, path=path, **asked)
    assert (reply.status, reply.body, reply.header("Content-Length")) == (204, b"", None)
    cors = {name: value for name, value in reply.headers if name.startswith("Access-Control-")}
    assert cors == {
        "Access-Control-Allow-Origin": _PAGE,
        "Access-Control-Allow-Credentials": "true",
        "Access-Control-Allow-Methods": "GET, POST, OPTIONS",
        "Access-Control-Allow-Headers": "Content-Type, Authorization, X-Requested-With",
        "Access-Control-Max-Age": "7200",
        "Access-Control-Expose-Headers": "X-Request-Id, X-Relayd-Error, Retry-After",
        **({"Access-Control-Allow-Private-Network": "true"} if private else {}),
    }
    assert reply.header("Vary") == "Origin"


async def test_a_connection_is_kept_after_a_preflight() -> None:
    """The request that follows uses the same connection, as in browsers; only that one is recorded."""
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        wire.send(post(KEY, b"{}", {"Origin": _PAGE, **_ASKED}).replace(b"POST", b"OPTIONS", 1))
        assert (await wire.reply()).status == 204
        wire.send(post(KEY, body(_QUICK), {"Origin": _PAGE}))
        reply = await wire.reply()
        assert reply.status == 200
        assert (await relay.record()).id == reply.header("X-Request-Id")


async def test_any_origin_is_echoed_by_default() -> None:
    """Never `*`, which pages that fetch with credentials do not accept."""
    async with running_relay() as relay:
        for origin in ("http://localhost:5173", "null", "capacitor://app"):
            reply = await _preflight(relay.port, origin)
            assert reply.header("Access-Control-Allow-Origin") == origin


@pytest.mark.parametrize(
    ("status", "request_bytes"),
    [
        (200, post(KEY, body(_QUICK), {"Origin": _PAGE})),
        (400, post(KEY, b"{", {"Origin": _PAGE})),
        (401, post("wrong", body(_QUICK), {"Origin": _PAGE})),
        (404, post(KEY, b"", {"Origin": _PAGE}, path="/nowhere")),
        (405, post(KEY, b"", {"Origin": _PAGE}, path="/healthz")),
    ],
)
async def test_a_page_may_read_every_answer(status: int, request_bytes: bytes) -> None:
    """Refusals too, and the headers that say why and when to come back."""
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        wire.send(request_bytes)
        answer = await wire.reply()
    assert answer.status == status
    assert answer.header("Access-Control-Allow-Origin") == _PAGE
    assert answer.header("Access-Control-Allow-Credentials") == "true"
    assert answer.header("Access-Control-Expose-Headers") == "X-Request-Id, X-Relayd-Error, Retry-After"
    assert answer.header("Vary") == "Origin"


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "https://page.example.evil.example", "http://page.example", "null"]
)
async def test_a_list_admits_exact_matches_only(origin: str) -> None:
    """Another page gets no CORS header, on a preflight or on a reply; caches are told all the same."""
    async with running_relay(cors__allow_origins=[_PAGE, "https://two.example"]) as relay:
        assert (await _preflight(relay.port)).header("Access-Control-Allow-Origin") == _PAGE
        private = {"Access-Control-Request-Private-Network": "true"}
        refused = await _preflight(relay.port, origin, **private)
        reply = await ask(relay.port, KEY, body(_QUICK), {"Origin": origin})
    for answer in (refused, reply):
        assert not _cors(answer)
        assert answer.header("Vary") == "Origin"


async def test_without_an_origin_there_is_nothing_to_allow() -> None:
    """A program that is no page gets no CORS headers."""
    async with running_relay() as relay:
        assert not _cors(await relay.ask(_QUICK))
        assert not _cors(await fetch(relay.port, "/chat", method="OPTIONS"))


async def test_no_cookie_is_set_or_read() -> None:
    """What `credentials: "include"` sends along changes nothing, and the provider does not get it."""
    async with running_relay() as relay:
        reply = await ask(relay.port, KEY, body(_QUICK), {"Origin": _PAGE, "Cookie": "a=b; session=x"})
        assert "cookie" not in relay.upstream.requests[0].headers
    assert (reply.status, reply.header("Set-Cookie")) == (200, None)
