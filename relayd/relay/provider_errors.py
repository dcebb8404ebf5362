"""Finds the provider's own sentence in the many shapes in which providers report an error.

OpenAI: `{"error":{"message","type","param","code"}}`. Others: `{"error":"text"}`, `{"detail":…}` (FastAPI),
`[{"error":{…}}]` (Google), `{"object":"error","message":…}` (vLLM), `{"message":…}`, plain text.
"""

from __future__ import annotations

import json
import re
from typing import Any

import msgspec

from relayd.relay.errors import ErrorCode, RelayError
from relayd.relay.redact import Redactor

_MESSAGE_FIELDS = (
    *("message", "msg", "error", "errors", "detail", "error_description", "error_message", "error_msg"),
    *("errmsg", "status_msg", "base_resp", "fault", "faultstring", "description", "title", "reason"),
)
"""In any case: AWS writes `Message`."""
_MAX_DEPTH = 5
_REQUEST_CODES = frozenset({"400", "404", "413", "422", "context_length_exceeded", "content_filter"})
# Matches in one pass over any text: what is not closed goes on to the end, and no tag holds another's "<".
_MARKUP = re.compile(
    r"<(script|style|head)\b.*?(?:</\1\s*>|\Z)|<!--.*?(?:-->|\Z)|<[^<>]*>", re.IGNORECASE | re.DOTALL
)
_SURROGATE = re.compile(r"[\ud800-\udfff]")
# Azure reports a content filter that was out of order as an "error" beside a whole answer.
_NOT_OF_THE_ANSWER = frozenset({"content_filter_results", "prompt_filter_results"})


class ProviderError(msgspec.Struct, frozen=True):
    """What a provider said about an error, in its own words: neither bounded nor redacted."""

    message: str | None = None
    type: str | None = None
    param: str | None = None
    code: str | None = None

    @property
    def kind(self) -> str:
        """Type, code and parameter, none of which can quote the request; empty if there are none."""
        param = f"parameter {self.param}" if self.param else None
        return ", ".join(dict.fromkeys(part for part in (self.type, self.code, param) if part))

    @property
    def may_quote_request(self) -> bool:
        """Whether the message judges the request, and so may quote from the conversation."""
        return "invalid" in (self.type or "") or self.code in _REQUEST_CODES


def parse_error_body(body: bytes) -> ProviderError:
    """Return what the body of an error response says; a body that is not JSON is the message itself."""
    try:
        value = load_json(body)
    except ValueError:
        text = _MARKUP.sub(" ", body.decode("utf-8", "replace"))
        return ProviderError(message=" ".join(text.split()) or None)
    return parse_error(value)


def parse_error(value: object) -> ProviderError:
    """Return what a decoded JSON value says about an error; every field is None if it says nothing."""
    message = _find_message(value, _MAX_DEPTH)
    fields = _error_object(value)
    return ProviderError(message, *(_text(fields.get(name)) for name in ("type", "param", "code")))


def reported_error(
    said: object,
    redact: Redactor,
    start: str = "The provider reported an error in the middle of its answer",
) -> RelayError:
    """Return the failure that a provider reported; if its words may quote the request, they are not recorded.

    Args:
        said: the decoded report.
        redact: makes the provider's words fit to show.
        start: of the sentence, without a full stop.
    """
    error = parse_error(said)
    if error.message is None:
        return RelayError(ErrorCode.UPSTREAM_FAILED, f"{start}.")
    recorded = error.kind if error.may_quote_request else error.message
    return RelayError(
        ErrorCode.UPSTREAM_FAILED,
        f"{start}: {redact(error.message)}",
        recorded=f"{start}: {redact(recorded)}",
    )


def find_in_band_error(chunk: object) -> object | None:
    """Return the error inside a streamed chunk, or None.

    It may stand at the top, in a choice, or in a field of the provider's own (`x_groq.error`).
    """
    if isinstance(chunk, dict) and (chunk.get("error") or chunk.get("object") == "error"):
        return chunk
    return _find_error_object(chunk, _MAX_DEPTH)


def _find_error_object(value: object, depth: int) -> object | None:
    if depth == 0 or not isinstance(value, dict | list):
        return None
    if isinstance(value, list):
        parts = value
    elif value.get("error") and isinstance(value["error"], dict | str):
        return value
    else:
        parts = [part for name, part in value.items() if name not in _NOT_OF_THE_ANSWER]
    return next((found for part in parts if (found := _find_error_object(part, depth - 1))), None)


def load_json(data: bytes) -> Any:
    """Decode JSON as leniently as providers write it: half a surrogate pair becomes U+FFFD.

    Raises:
        ValueError: this is not JSON, or nested too deeply.
    """
    try:
        return _repair(json.loads(data))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def json_value(raw: bytes) -> Any:
    """Return a decoded value; None if it is none."""
    try:
        return load_json(raw)
    except ValueError:
        return None


def json_text(raw: bytes) -> str | None:
    """Return a text that is not empty; None if it is none."""
    value = json_value(raw) if raw else None
    return value if isinstance(value, str) and value else None


def _repair(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, list):
        return [_repair(item) for item in value]
    if isinstance(value, dict):
        return {_repair(key): _repair(item) for key, item in value.items()}
    return value


def _find_message(value: object, depth: int) -> str | None:
    if isinstance(value, str):
        return value.strip() or None
    if depth == 0:
        return None
    if isinstance(value, list):
        return next((found for item in value if (found := _find_message(item, depth - 1))), None)
    if isinstance(value, dict):
        # The innermost object is the most specific: `{"message": "Bad Request", "error": {"message": …}}`.
        nested = value.get("error")
        if isinstance(nested, dict) and (found := _find_message(nested, depth - 1)):
            return found
        folded = {str(name).casefold(): part for name, part in value.items()}
        for name in _MESSAGE_FIELDS:
            if found := _find_message(folded.get(name), depth - 1):
                return found
    return None


def _error_object(value: object) -> dict[str, object]:
    if isinstance(value, list):
        value = value[0] if value else None
    if not isinstance(value, dict):
        return {}
    nested = value.get("error")
    return nested if isinstance(nested, dict) else value


def _text(value: object) -> str | None:
    return (
        str(value) if isinstance(value, str | int) and not isinstance(value, bool) and value != "" else None
    )
