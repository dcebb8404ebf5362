"""The provider's wire format, as bytes: chunks, server-sent events, error bodies, texts.

Source: OpenAI's API reference, "Chat Completions", streaming; the event stream format is WHATWG HTML,
section 9.2. Everything that can be encoded before a delta is sent is encoded once a stream.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Final

import msgspec

from relayd.demo.script import Script

BOM: Final = b"\xef\xbb\xbf"
DONE: Final = b"[DONE]"
GARBAGE: Final = bytes(range(256)) * 16
HTML: Final = b"<!doctype html><title>Sign in</title><h1>Welcome to the hotel network</h1>\n"

_WORDS = (
    "The relay passes each delta on as one line, as soon as it arrives, and says at the end how it went. "
)
_CJK = "流れる言葉は一つずつ届きます。每个词都会立刻到达。말은 하나씩 도착합니다. "
_EMOJI = ("👋🏽 ", "👩‍👩‍👧‍👦 ", "🇺🇳 ", "🏳️‍🌈 ", "e\u0301 ", "𝄞 ", "🧑🏿‍🚀 ", "✅\ufe0f ")
_BY_CODE: Final = {
    400: ("invalid_request_error", None, "The request was refused."),
    401: ("invalid_request_error", "invalid_api_key", "Incorrect API key provided."),
    403: ("invalid_request_error", "unsupported_country_region_territory", "Access was denied."),
    404: ("invalid_request_error", "model_not_found", "The model does not exist or you do not have access."),
    413: ("invalid_request_error", None, "The request is too large."),
    422: ("invalid_request_error", None, "The request could not be processed."),
    429: ("requests", "rate_limit_exceeded", "Rate limit reached for requests."),
}
_SERVER_ERROR = (
    "server_error",
    None,
    "The server had an error while processing your request. Sorry about that!",
)

encode = msgspec.json.encode


def error_body(
    code: int, message: str | None = None, *, error_code: str | None = None, param: str | None = None
) -> bytes:
    """Write an error as the provider does: `{"error":{message,type,param,code}}`."""
    kind, usual_code, usual_message = _BY_CODE.get(code, _SERVER_ERROR)
    error = {
        "message": message or usual_message,
        "type": kind,
        "param": param,
        "code": error_code or usual_code,
    }
    return encode({"error": error})


def pieces(script: Script, question: str) -> Sequence[bytes]:
    """Cut the reply's text into deltas, each already encoded as a JSON string; never empty.

    Args:
        script: its `text` chooses; the player renews a `stamp` for each delta.
        question: the user's last message, for `answer` and `echo`.
    """
    if script.filler_bytes:
        return [encode("x" * script.filler_bytes)]
    if script.text == "stamp":
        return [stamp()]
    if script.text in {"cjk", "emoji"}:
        return [encode(piece) for piece in (_CJK if script.text == "cjk" else _EMOJI)]
    if script.text in {"words", "echo"}:
        return _in_words(_WORDS if script.text == "words" else question)
    shown = question if len(question) <= 200 else question[:200] + "…"  # noqa: PLR2004  # a screenful
    return _in_words(
        f"You said: “{shown}” Nobody thought about it: this is relayd's demo upstream, "
        "which streams these words at about ten a second."
    )


def stamp() -> bytes:
    """The sender's `CLOCK_MONOTONIC` in nanoseconds, which other processes of this machine share."""
    return b'"%d"' % time.monotonic_ns()


def _in_words(text: str) -> list[bytes]:
    return [encode(piece) for piece in re.findall(r"\s*\S+\s*|\s+", text)] or [b'""']


class Chunks:
    """The `chat.completion.chunk` payloads of one reply."""

    def __init__(self, reply_id: str, model: str, *, refusal: bool, tool_calls: bool) -> None:
        created = int(time.time())
        self._head = (
            b'{"id":%b,"object":"chat.completion.chunk","created":%d,"model":%b,'
            b'"service_tier":"default","system_fingerprint":"fp_demo","choices":['
            % (encode(reply_id), created, encode(model))
        )
        field = b'"refusal":' if refusal else b'"content":'
        before, self._after = b'{"index":0,"delta":{' + field, b'},"logprobs":null,"finish_reason":null}]}'
        if tool_calls:
            before = b'{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":'
            self._after = b'}}]},"logprobs":null,"finish_reason":null}]}'
        self._before_text = self._head + before

    def role(self) -> bytes:
        """The first chunk: who speaks, no text yet."""
        delta = b'{"role":"assistant","content":"","refusal":null}'
        return b'%b{"index":0,"delta":%b,"logprobs":null,"finish_reason":null}]}' % (self._head, delta)

    def tool(self) -> bytes:
        """The chunk that names the tool whose arguments follow."""
        call = b'{"index":0,"id":"call_demo","type":"function","function":{"name":"look_up","arguments":""}}'
        delta = b'{"tool_calls":[%b]}' % call
        return b'%b{"index":0,"delta":%b,"logprobs":null,"finish_reason":null}]}' % (self._head, delta)

    def text(self, piece: bytes) -> bytes:
        """One delta; `piece` is a JSON string."""
        return self._before_text + piece + self._after

    def empty(self) -> bytes:
        """A chunk without choices, as some providers send before or between the deltas."""
        return self._head + b"]}"

    def finish(self, reason: str) -> bytes:
        """The chunk with the `finish_reason`."""
        return b'%b{"index":0,"delta":{},"logprobs":null,"finish_reason":%b}]}' % (self._head, encode(reason))

    def usage(self, prompt_tokens: int, completion_tokens: int) -> bytes:
        """The last chunk, sent only when `stream_options.include_usage` asked for it."""
        return b'%b],"usage":%b}' % (self._head, encode(usage(prompt_tokens, completion_tokens)))


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, object]:
    """The usage object, with the details the provider adds."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
        "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
    }


def completion(
    reply_id: str, model: str, message: dict[str, object], reason: str | None
) -> dict[str, object]:
    """Answer a request that did not ask for a stream; `usage` is added by the caller."""
    return {
        "id": reply_id,
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "service_tier": "default",
        "system_fingerprint": "fp_demo",
        "choices": [{"index": 0, "message": message, "logprobs": None, "finish_reason": reason}],
    }


class Events:
    """Puts payloads into server-sent events, in the form that the script's shapes ask for."""

    def __init__(self, shapes: frozenset[str]) -> None:
        self._eol = b"\r\n" if "crlf" in shapes else b"\r" if "cr_only" in shapes else b"\n"
        self._multiline = "multiline_data" in shapes
        self._end = self._eol + self._eol
        # What a client must accept and skip; the last two belong to the event that follows.
        fields = (b":", b"retry: 3000", b"id: 7", b"", b"unknown", b"event: message", b"")
        self._prefix = (self.comment() if "comments" in shapes else b"") + (
            self._eol.join(fields) if "unused_fields" in shapes else b""
        )

    def event(self, payload: bytes) -> bytes:
        """One event, its blank line included."""
        if self._multiline and payload.startswith(b"{"):
            # A line end after the brace is white space to JSON, so the payload stays the same value.
            payload = b"{" + self._eol + b"data:" + payload[1:]
        return self._prefix + b"data: " + payload + self._end

    def comment(self) -> bytes:
        """A comment as providers send it to keep a silent connection open."""
        return b": PROCESSING" + self._end
