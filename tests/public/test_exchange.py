"""The head and the end of a reply that is written straight to its connection."""

from __future__ import annotations

import json
from email.utils import parsedate_to_datetime
from time import time

import pytest

from relayd.relay.failure import Code
from relayd.state.records import Outcome
from tests.public.room import KEY, Setup, public_room
from tests.wire import DONE, Wire, ask, body, post

_ONE = "demo:text=words,deltas=1,interval_ms=0"


async def test_a_reply_says_what_time_it_is() -> None:
    """A server with a clock must (RFC 9110, 6.6.1); `relayd doctor` compares it with its own."""
    async with public_room() as room:
        for reply in (await room.ask(_ONE), await ask(room.port, "wrong", body(_ONE))):
            assert abs(parsedate_to_datetime(reply.header("Date") or "").timestamp() - time()) < 30


async def test_each_field_of_a_head_is_there_once() -> None:
    """Good replies and refusals, before and after the body was read."""
    async with public_room(Setup(max_body_bytes=300)) as room, await Wire.open(room.port) as wire:
        for sent in (post(KEY, body(_ONE)), post(KEY, b"{"), post(KEY, body(_ONE, user="x" * 400))):
            wire.send(sent)
            reply = await wire.reply()
            names = [name.lower() for name, _ in reply.headers]
            assert len(names) == len(set(names)), names
            assert ("content-length" in names) is not ("transfer-encoding" in names)
            assert {"date", "vary", "x-request-id", "cache-control", "x-content-type-options"} <= set(names)


@pytest.mark.parametrize("value", ["close", "Close", "TE, close", "close,x"])
async def test_a_connection_that_the_client_ends_is_ended(value: str) -> None:
    """The reply says so, is whole, and nothing comes after it."""
    async with public_room() as room, await Wire.open(room.port) as wire:
        wire.send(post(KEY, body(_ONE), {"Connection": value}))
        reply = await wire.reply()
        assert reply.header("Connection") == "close"
        assert reply.lines[-1] == DONE
        assert await wire.ended() == b""


async def test_a_refusal_while_draining_ends_the_connection() -> None:
    """A client that comes again must find another process behind the address."""
    async with public_room() as room, await Wire.open(room.port) as wire:
        room.intake.drain()
        wire.send(post(KEY, body(_ONE)))
        reply = await wire.reply()
        assert reply.status == 503
        assert reply.header("Connection") == "close"
        assert reply.header("Retry-After") is not None
        assert reply.header("X-Relayd-Error") == Code.DRAINING
        assert await wire.ended() == b""


async def test_the_path_may_carry_a_query() -> None:
    """It is not looked at, and not kept: a key could be in it."""
    async with public_room() as room, await Wire.open(room.port) as wire:
        wire.send(post(KEY, body(_ONE)).replace(b"/chat", b"/chat?key=secret", 1))
        assert (await wire.reply()).status == 200
        assert (await room.book.record()).path == "/chat"


async def test_other_paths_read_no_endless_body() -> None:
    """`/healthz` and what is not there answer as ever; nobody is asked for a key."""
    async with public_room() as room, await Wire.open(room.port) as wire:
        wire.send(post(KEY, b"{}").replace(b"/chat", b"/chats", 1))
        reply = await wire.reply()
        assert reply.status == 404
        assert json.loads(reply.body)["error"]["code"] == "not_found"


async def test_a_preflight_with_a_body_is_a_preflight() -> None:
    """Nothing of the body is wanted."""
    async with public_room() as room, await Wire.open(room.port) as wire:
        wire.send(post(KEY, b"{}", {"Origin": "https://page.example"}).replace(b"POST", b"OPTIONS", 1))
        assert (await wire.head()).status == 204


async def test_a_bug_in_admission_is_told_and_recorded(caplog: pytest.LogCaptureFixture) -> None:
    """The client gets 500 in lines, the log the traceback, and the place is free."""
    async with public_room() as room:
        room.keys.trouble = ZeroDivisionError("a bug")
        reply = await room.ask(_ONE)
        record = await room.book.record()
        assert await room.registry.wait_empty(5)
    assert reply.status == 500
    assert reply.error is not None
    assert reply.error.startswith("internal: ")
    assert reply.lines[-1] == DONE
    assert record.outcome is Outcome.CRASHED
    assert f"request {record.id} met a bug" in caplog.text
