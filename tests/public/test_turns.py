"""What many ask for at once is spread over turns of the loop."""

from __future__ import annotations

import asyncio
import functools

from relayd.public.turns import PER_TURN, Turns


async def test_a_thousand_come_in_order_and_others_are_served_between() -> None:
    """No turn of the loop holds more than a few of them."""
    turns, order, others = Turns(), list[int](), list[int]()
    for n in range(1000):
        turns.call(functools.partial(order.append, n))
    while len(turns):
        before = len(order)
        await asyncio.sleep(0)
        others.append(len(order) - before)
    assert order == list(range(1000))
    assert max(others) <= PER_TURN
    assert len(others) >= 1000 // PER_TURN


async def test_who_waits_gets_a_turn_and_who_leaves_takes_none_from_others() -> None:
    """A wait that is cancelled is passed over."""
    turns = Turns()
    async with asyncio.timeout(30):
        waiting = [asyncio.create_task(turns.wait(), name=f"turn {n}") for n in range(20)]
        await asyncio.sleep(0)
        waiting[3].cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
    assert [n for n, task in enumerate(waiting) if task.cancelled()] == [3]
    assert len(turns) == 0


async def test_one_that_fails_takes_no_turn_from_the_others() -> None:
    """The loop reports it; the rest goes on."""
    turns, ran, met = Turns(), list[int](), list[object]()
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: met.append(context["exception"]))
    for n in range(10):
        turns.call(functools.partial(ran.append, n))
    turns.call(functools.partial(list[int]().remove, 1))
    for n in range(10, 20):
        turns.call(functools.partial(ran.append, n))
    async with asyncio.timeout(10):
        await turns.wait()
    assert ran == list(range(20))
    assert [type(error) for error in met] == [ValueError]
