"""Line mode."""

from __future__ import annotations

from relayd.admin.schema import Ended, Gap, Lost, Progress, Started
from tests.tui.samples import a_failure, a_record, an_open
from tui.plain import ended_line, event_line


def test_an_ended_request_is_one_sentence() -> None:
    """Everything that matters, in an order that can be listened to."""
    line = ended_line(a_failure(1))
    assert line.startswith("14:13:21 upstream error, upstream_failed: web at 192.0.2.7, model gpt-4o")
    assert line.endswith("The provider failed, or its stream broke.")


def test_starts_and_progress_are_left_out() -> None:
    """A listener hears of a request once, when it has ended."""
    assert event_line(Started(1, "b", an_open(1))) is None
    assert event_line(Progress("2026-01-01T00:00:00.000Z", [])) is None
    assert event_line(Ended(2, "b", a_record(1))) is not None


def test_losses_are_told() -> None:
    """Gaps and lost records are lines of their own."""
    assert event_line(Gap(3, 9)) == "gap: events 3 to 9 are no longer kept"
    lost = Lost(5, "b", "2026-09-21T14:13:20.000Z", 12, "disk full")
    assert event_line(lost) == "14:13:20 lost: 12 records, disk full"


def test_hostile_text_is_harmless_in_line_mode_too() -> None:
    """No escape sequence goes through a pipe into somebody's terminal."""
    line = event_line(Ended(2, "b", a_record(1, client="\x1b[2Jx")))
    assert line is not None
    assert line.isprintable()
