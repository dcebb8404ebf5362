"""Which requests are admitted: by key, by the state of the relay, and within the limits."""

from __future__ import annotations

import json
import math
import time
from contextlib import AsyncExitStack
from http import HTTPStatus
from typing import Any

import pytest
from tornado.web import HTTPError

from relayd.public.v1 import V1Handler
from relayd.state.key_operations import Caller
from relayd.state.keyring import KeyRing
from relayd.state.records import Outcome, Peer
from tests.harness import KEY, Relay, running_relay
from tests.wire import DONE, Reply, Wire, ask, body, fetch, post, until

_QUICK = "demo:text=words,deltas=1,interval_ms=0"
_OPERATOR = Caller(Peer(uid=1000, pid=1, login="operator"))
_HELD = "demo:fault=stall_headers"
_UNAUTHORIZED = "unauthorized: The Authorization header has no valid key."


async def _ask_from(relay: Relay, address: str, model: str = _QUICK) -> Reply:
    """Ask as a client of this address behind a trusted proxy."""
    return await ask(relay.port, KEY, body(model), {"X-Forwarded-For": address})


@pytest.mark.parametrize("value", [KEY, f"Bearer {KEY}", f"bEaReR \t{KEY} ", f" {KEY}"])
async def test_a_key_may_come_with_and_without_its_scheme(value: str) -> None:
    """Both forms of the header are the same key, whose use is noted."""
    async with running_relay() as relay:
        assert (await ask(relay.port, value, body(_QUICK))).status == 200
        (key,) = relay.state.ring.keys()
        assert key.last_used_ip == "127.0.0.1"


@pytest.mark.parametrize(
    "values",
    [
        [],
        [""],
        ["Bearer"],
        ["Bearer "],
        [f"Basic {KEY}"],
        [f"Bearer Bearer {KEY}"],
        [f"{KEY}, {KEY}"],
        [KEY, KEY],
        [KEY, "other"],
        [KEY.upper()],
        [f"{KEY}x"],
        [f"{KEY}\xa0"],
        [f"\x85{KEY}"],
        ["ÿ" * 20],
        [f"rly_{'A' * 8}_{'B' * 49}"],
        ["k" * (8 << 10)],
    ],
)
async def test_everything_else_is_unauthorized_in_the_same_words(values: list[str]) -> None:
    """Nothing tells one wrong key from another; the provider hears of none, and the record names no key."""
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        lines = b"".join(b"Authorization: " + value.encode("latin-1") + b"\r\n" for value in values)
        wire.send(post(None, body(_QUICK)).replace(b"\r\n\r\n", b"\r\n" + lines + b"\r\n", 1))
        reply = await wire.reply()
        record = await relay.record()
        (key,) = relay.state.ring.keys()
        assert relay.upstream.total_requests == 0
    assert reply.status == 401
    assert reply.error == _UNAUTHORIZED
    assert reply.lines[-1] == DONE
    assert reply.header("X-Relayd-Error") == "unauthorized"
    assert reply.header("WWW-Authenticate") == "Bearer"
    assert reply.header("Retry-After") is None
    assert (record.outcome, record.status, record.key_id, record.client) == (Outcome.DENIED, 401, None, None)
    assert key.last_used_at is None


async def test_a_dead_key_is_refused_like_any_other_and_recorded_with_its_client() -> None:
    """The operator learns whom to tell; the client learns nothing."""
    async with running_relay() as relay:
        key_id = relay.state.ring.keys()[0].id
        await relay.state.ring.revoke(key_id, cut=False, caller=_OPERATOR)
        reply = await relay.ask(_QUICK)
        record = await relay.record()
    assert (reply.status, reply.error) == (401, _UNAUTHORIZED)
    assert (record.outcome, record.key_id, record.client) == (Outcome.DENIED, key_id, "default")


async def test_a_wrong_key_is_answered_before_anything_else() -> None:
    """Neither the size of the body nor the state of the relay is shown to a client without a key."""
    async with running_relay(server__max_body_bytes=10) as relay:
        relay.server.accepting.pause()
        assert (await ask(relay.port, "wrong", body(_QUICK))).status == 401
        assert (await relay.ask(_QUICK)).status == 503, "a paused relay says so whatever the size"
        relay.server.accepting.resume()
        assert (await relay.ask(_QUICK)).status == 413


async def test_a_paused_relay_refuses_until_it_is_resumed() -> None:
    """The error tells when to come back; the connection stays."""
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        relay.server.accepting.pause()
        wire.send(post(KEY, body(_QUICK)))
        reply = await wire.reply()
        assert reply.status == 503
        assert reply.error == "draining: The operator paused this relay; try again later."
        assert reply.header("X-Relayd-Error") == "draining"
        assert reply.header("Retry-After") == "30"
        assert reply.lines[-1] == DONE
        record = await relay.record()
        assert (record.outcome, record.status) == (Outcome.REJECTED, 503)
        relay.server.accepting.resume()
        wire.send(post(KEY, body(_QUICK)))
        assert (await wire.reply()).status == 200


