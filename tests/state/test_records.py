"""Times as text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relayd.state.records import epoch_s, utc_text

TIMES = st.integers(0, 4_102_444_800_000).map(lambda ms: ms / 1000)


def test_a_time_is_utc_with_milliseconds() -> None:
    """RFC 3339, always of the same length."""
    assert utc_text(1_800_000_000.0) == "2027-01-15T08:00:00.000Z"
    assert utc_text(1_800_000_000.9999) == "2027-01-15T08:00:00.999Z"


@given(TIMES)
def test_a_time_comes_back_to_the_millisecond(now_s: float) -> None:
    """Text and number mean the same moment."""
    assert abs(epoch_s(utc_text(now_s)) - now_s) < 0.0011
    assert utc_text(epoch_s(utc_text(now_s))) == utc_text(now_s)


@given(TIMES, TIMES)
def test_texts_sort_as_times_do(one: float, other: float) -> None:
    """The database may compare times as text."""
    if one < other:
        assert utc_text(one) <= utc_text(other)


def test_what_is_no_time_is_refused() -> None:
    """A ValueError, nothing else."""
    with pytest.raises(ValueError, match="yesterday"):
        epoch_s("yesterday")
