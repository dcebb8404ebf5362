"""The ways a request can fail: one code each, with the HTTP status it has before the first byte."""

from __future__ import annotations

from enum import StrEnum

from relayd.state.records import Outcome


class Code(StrEnum):
    """The codes a client may see (contract, section 1)."""

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
    INTERNAL = "internal"


_STATUS_AND_OUTCOME: dict[Code, tuple[int, Outcome]] = {
    Code.BAD_REQUEST: (400, Outcome.REJECTED),
    Code.UNAUTHORIZED: (401, Outcome.DENIED),
    Code.MODEL_NOT_ALLOWED: (403, Outcome.REJECTED),
    Code.TOO_LARGE: (413, Outcome.REJECTED),
    Code.BUSY: (429, Outcome.REJECTED),
    Code.DRAINING: (503, Outcome.SHUTDOWN),
    Code.UPSTREAM_REJECTED: (400, Outcome.UPSTREAM_ERROR),
    Code.UPSTREAM_LIMITED: (429, Outcome.UPSTREAM_ERROR),
    Code.UPSTREAM_AUTH: (502, Outcome.UPSTREAM_ERROR),
    Code.UPSTREAM_FAILED: (502, Outcome.UPSTREAM_ERROR),
    Code.UPSTREAM_UNREACHABLE: (502, Outcome.UPSTREAM_ERROR),
    Code.UPSTREAM_TIMEOUT: (504, Outcome.UPSTREAM_ERROR),
    Code.UPSTREAM_TRUNCATED: (502, Outcome.UPSTREAM_ERROR),
    Code.CANCELLED: (503, Outcome.CANCELLED),
    Code.KEY_REVOKED: (401, Outcome.CANCELLED),
    Code.INTERNAL: (500, Outcome.CRASHED),
}


_COME_BACK_STATUSES = frozenset({429, 503})
_RETRY_AFTER_S = 5


class Failure(Exception):
    """A request's typed end: what the client is told, and what the record keeps.

    Args:
        code: one of the contract's codes.
        sentence: for a person; one line, without secrets.
        retry_after_s: what `Retry-After` says; 429 and 503 carry one even where none is given.
    """

    def __init__(self, code: Code, sentence: str, *, retry_after_s: int | None = None) -> None:
        super().__init__(f"{code}: {sentence}")
        self.code = code
        self.sentence = sentence
        if retry_after_s is None and self.status in _COME_BACK_STATUSES:
            retry_after_s = _RETRY_AFTER_S
        self.retry_after_s = retry_after_s

    @property
    def status(self) -> int:
        """The HTTP status, for a reply that has not begun."""
        return _STATUS_AND_OUTCOME[self.code][0]

    @property
    def outcome(self) -> Outcome:
        """How the record of such a request ends."""
        return _STATUS_AND_OUTCOME[self.code][1]


def bug(request_id: str) -> Failure:
    """The failure of a request that met a bug; its details are in the log and nowhere else."""
    return Failure(Code.INTERNAL, f"This relay failed; its log has the details under request {request_id}.")


class ClientGone(Exception):
    """The client closed its connection: nobody is left to tell anything."""


class ClientStalled(Exception):
    """The client stopped reading for longer than the write timeout."""
