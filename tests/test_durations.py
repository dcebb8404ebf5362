"""Behaviour of `relayd.durations`: spans as operators write them, strictly, and as they read them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.durations import parse_duration, short


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("0s", 0), ("30s", 30), ("10m", 600), ("2h", 7200), ("7d", 604_800), ("366d", 31_622_400)],
)
def test_a_number_and_a_unit_are_a_span(text: str, seconds: int) -> None:
    """Seconds, minutes, hours and days."""
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "5", "s", "1w", "1 h", " 1h", "1h ", "1h30m", "-1h", "+1h", "1.5h", "1H", "1e3s", "٣s", "1h\n"],
)
def test_anything_else_is_refused_with_the_forms_that_are_not(text: str) -> None:
    """No guessing: a grace of the wrong length is worse than none."""
    with pytest.raises(ValueError, match="30s, 10m, 2h or 7d"):
        parse_duration(text)


def test_more_than_a_year_is_a_mistake() -> None:
    """The bound is named."""
    with pytest.raises(ValueError, match="more than 366d"):
        parse_duration("367d")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0s"),
        (0.9, "0s"),
        (59.9, "59s"),
        (60, "1m"),
        (61, "1m 1s"),
        (3600, "1h"),
        (3661, "1h 1m"),
        (3601, "1h"),
        (90_000, "1d 1h"),
        (86_400 * 40 + 60, "40d"),
    ],
)
def test_a_span_is_read_in_at_most_two_units(seconds: float, text: str) -> None:
    """Rounded down, the largest unit first, no unit skipped."""
    assert short(seconds) == text


@settings(derandomize=True, deadline=None)
@given(st.integers(0, 366), st.sampled_from("smhd"))
def test_what_is_shown_short_never_says_more_than_there_is(number: int, unit: str) -> None:
    """Each of its parts can be read back, and their sum is not above the span."""
    seconds = parse_duration(f"{number}{unit}")
    assert sum(map(parse_duration, short(seconds).split())) <= seconds
