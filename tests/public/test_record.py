"""What a request's headers leave in its record."""

from __future__ import annotations

import pytest

from tests.public.room import KEY, public_room
from tests.wire import ask, body


async def test_who_asked_is_in_the_record() -> None:
    """Client, key, address, origin, program, path and model: and none of it is what was said."""
    headers = {"Origin": "https://page.example", "User-Agent": "curl/8"}
    async with public_room() as room:
        reply = await ask(room.port, KEY, body("demo:deltas=1", user="secret-text"), headers)
        record = await room.book.record()
    assert record.id == reply.header("X-Request-Id")
    assert (record.client, record.key_id, record.ip) == ("default", "key00001", "127.0.0.1")
    assert (record.origin, record.user_agent) == ("https://page.example", "curl/8")
    assert (record.path, record.model, record.boot_id) == ("/chat", "demo:deltas=1", "boot")
    assert "secret-text" not in repr(record)
    assert KEY not in repr(record)


@pytest.mark.parametrize("name", ["User-Agent", "Origin"])
async def test_a_long_header_is_cut(name: str) -> None:
    """200 characters say who it was."""
    async with public_room() as room:
        await ask(room.port, KEY, body("demo:deltas=1"), {name: "x" * 5000})
        record = await room.book.record()
    kept = record.user_agent if name == "User-Agent" else record.origin
    assert kept == "x" * 200
