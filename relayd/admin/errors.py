"""Every error of the admin side as one thing: a status, a code for programs, a sentence for people."""

from __future__ import annotations

from http import HTTPStatus
from typing import Self

from tornado.web import HTTPError

from relayd.state.errors import (
    BadChange,
    GenerationMismatch,
    IdempotencyMismatch,
    NoSuchKey,
    RingError,
    RingUnavailable,
    StateError,
    WrongState,
)
from relayd.state.filter import FilterError

_RING_STATUS: dict[type[RingError], HTTPStatus] = {
    GenerationMismatch: HTTPStatus.PRECONDITION_FAILED,
    NoSuchKey: HTTPStatus.NOT_FOUND,
    WrongState: HTTPStatus.CONFLICT,
    BadChange: HTTPStatus.BAD_REQUEST,
    IdempotencyMismatch: HTTPStatus.UNPROCESSABLE_ENTITY,
    RingUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
}


class AdminError(Exception):
    """The question is refused."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code

    @classmethod
    def bad_request(cls, message: str) -> Self:
        """The question itself is wrong."""
        return cls(HTTPStatus.BAD_REQUEST, "bad_request", message)

    @classmethod
    def not_found(cls, message: str) -> Self:
        """What it names is not there."""
        return cls(HTTPStatus.NOT_FOUND, "not_found", message)

    @classmethod
    def too_busy(cls) -> Self:
        """Too much waits already."""
        return cls(
            HTTPStatus.SERVICE_UNAVAILABLE, "busy", "Too many questions wait for the disk; ask again shortly."
        )

    @classmethod
    def stopping(cls) -> Self:
        """The daemon ends."""
        return cls(HTTPStatus.SERVICE_UNAVAILABLE, "stopping", "The daemon is stopping.")


def as_admin_error(error: BaseException | None) -> AdminError | None:
    """The error as it is answered; None for a bug."""
    match error:
        case AdminError():
            return error
        case RingError():
            return AdminError(_RING_STATUS.get(type(error), HTTPStatus.BAD_REQUEST), error.code, str(error))
        case StateError():
            return AdminError(HTTPStatus.SERVICE_UNAVAILABLE, "state_unavailable", str(error))
        case FilterError():
            return AdminError(HTTPStatus.BAD_REQUEST, "bad_filter", f"{error}\n{error.pointer()}")
        case HTTPError():
            return _as_refusal(error)
    return None


def _as_refusal(error: HTTPError) -> AdminError:
    """What Tornado itself refuses."""
    status = HTTPStatus(error.status_code)
    message = {
        HTTPStatus.NOT_FOUND: "There is nothing at this path; docs/operations.md lists what there is.",
        HTTPStatus.METHOD_NOT_ALLOWED: "This method is not possible at this path.",
    }.get(status, error.log_message or status.phrase)
    return AdminError(status, status.phrase.lower().replace(" ", "_"), message)
