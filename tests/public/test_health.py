"""What load balancers, deploy scripts and lost clients find beside /chat."""

from __future__ import annotations

import json

import pytest

from tests.harness import running_relay
from tests.wire import Wire, body, fetch, post

_JSON = "application/json; charset=utf-8"
_LOST = "There is nothing at this path; send requests for a model to POST /chat."


async def test_health_and_readiness_follow_what_is_accepted() -> None:
    """`/healthz` is 200 while the process serves; `/readyz` is 503 with the reason while it takes no work."""
    ready = (200, {"status": "ready"})
    paused = {"status": "paused", "reason": "The operator paused this relay; try again later."}
    stopping = {"status": "draining", "reason": "This relay is stopping; try again shortly."}
    async with running_relay() as relay:
        for change, expected in (
            ("resume", ready),
            ("pause", (503, paused)),
            ("resume", ready),
            ("drain", (503, stopping)),
        ):
            getattr(relay.server.accepting, change)()
            for path, answer in (("/healthz", (200, {"status": "ok"})), ("/readyz", expected)):
                reply = await fetch(relay.port, path)
                assert (reply.status, json.loads(reply.body)) == answer
                assert (reply.header("Content-Type"), reply.header("Cache-Control")) == (_JSON, "no-store")


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
async def test_head_is_get_without_the_body(path: str) -> None:
    """Some load balancers ask with HEAD."""
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        full = await fetch(relay.port, path)
        for _ in range(2):
            wire.send(f"HEAD {path} HTTP/1.1\r\nHost: relay\r\n\r\n".encode())
            head = await wire.head()
            assert head.status == full.status == 200
            assert head.header("Content-Length") == full.header("Content-Length") == str(len(full.body))


async def test_every_other_path_is_not_found_in_json() -> None:
    """With every method and a body; the answer names the path that was meant."""
    paths = ("/nowhere", "/chat/", "/chats", "/admin", "/v2", "/..%2f", "/healthz/x")
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        for path, method in (*((path, b"POST") for path in paths), ("/x", b"GET"), ("/x", b"DELETE")):
            wire.send(post(None, body(), path=path).replace(b"POST", method, 1))
            reply = await wire.reply()
            assert (reply.status, reply.header("Content-Type")) == (404, _JSON)
            assert (reply.header("Server"), reply.header("Allow")) == (None, None)
            assert json.loads(reply.body) == {"error": {"code": "not_found", "message": _LOST}}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "BREW"])
async def test_a_method_that_a_path_does_not_have_is_refused(method: str) -> None:
    """405 in JSON, with those that it has."""
    async with running_relay() as relay:
        for path in ("/healthz", "/readyz", "/"):
            reply = await fetch(relay.port, path, method=method)
            assert (reply.status, reply.header("Allow")) == (405, "GET, HEAD, OPTIONS")
            assert json.loads(reply.body)["error"]["code"] == "method_not_allowed"
