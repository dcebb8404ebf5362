"""A body that takes its time: how long it may, in all and at which pace."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.public.bodyclock import LEAST_BYTES_PER_S, PACE_FROM_S, BodyClock


class _Time(asyncio.SelectorEventLoop):
    """A loop whose clock jumps to the next timer instead of waiting for it."""

    def __init__(self, early_s: float) -> None:
        super().__init__()
        self.now_s = 1000.0
        # asyncio fires a timer when its clock is so far behind it; uvloop's clock is by up to a millisecond.
        self._clock_resolution = early_s

    def time(self) -> float:
        """The time of this play."""
        return self.now_s


def _ends(
    timeout_s: float, bytes_per_s: float, *, step_s: float = 0.25, early_s: float = 0.0
) -> tuple[float, str]:
    """When and with which sentence a body of this pace is late; its end never comes."""
    loop = _Time(early_s)

    async def play() -> tuple[float, str]:
        began, said = loop.now_s, list[str]()
        clock = BodyClock(timeout_s, lambda: int(bytes_per_s * (loop.now_s - began)), said.append)
        while not said:
            loop.now_s += step_s
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert loop.now_s - began < timeout_s + 2, "never late"
        clock.stop()
        return loop.now_s - began, said[0]

    try:
        return loop.run_until_complete(play())
    finally:
        loop.close()


def test_a_trickle_is_cut_when_the_pace_begins_to_count() -> None:
    """A thousand of them are gone after 10 s, however long a body may take in all."""
    ended_s, said = _ends(30.0, 12.0)
    assert ended_s < PACE_FROM_S + 1
    assert said == "The body came at less than 1024 bytes a second."


def test_a_short_timeout_counts_before_the_pace() -> None:
    """Where the operator allows less than 10 s, that is what counts."""
    ended_s, said = _ends(2.0, 0.0)
    assert ended_s == pytest.approx(2.0, abs=0.5)
    assert said == "The body did not arrive within 2 s."


def test_a_timer_that_comes_a_little_early_ends_the_time_all_the_same() -> None:
    """The sentence is that of the timeout, not that of a pace which does not count yet."""
    ended_s, said = _ends(2.0, 0.0, step_s=0.1999, early_s=0.002)
    assert ended_s == pytest.approx(1.999)
    assert said == "The body did not arrive within 2 s."


@given(st.floats(0.5, 60.0), st.floats(0.0, 10.0 * LEAST_BYTES_PER_S))
def test_no_body_outlives_its_time_and_a_fair_pace_is_never_cut(timeout_s: float, pace: float) -> None:
    """Late is either the whole time, or a pace under the bound after the first 10 s."""
    ended_s, said = _ends(timeout_s, pace)
    if "within" in said:
        assert ended_s >= timeout_s
    else:
        assert ended_s >= PACE_FROM_S
        assert pace < LEAST_BYTES_PER_S * 1.01
