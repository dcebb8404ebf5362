"""Places, open streams, and the ways to end them."""

from __future__ import annotations

import asyncio

import pytest

from relayd.relay.failure import Code, Failure
from tests.relay.room import PROVIDER_KEY, KeptReply, new_record, new_registry, new_stream, upstream_of
from tests.support.upstream import FaultUpstream

_SLOW = "demo:deltas=1000,interval_ms=20"


async def test_places_are_limited_in_all_and_for_each_address() -> None:
    """The sentence says which limit is reached; a place given back can be taken again."""
    registry = new_registry(max_streams=3, max_streams_per_address=2)
    registry.take_place("a")
    registry.take_place("a")
    with pytest.raises(Failure, match="Your address has its limit of 2") as refused:
        registry.take_place("a")
    assert (refused.value.code, refused.value.retry_after_s) == (Code.BUSY, 5)
    registry.take_place("b")
    with pytest.raises(Failure, match="serves its limit of 3") as refused:
        registry.take_place("c")
    assert (refused.value.code, refused.value.retry_after_s) == (Code.BUSY, 5)
    registry.give_back("a")
    registry.take_place("a")


async def test_empty_is_when_no_place_is_taken() -> None:
    """A request whose body still arrives is waited for as well."""
    registry = new_registry()
    assert await registry.wait_empty(0.01)
    registry.take_place("a")
    assert not await registry.wait_empty(0.01)
    registry.give_back("a")
    assert await registry.wait_empty(0.01)


async def test_empty_is_when_the_last_stream_has_recorded_its_end() -> None:
    """The place goes back with the last line; the stream counts until its record is complete."""
    async with upstream_of("http://127.0.0.1:1") as upstream:
        registry = new_registry()
        stream = new_stream(upstream, KeptReply(), _SLOW)
        registry.take_place("a")
        registry.add(stream)
        registry.give_back("a")
        assert not await registry.wait_empty(0.01)
        registry.remove(stream)
        assert await registry.wait_empty(0.01)


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("cancel", Code.CANCELLED),
        ("cut_key", Code.KEY_REVOKED),
        ("stop_all", Code.DRAINING),
    ],
)
async def test_an_open_stream_can_be_ended(how: str, code: Code) -> None:
    """By id, by key, or with all others: it ends with its code, and its provider's request is closed."""
    registry = new_registry()
    async with FaultUpstream(PROVIDER_KEY) as demo, upstream_of(demo.base_url) as upstream:
        reply = KeptReply()
        stream = new_stream(upstream, reply, _SLOW, record=new_record("one", "key1"))
        registry.add(stream)
        running = asyncio.create_task(stream.run(), name="stream")
        await asyncio.wait_for(reply.first.wait(), 30)
        if how == "cancel":
            assert not registry.cancel("two")
            assert registry.cancel("one")
        elif how == "cut_key":
            assert registry.cut_key("key2") == 0
            assert registry.cut_key("key1") == 1
        else:
            assert registry.stop_all(Failure(Code.DRAINING, "The end.")) == 1
        await asyncio.wait_for(running, 30)
        await demo.wait_closed(0)
    assert stream.record.error is not None
    assert stream.record.error.code == code
    assert f'"{code}: '.encode() in reply.sent
    assert reply.sent.count(b'"done":true') == 1


async def test_a_cut_key_ends_the_stream_that_its_request_still_becomes() -> None:
    """A body that arrives after the cut asks the provider for nothing."""
    registry = new_registry()
    async with FaultUpstream(PROVIDER_KEY) as demo, upstream_of(demo.base_url) as upstream:
        registry.cut_key("key1")
        stream = new_stream(upstream, KeptReply(), _SLOW, record=new_record("one", "key1"))
        registry.add(stream)
        await stream.run()
        assert demo.total_requests == 0
    assert stream.record.status == 401


async def test_deltas_are_counted_over_closed_and_open_streams() -> None:
    """The figure never falls when a stream closes."""
    registry = new_registry()
    async with FaultUpstream(PROVIDER_KEY) as demo, upstream_of(demo.base_url) as upstream:
        for n in range(2):
            record = new_record(str(n))
            stream = new_stream(upstream, KeptReply(), "demo:deltas=7,interval_ms=0", record=record)
            registry.add(stream)
            await stream.run()
            assert registry.deltas == 7 * (n + 1)
            registry.remove(stream)
            assert registry.deltas == 7 * (n + 1)
    assert len(registry) == 0


async def test_a_stream_that_begins_after_the_end_of_all_ends_like_them() -> None:
    """A body that arrives while the daemon gives up waiting asks the provider for nothing."""
    registry = new_registry()
    async with FaultUpstream(PROVIDER_KEY) as demo, upstream_of(demo.base_url) as upstream:
        assert registry.stop_all(Failure(Code.DRAINING, "The end.")) == 0
        reply = KeptReply()
        stream = new_stream(upstream, reply, _SLOW)
        registry.add(stream)
        await stream.run()
        assert demo.total_requests == 0
    assert b"draining: The end." in reply.sent
