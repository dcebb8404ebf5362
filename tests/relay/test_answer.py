"""The body of one answer: poured where it arrives, at any split, with any pauses of its reader."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.relay.answer import Answer, Broken

if TYPE_CHECKING:
    from relayd.relay.connection import Connection

_PIECES = st.lists(st.lists(st.binary(min_size=1, max_size=9), max_size=3), max_size=8)


class Feeder:
    """Stands where the connection is: it is paused, resumed and finished."""

    def __init__(self) -> None:
        self.paused = False
        self.finished: list[tuple[bool, float]] = []

    def pause_reading(self) -> None:
        """Leave what comes in the kernel."""
        self.paused = True

    def resume_reading(self) -> None:
        """Take it again."""
        self.paused = False

    def finish(self, *, reuse: bool, wait_s: float) -> None:
        """Note how."""
        self.finished.append((reuse, wait_s))


def _answer(feeder: Feeder | None = None) -> Answer:
    return Answer(cast("Connection", feeder or Feeder()), 200, [(b"X-A", b"1")])


@given(_PIECES, st.lists(st.booleans(), max_size=20), st.integers(0, 8), st.none() | st.just(Broken("cut")))
def test_nothing_is_lost_or_doubled_at_any_split_and_any_stop(
    reads: list[list[bytes]], wishes: list[bool], early: int, broken: Broken | None
) -> None:
    """However bytes come, and whenever their taker stops for a while, it gets each once, in order."""

    async def play() -> None:
        answer, got, left = _answer(), bytearray(), list(wishes)

        def take(piece: bytes) -> bool:
            assert piece
            got.extend(piece)
            return left.pop(0) if left else True

        async def pour() -> None:
            pouring_on = True
            while pouring_on:
                pouring_on = await answer.pour(take)

        for read in reads[:early]:
            _feed(answer, read)
        pouring = asyncio.create_task(pour(), name="pour")
        for read in reads[early:]:
            await asyncio.sleep(0)
            _feed(answer, read)
        answer.end(broken)
        answer.arrived()
        if broken is not None:
            with pytest.raises(Broken):
                await pouring
        else:
            await pouring
        assert bytes(got) == b"".join(piece for read in reads for piece in read)
        assert answer.ended is (broken is None)

    asyncio.run(asyncio.wait_for(play(), 30))


def _feed(answer: Answer, read: list[bytes]) -> None:
    for piece in read:
        answer.feed(piece)
    answer.arrived()


async def _pouring(answer: Answer, got: list[bytes]) -> asyncio.Task[bool]:
    """A task that has begun to pour into a list, and never has enough."""

    def take(piece: bytes) -> bool:
        got.append(piece)
        return True

    task = asyncio.create_task(answer.pour(take), name="pour")
    await asyncio.sleep(0)
    return task


async def test_what_one_read_brought_is_taken_in_one_piece() -> None:
    """Deltas that arrive together are sent together."""
    answer, got = _answer(), list[bytes]()
    pouring = await _pouring(answer, got)
    _feed(answer, [b"a", b"b", b"c"])
    assert got == [b"abc"]
    answer.end(None)
    answer.arrived()
    assert await pouring is False


async def test_what_the_taker_raises_is_raised_where_it_was_given() -> None:
    """The connection goes on; the error belongs to who pours."""
    answer = _answer()

    def take(_piece: bytes) -> bool:
        raise ZeroDivisionError

    pouring = asyncio.create_task(answer.pour(take), name="pour")
    await asyncio.sleep(0)
    _feed(answer, [b"a"])
    with pytest.raises(ZeroDivisionError):
        await pouring


async def test_a_taker_that_was_cancelled_is_called_no_more() -> None:
    """What comes after a cancel, even before the task hears of it, is kept and not relayed."""
    answer, got = _answer(), list[bytes]()
    pouring = await _pouring(answer, got)
    pouring.cancel()
    await asyncio.sleep(0)
    _feed(answer, [b"late"])
    with pytest.raises(asyncio.CancelledError):
        await pouring
    assert got == []
    assert await answer.read() == b"late"


async def test_a_body_that_nobody_takes_is_bounded() -> None:
    """Beyond a bound the socket is not read, until somebody asks for more than the buffer."""
    feeder = Feeder()
    answer = _answer(feeder)
    seen = []
    for _ in range(2):
        _feed(answer, [b"x" * 10_000])
        seen.append(feeder.paused)
    assert len(await answer.read()) == 20_000
    assert [*seen, feeder.paused] == [False, True, True]
    pouring = asyncio.create_task(answer.read(), name="read")
    await asyncio.sleep(0)
    assert not feeder.paused
    _feed(answer, [b"more"])
    assert await pouring == b"more"


async def test_nothing_is_read_while_the_taker_waits() -> None:
    """A taker that wants no more, as one whose client does not read, stops the socket at once."""
    feeder = Feeder()
    answer = _answer(feeder)
    pouring = asyncio.create_task(answer.pour(lambda _: False), name="pour")
    await asyncio.sleep(0)
    _feed(answer, [b"x"])
    assert await pouring
    assert feeder.paused


async def test_the_connection_is_given_back_once() -> None:
    """With what is known of the body's end; what comes after it is dropped."""
    feeder = Feeder()
    answer = _answer(feeder)
    answer.close(wait_s=0.5)
    answer.close()
    _feed(answer, [b"x" * 100_000])
    assert feeder.finished == [(False, 0.5)]
    assert not feeder.paused
    assert answer.header(b"x-a") == "1"
    assert answer.header(b"x-b") == ""
