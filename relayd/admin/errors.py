"""Every error of the admin API in one form: a status, a code for programs, a sentence for people."""

from __future__ import annotations

from http import HTTPStatus
from typing import Self

from tornado.web import HTTPError

from relayd.state.errors import (
    BadChange,
    GenerationMismatch,
    IdempotencyMismatch,
    NoSuchClient,
    NoSuchKey,
    OutcomeUnknown,
    RingError,
    RingUnavailable,
    StateError,
    WrongState,
)
from relayd.state.filter import FilterError

_RING_STATUS: dict[type[RingError], HTTPStatus] = {
    GenerationMismatch: HTTPStatus.PRECONDITION_FAILED,
    NoSuchKey: HTTPStatus.NOT_FOUND,
    NoSuchClient: HTTPStatus.NOT_FOUND,
    WrongState: HTTPStatus.CONFLICT,
    BadChange: HTTPStatus.BAD_REQUEST,
    IdempotencyMismatch: HTTPStatus.UNPROCESSABLE_ENTITY,
    RingUnavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    OutcomeUnknown: HTTPStatus.SERVICE_UNAVAILABLE,
}
_HTTP_MESSAGES = {
    HTTPStatus.NOT_FOUND: "There is nothing at this path; docs/operations.md lists the paths.",
    HTTPStatus.METHOD_NOT_ALLOWED: "This method is not allowed at this path.",
}


class AdminError(Exception):
    """A request to the admin API is refused."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code

    @classmethod
    def bad_request(cls, message: str) -> Self:
        """Return the error of a request that is itself wrong."""
        return cls(HTTPStatus.BAD_REQUEST, "bad_request", message)

    @classmethod
    def not_found(cls, message: str) -> Self:
        """Return the error of a request for something that does not exist."""
        return cls(HTTPStatus.NOT_FOUND, "not_found", message)


def as_admin_error(error: BaseException | None) -> AdminError | None:
    """Return the error in the form that is sent; None if it is a bug, which is not shown."""
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
            status = HTTPStatus(error.status_code)
            message = _HTTP_MESSAGES.get(status, error.log_message or status.phrase)
            return AdminError(status, status.phrase.lower().replace(" ", "_"), message)
    return None
