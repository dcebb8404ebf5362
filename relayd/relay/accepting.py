"""Whether new requests are accepted: open, paused by the operator, or draining before the end."""

from __future__ import annotations

from enum import StrEnum

from relayd.relay.errors import ErrorCode, RelayError

_RETRY_AFTER_PAUSE_S = 30
_RETRY_AFTER_DRAIN_S = 5


class AcceptState(StrEnum):
    """What happens to the next request."""

    OPEN = "live"
    PAUSED = "paused"
    DRAINING = "draining"


class Accepting:
    """The switch for new requests. Open streams are not affected; draining is final."""

    def __init__(self) -> None:
        self.state = AcceptState.OPEN

    def pause(self) -> None:
        """Refuse new requests until `resume`; do nothing while draining."""
        if self.state is AcceptState.OPEN:
            self.state = AcceptState.PAUSED

    def resume(self) -> None:
        """Accept new requests again; do nothing while draining."""
        if self.state is AcceptState.PAUSED:
            self.state = AcceptState.OPEN

    def drain(self) -> None:
        """Refuse new requests for good."""
        self.state = AcceptState.DRAINING

    @property
    def refusal(self) -> RelayError | None:
        """The error of the next request, if it is refused."""
        if self.state is AcceptState.OPEN:
            return None
        if self.state is AcceptState.PAUSED:
            return RelayError(
                ErrorCode.DRAINING,
                "The operator paused this relay; try again later.",
                retry_after_s=_RETRY_AFTER_PAUSE_S,
            )
        return RelayError(
            ErrorCode.DRAINING,
            "This relay is stopping; try again shortly.",
            retry_after_s=_RETRY_AFTER_DRAIN_S,
        )