async def test_a_draining_relay_refuses_and_ends_the_connection() -> None:
    """Open streams go on; a client that comes again must find another process behind the address."""
    async with running_relay() as relay, AsyncExitStack() as stack:
        streaming, idle = [await stack.enter_async_context(await Wire.open(relay.port)) for _ in range(2)]
        streaming.send(post(KEY, body("demo:text=words,deltas=5,interval_ms=100")))
        head = await streaming.head()
        relay.server.request_stop()
        idle.send(post(KEY, body(_QUICK)))
        reply = await idle.reply()
        assert reply.status == 503
        assert reply.error == "draining: This relay is stopping; try again shortly."
        assert reply.header("Retry-After") == "5"
        assert reply.header("Connection") == "close"
        assert await idle.ended() == b""
        with pytest.raises(ConnectionRefusedError):
            await Wire.open(relay.port)
        await streaming.rest(head)
        assert (head.error, head.text) == (None, "The relay passes each delta ")


_IN_ALL = "busy: This relay has reached its limit of 2 open streams; try again shortly."
_OF_ONE = "busy: Your address has reached its limit of 2 open streams; close one or try again shortly."


@pytest.mark.parametrize(
    ("setting", "mine", "same", "other", "said"),
    [
        ("server__max_streams", "192.0.2.1", "192.0.2.3", None, _IN_ALL),
        ("server__max_streams_per_address", "192.0.2.1", "192.0.2.1", "192.0.2.2", _OF_ONE),
        (
            "server__max_streams_per_address",
            *("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", "2001:db8:1:3::1"),
            _OF_ONE,
        ),
        ("server__max_streams_per_address", "::ffff:192.0.2.1", "192.0.2.1", "::ffff:192.0.2.2", _OF_ONE),
    ],
)
async def test_streams_are_limited_in_all_and_for_each_address(
    setting: str, mine: str, same: str, other: str | None, said: str
) -> None:
    """An IPv6 address counts as its /64, others are not affected, and each end of a stream frees one slot."""
    settings: dict[str, Any] = {setting: 2}
    async with running_relay(**settings) as relay, AsyncExitStack() as stack:

        async def hold(n: int) -> Wire:
            wire = await stack.enter_async_context(await Wire.open(relay.port))
            wire.send(post(KEY, body(_HELD), {"X-Forwarded-For": mine}))
            await relay.upstream.wait_request(n)
            return wire

        async def is_refused() -> None:
            reply = await _ask_from(relay, same)
            assert (reply.status, reply.error) == (429, said)
            assert (reply.header("X-Relayd-Error"), reply.header("Retry-After")) == ("busy", "5")

        wire = await hold(0)
        await hold(1)
        await is_refused()
        record = await relay.record()
        assert (record.outcome, record.status) == (Outcome.REJECTED, 429)
        assert other is None or (await _ask_from(relay, other)).status == 200
        ended = 1 + (other is not None)
        wire.reset()
        await relay.record(ended)
        assert (await _ask_from(relay, same)).status == 200
        await relay.record(ended + 1)
        await hold(ended + 2)
        await is_refused()


async def test_a_claimed_address_counts_only_from_a_trusted_proxy() -> None:
    """Without one, the connection's other end is the client."""
    async with running_relay(server__trusted_proxies=[]) as relay:
        assert (await _ask_from(relay, "192.0.2.1")).status == 200
        assert (await relay.record()).ip == "127.0.0.1"


async def test_a_slot_is_taken_before_the_body_and_given_back_without_it() -> None:
    """A client that sends no body holds one until its time is over."""
    async with running_relay(server__max_streams=1) as relay:
        async with await Wire.open(relay.port) as wire:
            wire.send(post(KEY, b"{", {"Expect": "100-continue"}, length=100))
            assert (await wire.head()).status == 100
            assert (await relay.ask(_QUICK)).status == 429
        await relay.record(1)
        assert (await relay.ask(_QUICK)).status == 200


