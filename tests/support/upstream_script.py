"""What a scripted provider sends: the words of a model's name, and the steps that they stand for.

A model is named `demo:key=value,key=value`; a value may be percent-encoded. Keys are the fields of `Script`.
Faults are joined by `+`. The format is that of OpenAI's API reference, "Chat Completions", streaming.
"""

from __future__ import annotations

import enum
import json
import re
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from itertools import cycle, islice
from typing import Any, Final, TypeAlias
from urllib.parse import unquote

WORDS: Final = (
    "The relay passes each delta on as one line, as soon as it arrives, and says at the end how it went. "
)
_CJK = "流れる言葉は一つずつ届きます。每个词都会立刻到达。말은 하나씩 도착합니다. "
_EMOJI = ("👋🏽 ", "👩‍👩‍👧‍👦 ", "🇺🇳 ", "🏳️‍🌈 ", "e\u0301 ", "𝄞 ", "🧑🏿‍🚀 ", "✅\ufe0f ")
_GARBAGE = bytes(range(256)) * 16
_HTML = b"<!doctype html><title>Sign in</title><h1>Welcome to the hotel network</h1>\n"
_SHAPES: Final = frozenset({"coalesced", "comments", "crlf", "gzip", "one_byte"})
"""A whole stream in an unusual form."""
_BREAKS: Final = frozenset(
    {
        *("stall_first", "stall_mid", "cut_mid", "cut_fin", "end_early"),
        *("bad_json", "bad_utf8", "error_event", "huge_event"),
    }
)
"""The stream goes wrong: before its text, after `after` deltas, or at its end."""
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
    """`none`: there is no finish_reason."""
    fault: frozenset[str] = frozenset()
    after: int = 3
    code: int = 0
    retry_after: str = ""
    message: str = ""
    fail_times: int = 0
    """Only so many attempts with the same `id` meet the fault; 0: all."""
    id: str = ""
    size: int = 4 << 20
    batch: int = 10

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
    target: str
    """Method and path."""
    body: bytes
    authorization: str


def _faults(raw: str) -> frozenset[str]:
    names = frozenset(raw.split("+"))
    if unknown := names - _SHAPES - _BREAKS - _INSTEAD.keys():
        raise ValueError(f"no such fault: {', '.join(unknown)}")
    return names


