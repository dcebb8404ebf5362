"""Probes: requests that the relay answers itself, for `relayd doctor`."""

from __future__ import annotations

import msgspec
import pytest

from relayd.public.chatrequest import ChatRules
from relayd.relay.probe import ProbeFacts, Watched, is_probe
from relayd.relay.stream import StreamLimits
from relayd.state.records import Outcome
from tests.public.room import KEY, Room, Setup, public_room
from tests.wire import Reply, Wire, body, post, until

_ID = "0123456789abcdef"


def _facts(reply: Reply) -> ProbeFacts:
    return msgspec.json.decode(reply.text.partition("\n")[0], type=ProbeFacts)


async def _watched(room: Room, watched: str = _ID) -> Watched:
    return msgspec.json.decode((await room.ask(f"relayd-probe:ask={watched}")).text, type=Watched)


async def test_a_probe_streams_at_its_pace_and_no_provider_is_asked() -> None:
    """Its lines come one by one; the answer says who asks; the record looks like any other."""
    async with public_room(Setup(limits=StreamLimits(heartbeat_s=7))) as room:
        reply = await room.ask("relayd-probe:lines=4,interval_ms=40")
        record = await room.book.record()
        assert room.demo.total_requests == 0
    assert reply.error is None
    assert reply.text.partition("\n")[2] == "0 1 2 3 "
    assert reply.pieces[-1][0] - reply.pieces[0][0] >= 0.15
    assert len(reply.pieces) >= 5
    assert (_facts(reply).address, _facts(reply).heartbeat_s) == ("127.0.0.1", 7.0)
    assert (record.outcome, record.model) == (Outcome.COMPLETED, "relayd-probe:lines=4,interval_ms=40")


async def test_its_silence_is_longer_than_a_heartbeat() -> None:
    """Within the silence at least one heartbeat comes, whatever the heartbeat is set to."""
    async with public_room(Setup(limits=StreamLimits(heartbeat_s=0.2))) as room:
        reply = await room.ask("relayd-probe:silence=1")
    contents = [line["content"] for line in reply.lines]
    assert contents[1:] == ["", "awake ", "[DONE]"]


async def test_it_tells_when_a_watched_client_left() -> None:
    """While it streams it is open, after the client's leaving left, after its end done; else unknown."""
    async with public_room() as room:
        assert (await _watched(room)).state == "unknown"
        async with await Wire.open(room.port) as wire:
            wire.send(post(KEY, body(f"relayd-probe:watch={_ID},lines=1000,interval_ms=20")))
            await wire.first_piece(await wire.head())
            assert (await _watched(room)).state == "open"
            wire.finish()
        await until(lambda: len(room.registry) == 0)
        left = await _watched(room)
        assert left.state == "left"
        assert 0 <= left.ago_s < 5
        await room.ask(f"relayd-probe:watch={_ID},lines=1")
        assert (await _watched(room)).state == "done"


async def test_the_list_of_allowed_models_does_not_stop_it() -> None:
    """It reaches no model, so it needs no model's permission; it does need a key."""
    async with public_room(Setup(rules=ChatRules(default_model="a", allowed_models=("a",)))) as room:
        assert (await room.ask("relayd-probe")).status == 200
        assert (await room.ask("b")).status == 403


@pytest.mark.parametrize(
    "script",
    [
        "lines=-1",
        "lines=1001",
        "lines=x",
        "lines=¹",
        "interval_ms=1001",
        "silence=2",
        "watch=x",
        "ask=",
        "y=1",
        "lines",
    ],
)
async def test_a_script_that_cannot_be_read_is_refused_by_name(script: str) -> None:
    """The sentence says which part is not known."""
    async with public_room() as room:
        reply = await room.ask(f"relayd-probe:{script}")
    assert reply.status == 400
    assert reply.error == f"bad_request: relayd-probe does not know {script!r}."


def test_only_its_own_name_is_a_probe() -> None:
    """A provider's model whose name merely begins alike is not taken for one."""
    assert is_probe("relayd-probe")
    assert is_probe("relayd-probe:lines=1")
    assert not is_probe("relayd-probes")
    assert not is_probe("gpt-relayd-probe")
