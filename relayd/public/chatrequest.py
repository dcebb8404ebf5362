"""The body of `POST /chat`: checked field by field, then forwarded as the client wrote it."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any

import msgspec

from relayd.relay.failure import Code, Failure
from relayd.relay.probe import is_probe

_MAX_SHOWN_CHARS = 80


class _Message(msgspec.Struct):
    """What every message must have; its other fields are the provider's business."""

    role: str
    content: str | list[dict[str, Any]] | None = None


class _StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    include_usage: bool | None = None


class _Fields(msgspec.Struct, forbid_unknown_fields=True):
    """Every field that /chat knows, with its type (contract, section 1). Null counts as absent."""

    messages: Annotated[list[_Message], msgspec.Meta(min_length=1)]
    model: Annotated[str, msgspec.Meta(min_length=1, max_length=200)] | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    response_format: dict[str, Any] | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    user: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    stream: bool | None = None
    stream_options: _StreamOptions | None = None


_decode_fields = msgspec.json.Decoder(_Fields).decode
_decode_raw = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_encode = msgspec.json.Encoder().encode
_TRUE = msgspec.Raw(b"true")
_WITH_USAGE = msgspec.Raw(b'{"include_usage":true}')


class ChatRequest(msgspec.Struct, frozen=True):
    """An accepted request."""

    model: str
    upstream_body: bytes
    """What the provider is sent."""
    tell_usage: bool
    """Whether the client asked for usage in the last line."""


class ChatRules(msgspec.Struct, frozen=True):
    """What the operator's configuration says of requests."""

    default_model: str
    allowed_models: Collection[str] = ()
    """Empty: all."""
    max_tokens_limit: int = 0
    """The most that a request may ask for; 0: no limit."""
    ask_usage: bool = True
    """Whether usage is asked of the provider even if the client does not want to see it."""


def parse_chat_request(body: bytes, rules: ChatRules) -> ChatRequest:
    """Check a body against the contract and the operator's rules.

    Raises:
        Failure: `bad_request` naming the field, or `model_not_allowed`.
    """
    try:
        body.decode()
        fields = _decode_fields(body)
        raw = _decode_raw(body)
    except UnicodeDecodeError as error:
        raise Failure(Code.BAD_REQUEST, "The body is not UTF-8.") from error
    except msgspec.ValidationError as error:
        raise Failure(Code.BAD_REQUEST, f"The body is not a chat request: {_shown(str(error))}.") from error
    except (msgspec.DecodeError, UnicodeError) as error:
        raise Failure(Code.BAD_REQUEST, f"The body is not JSON: {_shown(str(error))}.") from error
    except RecursionError as error:
        raise Failure(Code.BAD_REQUEST, "The body is nested too deeply.") from error
    model = fields.model or rules.default_model
    if rules.allowed_models and model not in rules.allowed_models and not is_probe(model):
        allowed = ", ".join(sorted(rules.allowed_models))
        raise Failure(
            Code.MODEL_NOT_ALLOWED,
            f"The model {_shown(model)!r} is not allowed here; allowed are: {allowed}.",
        )
    _check_ceiling(fields, rules.max_tokens_limit)
    tell_usage = fields.stream_options is not None and bool(fields.stream_options.include_usage)
    raw["model"] = msgspec.Raw(_encode(model))
    raw["stream"] = _TRUE
    raw.pop("stream_options", None)
    if tell_usage or rules.ask_usage:
        raw["stream_options"] = _WITH_USAGE
    return ChatRequest(model, _encode(raw), tell_usage)


def _check_ceiling(fields: _Fields, limit: int) -> None:
    for name in ("max_tokens", "max_completion_tokens"):
        wanted = getattr(fields, name)
        if limit and wanted is not None and wanted > limit:
            raise Failure(Code.BAD_REQUEST, f"{name} may be at most {limit} on this relay, not {wanted}.")


def _shown(text: str) -> str:
    """A client's or the parser's words, cut to a length that fits a sentence, without its full stop."""
    text = text.rstrip(".")
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "…"
