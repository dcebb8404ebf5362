"""The body of `POST /chat`: checked field by field, then forwarded as the client wrote it."""

from __future__ import annotations

import json
import re
from codecs import BOM_UTF8
from collections.abc import Collection, Mapping
from typing import Annotated

import msgspec

from relayd.relay.errors import ErrorCode, RelayError
from relayd.relay.probe import is_probe

_MAX_COUNT = 10**9
"""Of tokens or answers: nothing larger can be meant, and sums of it fit every counter."""
_MAX_SHOWN_CHARS = 80
# Halves and whole pairs; an even number of backslashes before it would make it no escape. It begins with a
# plain backslash, so that the search skips what has none: 30 MiB of base64 take 20 ms instead of 3 s.
_SURROGATE_ESCAPE = re.compile(
    rb"(\\(?<!\\\\)(?:\\\\)*+)u[dD](?:[89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F]|[89a-fA-F](?P<half>))[0-9a-fA-F]{2}"
)
_MAX_SURROGATES = 400_000
"""More than 2 MiB hold; each takes time. What is left makes a body no JSON."""


_NEXT_FIELD = re.compile(r'\s*[{,]\s*("[^"\\]*+(?:\\.[^"\\]*+)*+")\s*:\s*')
# Values are not wanted here, and a number may have more digits than Python converts.
_find_end = json.JSONDecoder(parse_int=str, parse_float=str).raw_decode


class _Message(msgspec.Struct):
    """The fields that every message must have; the provider judges the others."""

    role: str
    content: str | list[dict[str, msgspec.Raw]] | None = None


class _StreamOptions(msgspec.Struct, forbid_unknown_fields=True):
    include_usage: bool | None = None


class _Fields(msgspec.Struct, forbid_unknown_fields=True):
    """Every field that /chat knows, with its type. Null counts as absent."""

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
    response_format: dict[str, msgspec.Raw] | None = None
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
    """A valid request: its model, the body for the provider, and whether the last line tells usage."""

    model: str
    upstream_body: bytes
    include_usage: bool
    max_tokens: int | None = None
    """The most tokens that the answer may have; None: the client names no limit."""
    max_tokens_name: str = "max_tokens"
    """The field that names it."""


class ChatRules(msgspec.Struct, frozen=True):
    """The operator's rules for requests.

    Args:
        default_model: for a request that names none.
        allowed_models: empty: all.
        max_tokens_limit: the most that a request may ask for; 0: no limit.
        ask_usage: whether the provider is asked for usage even if the client does not want it.
        aliases: what the provider is asked for when clients ask for a model.
    """

    default_model: str
    allowed_models: Collection[str] = ()
    max_tokens_limit: int = 0
    ask_usage: bool = True
    aliases: Mapping[str, str] = {}

    def resolve(self, model: str) -> str:
        """Return the model that the provider is asked for.

        Raises:
            RelayError: `model_not_allowed`.
        """
        model = self.aliases.get(model, model)
        if self.allowed_models and model not in self.allowed_models and not is_probe(model):
            allowed = ", ".join(sorted(self.allowed_models))
            raise RelayError(
                ErrorCode.MODEL_NOT_ALLOWED,
                f"The model {_shown(model)!r} is not allowed here; allowed are: {allowed}.",
            )
        return model

    def check_limit(self, name: str, wanted: int | None) -> None:
        """Check how long an answer may be.

        Args:
            name: of the field.
            wanted: in tokens; None: the request names no limit.

        Raises:
            RelayError: `bad_request`.
        """
        check_count(name, wanted)
        if self.max_tokens_limit and wanted is not None and wanted > self.max_tokens_limit:
            raise RelayError(
                ErrorCode.BAD_REQUEST,
                f"{name} may be at most {self.max_tokens_limit} on this relay, not {wanted}.",
            )