async def test_keys_work_from_memory_while_the_database_is_down_and_then_no_key_is_called_invalid() -> None:
    """A valid key works until `state.stale_after_s`, then it gets 503 on every route, never 401.

    A key that is not known here may have been made elsewhere: it gets 503 from the beginning. No key, and a
    key that is known as dead, stay 401. When the database is back, all is as before.
    """

    async def statuses(relay: Relay, key: str | None) -> list[tuple[int, str | None]]:
        async with await Wire.open(relay.port) as wire:
            replies = []
            for path in ("/chat", "/v1/chat/completions"):
                wire.send(post(key, body(_QUICK), path=path))
                replies.append(await wire.reply())
        replies.append(await fetch(relay.port, "/v1/usage", {} if key is None else {"Authorization": key}))
        assert {reply.header("Retry-After") for reply in replies if reply.status == 503} <= {"5"}
        return [(reply.status, reply.header("X-Relayd-Error")) for reply in replies]

    works = [(200, None)] * 3
    unauthorized, unavailable = [(401, "unauthorized")] * 3, [(503, "state_unavailable")] * 3
    async with running_relay() as relay:
        ring = relay.state.ring
        dead = await ring.add("dead", caller=_OPERATOR)
        await ring.revoke(dead.key.id, cut=False, caller=_OPERATOR)
        ring.stale_after_s = 300
        ring.confirm(time.monotonic() - 200)
        ring.doubt()
        assert await statuses(relay, KEY) == works
        assert await statuses(relay, "a key that another instance made") == unavailable
        assert await statuses(relay, dead.secret) == unauthorized
        assert await statuses(relay, None) == unauthorized
        assert (await fetch(relay.port, "/readyz")).status == 200
        ring.confirm(time.monotonic() - 301)
        for key in (KEY, "a key that another instance made", dead.secret):
            assert await statuses(relay, key) == unavailable
        ready = await fetch(relay.port, "/readyz")
        assert (ready.status, json.loads(ready.body)["status"]) == (503, "no database")
        ring.confirm(time.monotonic())
        assert await statuses(relay, KEY) == works
        assert await statuses(relay, "a key that another instance made") == unauthorized
        await until(lambda: sum(record.status == 503 for record in relay.records) == 4 * 3)
        said = {
            record.error.message[:35] for record in relay.records if record.error and record.status == 503
        }
        assert said == {"The database cannot be asked, and t", "The database could not be asked for"}


@pytest.mark.parametrize("worker", [None, 1])
async def test_how_long_keys_work_from_memory_changes_with_a_reload(worker: int | None) -> None:
    """`state.stale_after_s` holds where other processes may change keys; the only process needs no limit."""
    async with running_relay(worker=worker, state__stale_after_s=7) as relay:
        assert relay.state.ring.stale_after_s == (7 if worker else math.inf)
        changed = relay.settings.state.model_copy(update={"stale_after_s": 8})
        relay.server._apply(relay.settings.model_copy(update={"state": changed}))
        assert relay.state.ring.stale_after_s == (8 if worker else math.inf)


async def test_a_bug_in_admission_is_told_and_recorded(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The client gets 500 in lines, the log the traceback, and nothing stays open."""

    def fail(*_args: object) -> None:
        raise ZeroDivisionError("a bug")

    async with running_relay(server__body_timeout_s=1) as relay:
        with monkeypatch.context() as patched:
            patched.setattr(KeyRing, "record_use", fail)
            reply = await relay.ask(_QUICK)
        record = await relay.record()
        assert (await relay.ask(_QUICK)).status == 200
        async with await Wire.open(relay.port) as wire:
            # Its body's time is longer than that of the request before.
            wire.send(post(KEY, b"{", length=100))
            assert (await wire.reply()).status == 400
        assert len({known.id for known in relay.records}) == len(relay.records)
    assert reply.status == 500
    assert reply.error == (
        "internal: This relay has a bug and could not answer; its log has the details under request "
        f"{record.id}."
    )
    assert reply.lines[-1] == DONE
    assert (record.outcome, record.status) == (Outcome.CRASHED, 500)
    assert f"request {record.id} met a bug" in caplog.text
    assert "ZeroDivisionError" in caplog.text


async def test_what_the_framework_refuses_holds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is recorded, and the next request on the connection finds everything free."""

    def fail(*_args: object) -> None:
        raise HTTPError(HTTPStatus.BAD_REQUEST)

    async with running_relay(server__max_streams=1) as relay, await Wire.open(relay.port) as wire:
        with monkeypatch.context() as patched:
            patched.setattr(V1Handler, "ask", fail)
            for n in range(2):
                wire.send(post(KEY, body(_QUICK), path="/v1/chat/completions"))
                assert (await wire.reply()).status == HTTPStatus.BAD_REQUEST
                record = await relay.record(n)
                assert (record.outcome, record.status) == (Outcome.REJECTED, HTTPStatus.BAD_REQUEST)
        wire.send(post(KEY, body(_QUICK), path="/v1/chat/completions"))
        assert (await wire.reply()).status == HTTPStatus.OK


async def test_a_flood_of_wrong_keys_does_not_stop_a_good_one() -> None:
    """Each is answered on its own, and the connection stays for the next."""
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        for _ in range(100):
            wire.send(post("wrong", b"{}"))
            assert (await wire.reply()).status == 401
        wire.send(post(KEY, body(_QUICK)))
        assert (await wire.reply()).status == 200
        await until(lambda: len(relay.records) == 61)
        assert (await fetch(relay.port, "/healthz")).status == 200