_READERS: Final[Mapping[str, Callable[[str], object]]] = {
    **dict.fromkeys(("text", "finish", "retry_after", "message", "id"), unquote),
    **dict.fromkeys(("interval_ms", "headers_ms", "first_ms"), float),
    **dict.fromkeys(("deltas", "after", "code"), int),
    **dict.fromkeys(("fail_times", "size", "batch"), int),
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


def reply(request: Request, attempts: dict[str, int]) -> Iterator[Step]:
    """Return the steps of the reply to an authorized request.

    Args:
        request: what was asked.
        attempts: counts the attempts with each `id`.
    """
    if request.target == "GET /v1/models":
        models = [{"id": name, "object": "model"} for name in ("demo", "gpt-4o-mini")]
        return iter([_whole(request.n, 200, _json({"object": "list", "data": models}))])
    if request.target != "POST /v1/chat/completions":
        return iter([error(request.n, 404, f"Invalid URL ({request.target})")])
    asked = json.loads(request.body)
    try:
        script = parse(asked["model"])
    except (KeyError, ValueError) as wrong:
        return iter([error(request.n, 400, f"The test's script is wrong: {wrong!r}")])
    if script.fail_times:
        attempts[script.id] = attempts.get(script.id, 0) + 1
        if attempts[script.id] > script.fail_times:
            script = replace(script, fault=frozenset())
    return _steps(request, script, asked)


def unauthorized(request: Request) -> bytes:
    """Refuse a wrong key; like the provider, with a masked form of it."""
    key = request.authorization.removeprefix("Bearer ")
    masked = f"{key[:4]}{'*' * 8}{key[-4:]}"
    return error(request.n, 401, f"Incorrect API key provided: {masked}.", code="invalid_api_key")


def error(n: int, status: int, message: str, *, code: str | None = None, retry_after: str = "") -> bytes:
    """Write an error as the provider does."""
    said = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
    return _whole(n, status, _json({"error": said}), **{"Retry-After": retry_after} if retry_after else {})


def _steps(request: Request, script: Script, asked: dict[str, Any]) -> Iterator[Step]:
    """Give the reply in the order in which it is sent."""
    yield script.headers_ms / 1000
    if instead := script.fault & _INSTEAD.keys():
        yield _INSTEAD[next(iter(instead))](request, script)
        return
    head = {"Content-Type": "text/event-stream; charset=utf-8", "Transfer-Encoding": "chunked"}
    if "gzip" in script.fault:
        head["Content-Encoding"] = "gzip"
    yield _head(request.n, 200, head)
    yield from _chunked(_Stream(request, script, asked).events(), script)


def _status(request: Request, script: Script) -> bytes:
    status = script.code or 500
    message = script.message or _MESSAGES.get(status, "The server had an error.")
    return error(request.n, status, message, retry_after=script.retry_after)


def _echoed_key(request: Request, script: Script) -> bytes:
    return error(request.n, script.code or 401, f"Incorrect API key provided: {request.authorization}")


_INSTEAD: Final[Mapping[str, Callable[[Request, Script], Step]]] = {
    "stall_headers": lambda *_: End.SILENCE,
    "cut_headers": lambda *_: End.RESET,
    "status": _status,
    "echo_key": _echoed_key,
    "redirect": lambda request, _: _whole(request.n, 307, b"", Location="/redirected"),
    "html": lambda request, _: _whole(request.n, 200, _HTML, **{"Content-Type": "text/html"}),
    "garbage": lambda request, _: _whole(request.n, 200, _GARBAGE, **{"Content-Type": "text/event-stream"}),
}
"""What is sent in the place of a stream."""


def _chunked(events: Iterator[Step], script: Script) -> Iterator[Step]:
    """Put events into chunks of the body, cut or joined as the script says."""
    gzip = zlib.compressobj(wbits=31) if "gzip" in script.fault else None
    batch = script.batch if "coalesced" in script.fault else 1
    held: list[bytes] = []
    for event in events:
        if isinstance(event, bytes):
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


class _Stream:
    """The events of one streamed answer."""

    def __init__(self, request: Request, script: Script, asked: dict[str, Any]) -> None:
        self._script = script
        self._asked = asked
        self._eol = b"\r\n" if "crlf" in script.fault else b"\n"
        self._frame = {
            "id": f"chatcmpl-test{request.n}",
            "object": "chat.completion.chunk",
            "created": 0,
            "model": asked["model"],
        }

    def events(self) -> Iterator[Step]:
        """Give events, pauses, and how the stream breaks off."""
        script, fault = self._script, self._script.fault
        if "stall_first" in fault:
            while "comments" in fault:
                yield script.interval_ms / 1000
                yield self._comment
            yield End.SILENCE
        yield self._choice({"role": "assistant", "content": "", "refusal": None})
        yield script.first_ms / 1000
        questions = [message for message in self._asked["messages"] if message["role"] == "user"]
        pieces = script.pieces(questions[-1]["content"] if script.text == "echo" else "")
        texts = [self._choice({"content": piece}) for piece in pieces]
        total = len(texts) if script.deltas is None else script.deltas
        for k, text in enumerate(islice(cycle(texts), total)):
            if k:
                yield script.interval_ms / 1000
            if k == script.after and (yield from self._break()):
                return
            yield text
        if total <= script.after and (yield from self._break()):
            return
        end = [] if script.finish == "none" else [self._choice({}, script.finish)]
        if self._asked.get("stream_options", {}).get("include_usage"):
            used = {"prompt_tokens": 2, "completion_tokens": total, "total_tokens": 2 + total}
            end.append(self._event(_json({**self._frame, "choices": [], "usage": used})))
        yield b"".join(end) + self._event(b"[DONE]")

    def _break(self) -> Generator[Step, None, bool]:
        """Go wrong in the middle; returns whether the stream is over."""
        script, fault = self._script, self._script.fault
        if "stall_mid" in fault:
            yield End.SILENCE
        if "cut_mid" in fault:
            yield End.RESET
        if "cut_fin" in fault:
            yield End.CLOSE
        if "error_event" in fault:
            said = {"message": script.message or "The server had an error.", "type": "server_error"}
            yield self._event(_json({"error": {**said, "param": None, "code": None}}))
        if "bad_json" in fault:
            yield self._event(b'{"choices":[{"index":0,"delta":{"content":"cut in half')
        if "bad_utf8" in fault:
            yield self._choice({"content": "café"}).replace("é".encode(), b"\xe9 \xff")
        if "huge_event" in fault:
            yield self._choice({"content": "x" * script.size})
        return bool(fault & {"error_event", "end_early"})

    def _choice(self, delta: dict[str, str | None], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self._event(_json({**self._frame, "choices": [choice]}))

    def _event(self, data: bytes) -> bytes:
        before = self._comment if "comments" in self._script.fault else b""
        return before + b"data: " + data + self._eol * 2

    @property
    def _comment(self) -> bytes:
        return b": PROCESSING" + self._eol * 2


def _whole(n: int, status: int, body: bytes, **headers: str) -> bytes:
    return (
        _head(n, status, {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers})
        + body
    )


def _head(n: int, status: int, headers: Mapping[str, str]) -> bytes:
    reason = HTTPStatus(status).phrase if status in set(HTTPStatus) else "Unknown"
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"HTTP/1.1 {status} {reason}\r\nx-request-id: req_demo{n:08}\r\n{fields}\r\n".encode()


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