def parse_chat_request(body: bytes, rules: ChatRules) -> ChatRequest:
    """Check a body against the protocol and the operator's rules.

    Raises:
        RelayError: `bad_request` naming the field, or `model_not_allowed`.
    """
    fields, raw = _decode(body.removeprefix(BOM_UTF8))
    model = rules.resolve(fields.model or rules.default_model)
    for name, wanted in (
        ("max_tokens", fields.max_tokens),
        ("max_completion_tokens", fields.max_completion_tokens),
    ):
        rules.check_limit(name, wanted)
    include_usage = fields.stream_options is not None and bool(fields.stream_options.include_usage)
    if model != fields.model:
        raw["model"] = msgspec.Raw(_encode(model))
    raw["stream"] = _TRUE
    raw.pop("stream_options", None)
    if include_usage or rules.ask_usage:
        raw["stream_options"] = _WITH_USAGE
    limits = {"max_completion_tokens": fields.max_completion_tokens, "max_tokens": fields.max_tokens}
    name, limit = max(limits.items(), key=lambda item: -1 if item[1] is None else item[1])
    return ChatRequest(model, _encode(raw), include_usage, limit, name)


def check_count(name: str, count: int | None) -> None:
    """Check how many tokens or answers a request asks for.

    Raises:
        RelayError: `bad_request`, nothing could be reserved for it, or more than can be counted.
    """
    if count is not None and not 1 <= count <= _MAX_COUNT:
        raise RelayError(ErrorCode.BAD_REQUEST, f"{name} must be from 1 to {_MAX_COUNT:,}.")


def _decode(body: bytes) -> tuple[_Fields, dict[str, msgspec.Raw]]:
    """Return the fields, checked, and each as the client wrote it."""
    try:
        body.decode()
        fields = _read_fields(body)
        raw = _split(body)
    except UnicodeDecodeError as error:
        raise RelayError(ErrorCode.BAD_REQUEST, "The body is not UTF-8.") from error
    except msgspec.ValidationError as error:
        raise RelayError(
            ErrorCode.BAD_REQUEST, f"The body is not a chat request: {_shown(str(error))}."
        ) from error
    except (msgspec.DecodeError, UnicodeError) as error:
        raise RelayError(ErrorCode.BAD_REQUEST, f"The body is not JSON: {_shown(str(error))}.") from error
    except RecursionError as error:
        raise RelayError(ErrorCode.BAD_REQUEST, "The body is nested too deeply.") from error
    return fields, raw


def _read_fields(body: bytes) -> _Fields:
    try:
        return _decode_fields(body)
    except msgspec.DecodeError:
        if b"\\u" not in body:
            raise
    # Half a surrogate pair is forwarded as it is, but msgspec reads none: so it checks a copy without.
    return _decode_fields(without_surrogates(body))


def _split(body: bytes) -> dict[str, msgspec.Raw]:
    """Return each field of a checked body as the client wrote it."""
    try:
        return _decode_raw(body)
    except msgspec.DecodeError:
        pass
    # Half a surrogate pair, at which msgspec stops even where it only copies.
    fields: dict[str, msgspec.Raw] = {}
    text = body.decode()
    end = 0
    while (met := _NEXT_FIELD.match(text, end)) is not None:
        _, end = _find_end(text, met.end())
        fields[json.loads(met[1])] = msgspec.Raw(text[met.end() : end].encode())
    return fields


def _shown(text: str) -> str:
    """Cut the client's or the parser's words to a length that fits a sentence, without a full stop."""
    text = text.rstrip(".")
    return text if len(text) <= _MAX_SHOWN_CHARS else text[:_MAX_SHOWN_CHARS] + "…"


def without_surrogates(body: bytes) -> bytes:
    """Return JSON of the same length in which U+FFFD takes the place of half a surrogate pair on its own."""
    return _SURROGATE_ESCAPE.sub(_without_half, body, _MAX_SURROGATES)


def _without_half(escape: re.Match[bytes]) -> bytes:
    return escape[0] if escape["half"] is None else escape[1] + b"ufffd"
