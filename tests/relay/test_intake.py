"""Live, paused, draining: what the next request is told."""

from __future__ import annotations

from relayd.relay.failure import Code
from relayd.relay.intake import Intake, IntakeState


def test_work_is_taken_unless_someone_says_no() -> None:
    """A new switch is live, and a pause can be taken back."""
    intake = Intake()
    assert (intake.state, intake.refusal()) == (IntakeState.LIVE, None)
    intake.pause()
    refusal = intake.refusal()
    assert refusal is not None
    assert (refusal.code, refusal.retry_after_s) == (Code.DRAINING, 30)
    assert "paused" in refusal.sentence
    intake.resume()
    assert (intake.state, intake.refusal()) == (IntakeState.LIVE, None)


def test_draining_is_final() -> None:
    """Neither pause nor resume brings a stopping daemon back."""
    intake = Intake()
    intake.drain()
    for change in (intake.pause, intake.resume):
        change()
        assert intake.state is IntakeState.DRAINING
    refusal = intake.refusal()
    assert refusal is not None
    assert (refusal.code, refusal.retry_after_s) == (Code.DRAINING, 5)
    assert "stopping" in refusal.sentence


def test_a_pause_ends_in_draining_too() -> None:
    """A paused daemon can be stopped."""
    intake = Intake()
    intake.pause()
    intake.drain()
    assert intake.state is IntakeState.DRAINING
