"""`relayd.public.penalty`: the table alone, and what an address that fails sees over sockets."""

from __future__ import annotations

import asyncio
import time

from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.public import penalty
from relayd.public.address import network_of
from relayd.public.penalty import Penalties
from relayd.state.records import Outcome
from tests.public.room import KEY, Setup, public_room
from tests.wire import Reply, Wire, body, post, until

_WRONG = "a-key-that-is-wrong"
_QUICK = "demo:text=words,deltas=1,interval_ms=0,first_ms=0"


class _Clock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


async def _ask(port: int, key: str, ip: str) -> Reply:
    async with await Wire.open(port) as wire:
        wire.send(post(key, body(_QUICK), {"X-Forwarded-For": ip}))
        return await wire.reply()


def test_each_failure_costs_more_up_to_a_bound() -> None:
    """The first ones are free; then the time doubles; it never passes the bound."""
    penalties = Penalties(_Clock())
    assert [penalties.failed("a") for _ in range(10)] == [0, 0, 0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0]
    assert max(penalties.failed("a") for _ in range(1000)) == penalty.MAX_HOLD_S
    assert penalties.failed("b") == 0


def test_failures_are_forgotten_with_time() -> None:
    """One each half minute, and all of any number within a quarter of an hour."""
    clock = _Clock()
    penalties = Penalties(clock)
    for _ in range(5):
        penalties.failed("a")
    clock.now_s += penalty.FORGIVEN_EVERY_S
    assert penalties.failed("a") == 0.2
    for _ in range(10_000):
        penalties.failed("a")
    clock.now_s += 15 * 60
    assert penalties.failed("a") == 0


@settings(max_examples=4)
@given(st.lists(st.integers(0, 30_000), max_size=50))
def test_the_table_is_bounded_and_forgets_the_oldest(networks: list[int]) -> None:
    """However many addresses fail, no more are kept; one that still fails is not the one forgotten."""
    penalties = Penalties(_Clock())
    for _ in range(9):
        penalties.failed("persistent")
    for number in range(penalty.MAX_NETWORKS - 1):
        penalties.failed(str(number))
    assert penalties.failed("persistent") > penalty.FIRST_HOLD_S
    for number in networks:
        penalties.failed(f"new {number}")
    assert len(penalties) <= penalty.MAX_NETWORKS
    assert penalties.failed("persistent") > penalty.FIRST_HOLD_S


def test_only_so_many_refusals_are_held() -> None:
    """Of one network and in all; what is let go makes room again."""
    penalties = Penalties(_Clock())
    held = [penalties.held("a") for _ in range(penalty.MAX_HELD_PER_NETWORK)]
    assert all([one.__enter__() for one in held])  # noqa: C419 - each must be entered
    with penalties.held("a") as is_held:
        assert not is_held
    with penalties.held("b") as is_held:
        assert is_held
    for one in held:
        one.__exit__(None, None, None)
    with penalties.held("a") as is_held:
        assert is_held


def test_an_ipv6_site_counts_as_one() -> None:
    """All of a /64 is one client, each IPv4 address another, whichever way it is written."""
    assert network_of("2001:db8:1:2:3:4:5:6") == network_of("2001:0db8:1:2::") == "2001:db8:1:2::/64"
    assert network_of("2001:db8:1:3::") != network_of("2001:db8:1:2::")
    assert network_of("::ffff:192.0.2.7") == network_of("192.0.2.7") == "192.0.2.7"
    assert network_of("192.0.2.8") != network_of("192.0.2.7")
    assert network_of("no address") == "no address"


async def test_a_penalised_address_waits_for_the_same_401_and_its_neighbour_does_not() -> None:
    """The forwarded address is what counts; a valid key from the very same address is served at once."""
    async with public_room() as room:
        replies = [await _ask(room.port, _WRONG, "203.0.113.9") for _ in range(4)]
        began = time.monotonic()
        last = await _ask(room.port, _WRONG, "203.0.113.9")
        waited_s = time.monotonic() - began
        assert waited_s >= 0.2
        assert {(reply.status, reply.body) for reply in [*replies, last]} == {(401, last.body)}
        for _ in range(6):
            room.penalties.failed("203.0.113.9")
        async with asyncio.timeout(penalty.MAX_HOLD_S - 1):
            assert (await _ask(room.port, _WRONG, "203.0.113.10")).status == 401
            assert (await _ask(room.port, KEY, "203.0.113.9")).status == 200


async def test_who_hangs_up_before_the_refusal_is_denied_all_the_same() -> None:
    """Leaving early neither hides the failure from the log nor frees the address of it."""
    async with public_room() as room:
        for _ in range(10):
            room.penalties.failed("203.0.113.9")
        async with await Wire.open(room.port) as wire:
            wire.send(post(_WRONG, b"", {"X-Forwarded-For": "203.0.113.9"}))
            await until(lambda: room.penalties.held_now == 1)
        record = await room.book.record()
        assert (record.outcome, record.status) == (Outcome.DENIED, None)
        assert record.ip == "203.0.113.9"
        await until(lambda: room.penalties.held_now == 0)
        await until(lambda: len(room.connections) == 0)


async def test_more_refusals_than_may_wait_are_cut() -> None:
    """A flood of wrong keys holds a bounded number of sockets; the rest is closed without a word."""
    async with public_room() as room:
        for _ in range(10):
            room.penalties.failed("203.0.113.9")
        wires = [await Wire.open(room.port) for _ in range(penalty.MAX_HELD_PER_NETWORK + 5)]
        for wire in wires:
            wire.send(post(_WRONG, b"", {"X-Forwarded-For": "203.0.113.9"}))
        await until(lambda: len(room.book.closed) == 5)
        assert sum(wire.lost() for wire in wires) == 5
        assert room.penalties.held_now == penalty.MAX_HELD_PER_NETWORK
        for wire in wires:
            async with wire:
                pass
        await until(lambda: room.penalties.held_now == 0)


async def test_a_refusal_that_is_held_holds_up_no_stop() -> None:
    """Closing the listener ends the wait of who is held; the refusal is recorded."""
    async with public_room(Setup(trusted_proxies=())) as room, await Wire.open(room.port) as wire:
        for _ in range(20):
            room.penalties.failed("127.0.0.1")
        wire.send(post(_WRONG, b""))
        await until(lambda: room.penalties.held_now == 1)
        async with asyncio.timeout(penalty.MAX_HOLD_S - 1):
            await room.listener.close()
        assert (await room.book.record()).outcome is Outcome.DENIED
