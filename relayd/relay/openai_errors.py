"""Errors as a client of OpenAI's API reads them: `{"error": {"message", "type", "param", "code"}}`.

Both SDKs decide by status and headers, people and agents by `code`; the `ai` SDK needs `message` to be text.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any, cast

import msgspec

from relayd.relay.errors import ErrorCode, RelayError
from relayd.relay.provider_errors import json_value

_CODES = {
    ErrorCode.UNAUTHORIZED: "invalid_api_key",
    ErrorCode.BUSY: "rate_limit_exceeded",
    ErrorCode.OVER_BUDGET: "insufficient_quota",
}
_TYPES = {
    ErrorCode.BUSY: "rate_limit_error",
    ErrorCode.UPSTREAM_LIMITED: "rate_limit_error",
    ErrorCode.OVER_BUDGET: "insufficient_quota",
}


class ErrorObject(msgspec.Struct, frozen=True):
    """The object in `error`."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class NotFound(RelayError):
    """There is nothing here for this client: 404.

    Args:
        message: as OpenAI says it.
        shown_code: what `code` is; OpenAI has none for a path that does not exist.
        param: name of the field that is at fault.
    """

    def __init__(self, message: str, shown_code: str | None = None, param: str | None = None) -> None:
        super().__init__(ErrorCode.BAD_REQUEST, message)
        self.shown_code = shown_code
        self.param = param

    @property
    def status(self) -> int:
        """Not Found."""
        return HTTPStatus.NOT_FOUND


class UpgradeRefused(RelayError):
    """The client tries a WebSocket: 426 makes it fall back to HTTP."""

    def __init__(self) -> None:
        super().__init__(ErrorCode.BAD_REQUEST, "This relay speaks HTTP only, not WebSocket.")

    @property
    def status(self) -> int:
        """Upgrade Required."""
        return HTTPStatus.UPGRADE_REQUIRED


class ProviderRefusal(RelayError):
    """A refusal of the provider that its client reads as it is.

    Args:
        error: the refusal in our words, for the record.
        status: the provider's.
        headers: the provider's.
        body: the provider's, without its key.
    """

    def __init__(
        self, error: RelayError, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes
    ) -> None:
        self._status = status
        super().__init__(
            error.code, error.message, retry_after_s=error.retry_after_s, recorded=error.recorded
        )
        self.headers = headers
        self.body = body

    @property
    def status(self) -> int:
        """The provider's status."""
        return self._status


def error_object(error: RelayError) -> ErrorObject:
    """Return the object in `error` of a failed request."""
    if isinstance(error, NotFound):
        return ErrorObject(error.message, "invalid_request_error", error.param, error.shown_code)
    is_clients = error.status < HTTPStatus.INTERNAL_SERVER_ERROR
    kind = _TYPES.get(error.code, "invalid_request_error" if is_clients else "server_error")
    return ErrorObject(error.message, kind, code=_CODES.get(error.code, error.code.value))


def error_event(error: RelayError) -> bytes:
    """Return the event of a failed stream; the SDKs raise on it."""
    return b"data: " + msgspec.json.encode({"error": _shown(error)}) + b"\n\n"


def failed_response_event(error: RelayError, response: Mapping[str, Any], sequence_number: int) -> bytes:
    """Return the last event of a failed response: Python looks for `error` at the top, Codex in the response.

    Args:
        error: why it failed.
        response: what is known of it.
        sequence_number: of the event.
    """
    shown = _shown(error)
    failed = {
        **response,
        "object": "response",
        "status": "failed",
        "error": {"code": shown["code"], "message": shown["message"]},
        "output": [],
    }
    event = {
        "type": "response.failed",
        "sequence_number": max(0, sequence_number),
        "response": failed,
        "error": shown,
    }
    return b"event: response.failed\ndata: " + msgspec.json.encode(event) + b"\n\n"


def _shown(error: RelayError) -> dict[str, Any]:
    """Return the error object; of a provider's refusal it is the provider's own."""
    if isinstance(error, ProviderRefusal):
        body = json_value(error.body)
        said = body.get("error") if isinstance(body, dict) else None
        if isinstance(said, dict) and isinstance(said.get("message"), str):
            return {"type": None, "param": None, "code": None, **said}
    return cast("dict[str, Any]", msgspec.to_builtins(error_object(error)))
