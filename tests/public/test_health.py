"""What load balancers, deploy scripts and lost clients find beside /chat."""

from __future__ import annotations

import json

import pytest

from tests.harness import Relay, running_relay
from tests.wire import Reply, Wire, body, fetch, post

_JSON = "application/json; charset=utf-8"


async def _get(relay: Relay, path: str) -> Reply:
    reply = await fetch(relay.port, path)
    assert reply.header("Content-Type") == _JSON
    assert reply.header("Cache-Control") == "no-store"
    return reply


async def test_health_says_that_the_process_serves() -> None:
    """200 whether requests are accepted or not."""
    async with running_relay() as relay:
        for change in (relay.server.accepting.pause, relay.server.accepting.drain):
            reply = await _get(relay, "/healthz")
            assert (reply.status, json.loads(reply.body)) == (200, {"status": "ok"})
            change()
        assert (await _get(relay, "/healthz")).status == 200


async def test_readiness_says_that_requests_are_accepted() -> None:
    """503 with the reason while the operator has paused the relay, and while it stops."""
    async with running_relay() as relay:
        ready = await _get(relay, "/readyz")
        assert (ready.status, json.loads(ready.body)) == (200, {"status": "ready"})
        relay.server.accepting.pause()
        paused = await _get(relay, "/readyz")
        assert paused.status == 503
        assert json.loads(paused.body) == {
            "status": "paused",
            "reason": "The operator paused this relay; try again later.",
        }
        relay.server.accepting.resume()
        assert (await _get(relay, "/readyz")).status == 200
        relay.server.accepting.drain()
        draining = await _get(relay, "/readyz")
        assert draining.status == 503
        assert json.loads(draining.body)["status"] == "draining"


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


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE"])
async def test_every_other_path_is_not_found_in_json(method: str) -> None:
    """The answer names the path that was meant."""
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        for path in ("/nowhere", "/chat/", "/chats", "/admin", "/v2", "/..%2f", "/healthz/x"):
            wire.send(post(None, body(), path=path).replace(b"POST", method.encode(), 1))
            reply = await wire.reply()
            assert reply.status == 404, path
            assert reply.header("Content-Type") == _JSON
            assert (reply.header("Server"), reply.header("Allow")) == (None, None)
            assert json.loads(reply.body) == {
                "error": {
                    "code": "not_found",
                    "message": "There is nothing at this path; send requests for a model to POST /chat.",
                }
            }


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "BREW"])
async def test_a_method_that_a_path_does_not_have_is_refused(method: str) -> None:
    """405 in JSON, with those that it has."""
    async with running_relay() as relay:
        for path in ("/healthz", "/readyz", "/"):
            reply = await fetch(relay.port, path, method=method)
            assert reply.status == 405, path
            assert reply.header("Allow") == "GET, HEAD, OPTIONS"
            assert json.loads(reply.body)["error"]["code"] == "method_not_allowed"
