"""Probes: requests that the relay answers itself, for `relayd doctor`."""

from __future__ import annotations

import msgspec
import pytest

from relayd.relay.probe import ProbeFacts, WatchedProbe, is_probe
from relayd.state.records import Outcome
from tests.harness import KEY, Relay, running_relay
from tests.wire import Reply, Wire, body, post, until

_ID = "0123456789abcdef"


def _facts(reply: Reply) -> ProbeFacts:
    return msgspec.json.decode(reply.text.partition("\n")[0], type=ProbeFacts)


async def _watched(relay: Relay) -> WatchedProbe:
    return msgspec.json.decode((await relay.ask(f"relayd-probe:ask={_ID}")).text, type=WatchedProbe)


async def test_a_probe_streams_at_its_pace_and_no_provider_is_asked() -> None:
    """Its lines come one by one; the answer says who asks; the record looks like any other."""
    async with running_relay(chat__heartbeat_s=7) as relay:
        reply = await relay.ask("relayd-probe:lines=4,interval_ms=40")
        record = await relay.record()
        assert relay.upstream.total_requests == 0
    assert reply.error is None
    assert reply.text.partition("\n")[2] == "0 1 2 3 "
    assert reply.pieces[-1][0] - reply.pieces[0][0] >= 0.15
    assert len(reply.pieces) >= 5
    facts = _facts(reply)
    assert (facts.address, facts.heartbeat_s, facts.silence_s) == ("127.0.0.1", 7.0, 10.5)
    assert (record.outcome, record.model) == (Outcome.COMPLETED, "relayd-probe:lines=4,interval_ms=40")
    assert record.finish_reason == "stop"


@pytest.mark.parametrize(
    ("heartbeat_s", "idle_timeout_s", "silence_s"), [(10, 12, 10.8), (600, 900, 60.0), (15, 60, 22.5)]
)
async def test_its_silence_is_longer_than_a_heartbeat_and_shorter_than_any_limit(
    heartbeat_s: float, idle_timeout_s: float, silence_s: float
) -> None:
    """And never longer than a minute."""
    async with running_relay(chat__heartbeat_s=heartbeat_s, upstream__idle_timeout_s=idle_timeout_s) as relay:
        facts = _facts(await relay.ask("relayd-probe"))
    assert facts.silence_s == pytest.approx(silence_s)


async def test_within_its_silence_a_heartbeat_comes() -> None:
    """It shows what a proxy does with a quiet stream."""
    async with running_relay(chat__heartbeat_s=1) as relay:
        reply = await relay.ask("relayd-probe:silence=1")
    assert [line["content"] for line in reply.lines][1:] == ["", "awake ", "[DONE]"]


async def test_it_tells_what_became_of_a_watched_client() -> None:
    """Open while it streams, left after the client's leaving, done after its end; else unknown."""
    async with running_relay() as relay:
        assert (await _watched(relay)).state == "unknown"
        async with await Wire.open(relay.port) as wire:
            wire.send(post(KEY, body(f"relayd-probe:watch={_ID},lines=1000,interval_ms=20")))
            await wire.first_piece(await wire.head())
            assert (await _watched(relay)).state == "open"
            wire.finish()
        await until(lambda: any(record.outcome is Outcome.CLIENT_CLOSED for record in relay.records))
        left = await _watched(relay)
        assert left.state == "left"
        assert 0 <= left.ago_s < 30
        await relay.ask(f"relayd-probe:watch={_ID},lines=1")
        assert (await _watched(relay)).state == "done"


async def test_only_so_many_watched_clients_are_remembered() -> None:
    """The oldest are forgotten."""
    async with running_relay() as relay:
        await relay.ask(f"relayd-probe:watch={_ID}")
        for number in range(255):
            await relay.ask(f"relayd-probe:watch={number:08x}")
        assert (await _watched(relay)).state == "done"
        await relay.ask("relayd-probe:watch=fffffffff")
        assert (await _watched(relay)).state == "unknown"


async def test_the_list_of_allowed_models_does_not_stop_it() -> None:
    """It reaches no model, so it needs no model's permission; it does need a key."""
    async with running_relay(chat__allowed_models=["demo"]) as relay:
        assert (await relay.ask("relayd-probe")).status == 200
        assert (await relay.ask("other")).status == 403
        async with await Wire.open(relay.port) as wire:
            wire.send(post("a-wrong-key-of-some-length", body("relayd-probe")))
            assert (await wire.reply()).status == 401


async def test_a_script_that_cannot_be_read_is_refused_by_name() -> None:
    """The sentence says which part is not known, as far as it is short."""
    wrong = [
        "lines=-1",
        "lines=1001",
        "lines=x",
        "lines=¹",
        "interval_ms=1001",
        "silence=2",
        "watch=x",
        "ask=",
    ]
    async with running_relay() as relay:
        for part in [*wrong, "y=1", "lines"]:
            reply = await relay.ask(f"relayd-probe:lines=1,{part}")
            assert (reply.status, reply.error) == (400, f"bad_request: relayd-probe does not know {part!r}.")
        reply = await relay.ask(f"relayd-probe:{'x' * 100}")
    assert reply.error == f"bad_request: relayd-probe does not know {'x' * 40!r}."


def test_a_probe_is_known_by_its_name() -> None:
    """No other model's name is taken for one."""
    assert is_probe("relayd-probe")
    assert is_probe("relayd-probe:lines=1")
    assert not is_probe("relayd-probes")
    assert not is_probe("x-relayd-probe")
