"""What a scripted provider sends: the words of a model's name, and how its bytes are framed as HTTP.

A model is named `demo:key=value,key=value`; a value may be percent-encoded. Keys are the fields of `Script`.
Faults are joined by `+`. `tests.support.upstream_api` says what each path of the API answers.
"""

from __future__ import annotations

import enum
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

WORDS: Final = (
    "The relay passes each delta on as one line, as soon as it arrives, and says at the end how it went. "
)
_CJK = "流れる言葉は一つずつ届きます。每个词都会立刻到达。말은 하나씩 도착합니다. "
_EMOJI = ("👋🏽 ", "👩‍👩‍👧‍👦 ", "🇺🇳 ", "🏳️‍🌈 ", "e\u0301 ", "𝄞 ", "🧑🏿‍🚀 ", "✅\ufe0f ")
_GARBAGE = bytes(range(256)) * 16
_HTML = b"<!doctype html><title>Sign in</title><h1>Welcome to the hotel network</h1>\n"
_SHAPES: Final = frozenset({"coalesced", "comments", "crlf", "gzip", "ids", "obfuscation", "one_byte"})
"""A whole stream in an unusual form."""
_BREAKS: Final = frozenset(
    {
        *("stall_first", "stall_mid", "cut_mid", "cut_fin", "end_early"),
        *("bad_json", "bad_utf8", "error_event", "huge_event"),
    }
)
"""The stream goes wrong: before its text, after `after` deltas, or at its end."""
_HEADERS: Final[dict[str, str]] = {
    "openai-version": "2020-10-01",
    "openai-processing-ms": "12",
    "openai-organization": "org-of-the-owner",
    "openai-project": "proj_of_the_owner",
    "x-ratelimit-limit-requests": "10000",
    "x-ratelimit-remaining-requests": "9999",
    "x-ratelimit-reset-requests": "6ms",
    "x-ratelimit-limit-tokens": "2000000",
    "x-ratelimit-remaining-tokens": "1999990",
    "x-ratelimit-reset-tokens": "0s",
    "set-cookie": "__cf_bm=of-the-provider; path=/; HttpOnly; Secure",
}
"""What OpenAI sends with every answer."""
_MESSAGES: Final = {400: "The request was refused.", 429: "Rate limit reached for requests."}


class End(enum.Enum):
    """How a script breaks off."""

    RESET = enum.auto()
    """The connection ends with RST."""
    CLOSE = enum.auto()
    """The connection ends with FIN."""
    SILENCE = enum.auto()
    """Nothing more is sent until the client leaves."""


Step: TypeAlias = bytes | float | End
"""Bytes to send in one write, seconds to wait, or an end."""


@dataclass(frozen=True, slots=True)
class Script:
    """One reply. Times are in milliseconds, sizes in bytes."""

    text: str = "words"
    """`words`, `cjk`, `emoji`, `echo` (the last question) or `x<N>`: deltas of N letters."""
    deltas: int | None = None
    """None: as many as the text has pieces."""
    interval_ms: float = 20.0
    headers_ms: float = 0.0
    first_ms: float = 0.0
    finish: str = "stop"
    """`none`: there is no finish_reason. A response is `incomplete` by `length`, and may be `failed`."""
    fault: frozenset[str] = frozenset()
    after: int = 3
    code: int = 0
    error: str = ""
    """The code in an error's body."""
    retry_after: str = ""
    retry_after_ms: str = ""
    should_retry: str = ""
    message: str = ""
    fail_times: int = 0
    """Only so many attempts with the same `id` meet the fault; 0: all."""
    id: str = ""
    size: int = 0
    """Of a huge event or of spoken audio; 0: 4 MiB or 8 KiB."""
    batch: int = 10
    usage: str = "asked"
    """When the usage of a chat answer is sent: `asked` for, `always`, `never`."""
    prompt_tokens: int = 2
    cached_tokens: int = 0
    completion_tokens: int | None = None
    """None: one a delta."""

    def pieces(self, question: str) -> list[str]:
        """The text, delta by delta; never empty."""
        if filler := re.fullmatch(r"x(\d+)", self.text):
            return ["x" * int(filler[1])]
        if self.text in {"words", "echo"}:
            return re.findall(r"\S+\s*", WORDS if self.text == "words" else question) or [""]
        return list({"cjk": _CJK, "emoji": _EMOJI}[self.text])


@dataclass(frozen=True, slots=True)
class Request:
    """What a script may look at of a request."""

    n: int
    method: str
    path: str
    """Without the query."""
    query: str
    headers: Mapping[str, str]
    body: bytes
    authorization: str


def _faults(raw: str) -> frozenset[str]:
    names = frozenset(raw.split("+"))
    if unknown := names - _SHAPES - _BREAKS - _INSTEAD.keys():
        raise ValueError(f"no such fault: {', '.join(unknown)}")
    return names


_TEXTS = (
    *("text", "finish", "error", "retry_after", "retry_after_ms", "should_retry", "message"),
    *("id", "usage"),
)
_READERS: Final[Mapping[str, Callable[[str], object]]] = {
    **dict.fromkeys(_TEXTS, unquote),
    **dict.fromkeys(("interval_ms", "headers_ms", "first_ms"), float),
    **dict.fromkeys(("deltas", "after", "code", "fail_times", "size", "batch"), int),
    **dict.fromkeys(("prompt_tokens", "cached_tokens", "completion_tokens"), int),
    "fault": _faults,
}


