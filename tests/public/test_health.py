"""What load balancers, people and the lost find beside /chat."""

from __future__ import annotations

import json

import pytest

from tests.public.room import Room, public_room
from tests.wire import Reply, Wire


async def _get(room: Room, path: str, method: str = "GET") -> Reply:
    async with await Wire.open(room.port) as wire:
        wire.send(f"{method} {path} HTTP/1.1\r\nHost: relay\r\nOrigin: https://page.example\r\n\r\n".encode())
        return await wire.reply()


async def test_health_is_that_the_process_serves() -> None:
    """200 whatever the intake does."""
    async with public_room() as room:
        for change in (room.intake.pause, room.intake.drain):
            reply = await _get(room, "/healthz")
            assert (reply.status, json.loads(reply.body)) == (200, {"status": "ok"})
            change()
        assert (await _get(room, "/healthz")).status == 200


async def test_readiness_is_that_work_is_taken() -> None:
    """503 with the reason while the operator has paused, and while the daemon stops."""
    async with public_room() as room:
        assert (await _get(room, "/readyz")).status == 200
        room.intake.pause()
        paused = await _get(room, "/readyz")
        assert paused.status == 503
        assert json.loads(paused.body) == {
            "status": "paused",
            "reason": "The operator paused this relay; try again later.",
        }
        room.intake.resume()
        assert (await _get(room, "/readyz")).status == 200
        room.intake.drain()
        assert json.loads((await _get(room, "/readyz")).body)["status"] == "draining"


@pytest.mark.parametrize("path", ["/nowhere", "/chat/", "/admin", "/v2", "/..%2f", "/healthz/x"])
async def test_every_other_path_is_not_found_in_json(path: str) -> None:
    """It names the path that was meant, and can be read by a page; nothing is recorded."""
    async with public_room() as room:
        reply = await _get(room, path)
        assert room.book.opened == []
    assert reply.status == 404
    assert json.loads(reply.body)["error"]["code"] == "not_found"
    assert "POST /chat" in json.loads(reply.body)["error"]["message"]
    assert reply.header("Access-Control-Allow-Origin") == "https://page.example"
    assert reply.header("Server") is None


@pytest.mark.parametrize("path", ["/healthz", "/readyz"])
@pytest.mark.parametrize("method", ["PUT", "DELETE", "PATCH"])
async def test_a_method_that_is_not_there_is_refused(path: str, method: str) -> None:
    """405 in JSON."""
    async with public_room() as room:
        reply = await _get(room, path, method)
    assert reply.status == 405
    assert json.loads(reply.body)["error"]["code"] == "method_not_allowed"
