"""The ways a request can fail: one code each, with the HTTP status it has before the first byte.

Exception
├── RelayError      the request failed; the client gets its code and message
├── ClientGone      the client closed its connection
└── ClientStalled   the client stopped reading
"""

from __future__ import annotations

from enum import StrEnum

from relayd.state.records import Outcome


class ErrorCode(StrEnum):
    """The codes a client may see."""

    BAD_REQUEST = "bad_request"
    UNAUTHORIZED = "unauthorized"
    MODEL_NOT_ALLOWED = "model_not_allowed"
    TOO_LARGE = "too_large"
    BUSY = "busy"
    DRAINING = "draining"
    UPSTREAM_REJECTED = "upstream_rejected"
    UPSTREAM_LIMITED = "upstream_limited"
    UPSTREAM_AUTH = "upstream_auth"
    UPSTREAM_FAILED = "upstream_failed"
    UPSTREAM_UNREACHABLE = "upstream_unreachable"
    UPSTREAM_TIMEOUT = "upstream_timeout"
    UPSTREAM_TRUNCATED = "upstream_truncated"
    CANCELLED = "cancelled"
    KEY_REVOKED = "key_revoked"
    OVER_BUDGET = "over_budget"
    MODEL_UNPRICED = "model_unpriced"
    STATE_UNAVAILABLE = "state_unavailable"
    INTERNAL = "internal"


_STATUS_AND_OUTCOME: dict[ErrorCode, tuple[int, Outcome]] = {
    ErrorCode.BAD_REQUEST: (400, Outcome.REJECTED),
    ErrorCode.UNAUTHORIZED: (401, Outcome.DENIED),
    ErrorCode.MODEL_NOT_ALLOWED: (403, Outcome.REJECTED),
    ErrorCode.TOO_LARGE: (413, Outcome.REJECTED),
    ErrorCode.BUSY: (429, Outcome.REJECTED),
    ErrorCode.DRAINING: (503, Outcome.SHUTDOWN),
    ErrorCode.UPSTREAM_REJECTED: (400, Outcome.UPSTREAM_ERROR),
    ErrorCode.UPSTREAM_LIMITED: (429, Outcome.UPSTREAM_ERROR),
    ErrorCode.UPSTREAM_AUTH: (502, Outcome.UPSTREAM_ERROR),
    ErrorCode.UPSTREAM_FAILED: (502, Outcome.UPSTREAM_ERROR),
    ErrorCode.UPSTREAM_UNREACHABLE: (502, Outcome.UPSTREAM_ERROR),
    ErrorCode.UPSTREAM_TIMEOUT: (504, Outcome.UPSTREAM_ERROR),
    ErrorCode.UPSTREAM_TRUNCATED: (502, Outcome.UPSTREAM_ERROR),
    ErrorCode.CANCELLED: (503, Outcome.CANCELLED),
    ErrorCode.KEY_REVOKED: (401, Outcome.CANCELLED),
    ErrorCode.OVER_BUDGET: (429, Outcome.REJECTED),
    ErrorCode.MODEL_UNPRICED: (403, Outcome.REJECTED),
    ErrorCode.STATE_UNAVAILABLE: (503, Outcome.REJECTED),
    ErrorCode.INTERNAL: (500, Outcome.CRASHED),
}
_RETRY_AFTER_STATUSES = frozenset({429, 503})
_DEFAULT_RETRY_AFTER_S = 5
_FINAL_CODES = frozenset({ErrorCode.CANCELLED, ErrorCode.OVER_BUDGET})
"""What no client should send again, though its status is one that clients retry."""


class RelayError(Exception):
    """A request failed.

    Args:
        code: one of the contract's codes.
        message: one line for a person, without secrets.
        retry_after_s: value of `Retry-After`; 429 and 503 always carry one, except for `cancelled`, which
            no client should send again.
        recorded: message for the log and the record, where it must differ from the client's: a provider's
            refusal may quote the request.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        retry_after_s: int | None = None,
        recorded: str | None = None,
    ) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.recorded = message if recorded is None else recorded
        if retry_after_s is None and self.status in _RETRY_AFTER_STATUSES and code is not ErrorCode.CANCELLED:
            retry_after_s = _DEFAULT_RETRY_AFTER_S
        self.retry_after_s = retry_after_s

    @property
    def status(self) -> int:
        """The HTTP status of a response that has not begun."""
        return _STATUS_AND_OUTCOME[self.code][0]

    @property
    def is_final(self) -> bool:
        """Whether it is of no use to send the request again soon; the response tells SDKs so."""
        return self.code in _FINAL_CODES

    @property
    def outcome(self) -> Outcome:
        """The outcome in the request's record."""
        return _STATUS_AND_OUTCOME[self.code][1]


class ClientGone(Exception):
    """The client closed its connection."""


class ClientStalled(Exception):
    """The client stopped reading for longer than `server.write_timeout_s`."""


def internal_error(request_id: str) -> RelayError:
    """Return the error of a request that met a bug; the details are only in the log."""
    return RelayError(
        ErrorCode.INTERNAL,
        f"This relay has a bug and could not answer; its log has the details under request {request_id}.",
    )


def compressed() -> RelayError:
    """Return the error of an answer that cannot be read."""
    return RelayError(
        ErrorCode.UPSTREAM_FAILED, "The provider compressed its answer, which relayd did not ask for."
    )


def not_a_stream() -> RelayError:
    """Return the error of an answer that should be an event stream, and does not say what it is instead."""
    return RelayError(
        ErrorCode.UPSTREAM_FAILED,
        "The provider did not answer with an event stream; is upstream.base_url its API?",
    )


def broken_off() -> RelayError:
    """Return the error of an answer whose connection broke."""
    return RelayError(
        ErrorCode.UPSTREAM_FAILED, "The connection to the provider broke in the middle of its answer."
    )


def truncated(said: str = "", *, may_quote_reply: bool = False) -> RelayError:
    """Return the error of an answer that ended too early.

    Args:
        said: the provider's last words.
        may_quote_reply: whether they may be a piece of the reply, which is not recorded.
    """
    start = "The provider's answer ended before it was finished"
    message = f"{start}; it said: {said}" if said else f"{start}."
    recorded = f"{start}; its last words were plain text." if said and may_quote_reply else None
    return RelayError(ErrorCode.UPSTREAM_TRUNCATED, message, recorded=recorded)
