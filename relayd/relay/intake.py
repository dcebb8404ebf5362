"""Whether new work is taken: live, paused by the operator, or draining before the end."""

from __future__ import annotations

from enum import StrEnum

from relayd.relay.failure import Code, Failure

_RETRY_AFTER_PAUSE_S = 30
_RETRY_AFTER_DRAIN_S = 5


class IntakeState(StrEnum):
    """What the daemon does with the next request."""

    LIVE = "live"
    PAUSED = "paused"
    DRAINING = "draining"


class Intake:
    """The one switch. Open streams are not its business; draining is final."""

    def __init__(self) -> None:
        self.state = IntakeState.LIVE

    def pause(self) -> None:
        """Refuse new work until `resume`; nothing while draining."""
        if self.state is IntakeState.LIVE:
            self.state = IntakeState.PAUSED

    def resume(self) -> None:
        """Take new work again; nothing while draining."""
        if self.state is IntakeState.PAUSED:
            self.state = IntakeState.LIVE

    def drain(self) -> None:
        """Refuse new work for good."""
        self.state = IntakeState.DRAINING

    def refusal(self) -> Failure | None:
        """Why the next request is refused, if it is."""
        if self.state is IntakeState.LIVE:
            return None
        if self.state is IntakeState.PAUSED:
            return Failure(
                Code.DRAINING,
                "The operator paused this relay; try again later.",
                retry_after_s=_RETRY_AFTER_PAUSE_S,
            )
        return Failure(
            Code.DRAINING, "This relay is stopping; try again shortly.", retry_after_s=_RETRY_AFTER_DRAIN_S
        )