def parse(model: str) -> Script:
    """Read a model's name; one without words asks for the default.

    Raises:
        KeyError, ValueError: it asks for what there is not.
    """
    words = model.partition(":")[2]
    pairs = [pair.partition("=") for pair in words.split(",")] if words else []
    values: dict[str, Any] = {key: _READERS[key](raw) for key, _, raw in pairs}
    return Script(**values)


def steps_of(request: Request, script: Script, answer: Callable[[], Iterator[Step]]) -> Iterator[Step]:
    """Give the answer in the order in which it is sent, or the fault that the script puts in its place."""
    yield script.headers_ms / 1000
    if instead := script.fault & _INSTEAD.keys():
        yield _INSTEAD[next(iter(instead))](request, script)
    else:
        yield from answer()


def broken_off(script: Script) -> Iterator[Step]:
    """Give the end of an answer that the script breaks off in the middle; nothing if it does not."""
    ends = {"stall_mid": End.SILENCE, "cut_mid": End.RESET, "cut_fin": End.CLOSE}
    yield from (end for fault, end in ends.items() if fault in script.fault)


def whole(
    request: Request, script: Script, body: bytes, content_type: str = "application/json"
) -> Iterator[Step]:
    """Give an answer whose length is known; the script may break it off in the middle."""
    answer = reply_of(request.n, 200, body, **{"Content-Type": content_type})
    first = len(answer) - len(body) // 2
    if "stall_first" in script.fault:
        yield answer[: len(answer) - len(body)]
        yield End.SILENCE
    yield answer[:first]
    yield from broken_off(script)
    yield answer[first:]


def streamed(
    request: Request,
    script: Script,
    events: Iterator[Step],
    content_type: str = "text/event-stream; charset=utf-8",
) -> Iterator[Step]:
    """Give an answer in chunks, one an event, cut or joined as the script says."""
    head = {"Content-Type": content_type, "Transfer-Encoding": "chunked"}
    if "gzip" in script.fault:
        head["Content-Encoding"] = "gzip"
    yield _head(request.n, 200, head)
    yield from _chunked(events, script)


def unauthorized(request: Request) -> bytes:
    """Refuse a wrong key; like the provider, with a masked form of it."""
    key = request.authorization.removeprefix("Bearer ")
    masked = f"{key[:4]}{'*' * 8}{key[-4:]}"
    return error(request.n, 401, f"Incorrect API key provided: {masked}.", code="invalid_api_key")


def error(
    n: int, status: int, message: str, *, code: str | None = None, param: str | None = None, **headers: str
) -> bytes:
    """Write an error as the provider does."""
    kind = "server_error" if status >= 500 else "invalid_request_error"
    kind = "insufficient_quota" if code == "insufficient_quota" else kind
    said = {"message": message, "type": kind, "param": param, "code": code}
    return reply_of(n, status, as_json({"error": said}), **headers)


def _status(request: Request, script: Script) -> bytes:
    status = script.code or 500
    message = script.message or _MESSAGES.get(status, "The server had an error.")
    headers = {
        "Retry-After": script.retry_after,
        "retry-after-ms": script.retry_after_ms,
        "x-should-retry": script.should_retry,
    }
    sent = {name: value for name, value in headers.items() if value}
    return error(request.n, status, message, code=script.error or None, **sent)


def _echoed_key(request: Request, script: Script) -> bytes:
    return error(request.n, script.code or 401, f"Incorrect API key provided: {request.authorization}")


_INSTEAD: Final[Mapping[str, Callable[[Request, Script], Step]]] = {
    "stall_headers": lambda *_: End.SILENCE,
    "cut_headers": lambda *_: End.RESET,
    "status": _status,
    "echo_key": _echoed_key,
    "redirect": lambda request, _: reply_of(request.n, 307, b"", Location="/redirected"),
    "html": lambda request, _: reply_of(request.n, 200, _HTML, **{"Content-Type": "text/html"}),
    "garbage": lambda request, _: reply_of(request.n, 200, _GARBAGE, **{"Content-Type": "text/event-stream"}),
}
"""What is sent in the place of a stream."""


def _chunked(events: Iterator[Step], script: Script) -> Iterator[Step]:
    """Put events into chunks of the body, cut or joined as the script says."""
    gzip = zlib.compressobj(wbits=31) if "gzip" in script.fault else None
    batch = script.batch if "coalesced" in script.fault else 1
    held: list[bytes] = []
    for event in events:
        if isinstance(event, bytes) and event:
            data = event if gzip is None else gzip.compress(event) + gzip.flush(zlib.Z_SYNC_FLUSH)
            if "one_byte" in script.fault:
                yield from (b"1\r\n%c\r\n" % value for value in data)
            else:
                held.append(b"%x\r\n%b\r\n" % (len(data), data))
        if len(held) >= batch or (held and isinstance(event, End)):
            yield b"".join(held)
            held.clear()
        if not isinstance(event, bytes):
            yield event
    yield b"".join(held) + b"0\r\n\r\n"


def reply_of(n: int, status: int, body: bytes, **headers: str) -> bytes:
    """Return a whole reply."""
    fields = {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}
    return _head(n, status, fields) + body


def _head(n: int, status: int, headers: Mapping[str, str]) -> bytes:
    reason = HTTPStatus(status).phrase if status in set(HTTPStatus) else "Unknown"
    fields = "".join(f"{name}: {value}\r\n" for name, value in {**_HEADERS, **headers}.items())
    return f"HTTP/1.1 {status} {reason}\r\nx-request-id: req_demo{n:08}\r\n{fields}\r\n".encode()


def as_json(value: object) -> bytes:
    """Return the JSON as the provider writes it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
