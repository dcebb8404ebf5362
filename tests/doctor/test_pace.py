"""`relayd.doctor.pace`: lines that came as they were sent, and lines that came as a lump."""

from __future__ import annotations

import pytest

from relayd.doctor.pace import is_held_back

_INTERVAL_S = 0.1
_SENT = [number * _INTERVAL_S for number in range(21)]


@pytest.mark.parametrize(
    ("times", "held_back"),
    [
        (_SENT, False),
        ([when + 1.5 for when in _SENT], False),  # a line of 1.5 s, steady
        ([max(when, 0.9) for when in _SENT], False),  # a machine that did nothing for 0.9 s
        ([0.0, *(when + 0.9 for when in _SENT[1:])], False),
        ([2.0] * 21, True),
        ([2.0 + when / 2 for when in _SENT], True),  # all of it at the end, read by a busy machine
        ([0.0] + [2.0] * 20, True),
        ([0.0] * 11 + _SENT[11:], True),
        ([0.5 * (when // 0.5) for when in _SENT], False),  # four lumps: late, but it flows
    ],
)
def test_only_what_came_as_a_lump_was_held_back(times: list[float], held_back: bool) -> None:  # noqa: FBT001 - the answer of a row
    """Nothing comes before it was sent: that tells a proxy that waits for the end from a slow machine."""
    assert is_held_back(0.0, times, _INTERVAL_S) is held_back
