"""Answers one request to the demo upstream: errors, plain JSON, or a stream that `demo_play` plays."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, replace
from http.client import responses
from typing import Self

import msgspec
from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPHeaders, ResponseStartLine

from relayd.demo.play import Body, Player, Reply, cut, stall
from relayd.demo.script import Script, ScriptError, parse_script
from relayd.demo.seen import Seen
from relayd.demo.wire import GARBAGE, HTML, Chunks, completion, encode, error_body, pieces, usage

MODELS = ("demo", "gpt-4o-mini")


class Refusal(Exception):
    """The request gets an error answer in the provider's form."""

    def __init__(self, code: int, body: bytes) -> None:
        super().__init__(code)
        self.code = code
        self.body = body

    @classmethod
    def unauthorized(cls, authorization: str) -> Self:
        """A wrong key; like the provider, it shows a masked form of what it got."""
        key = authorization.removeprefix("Bearer ")
        if not key:
            return cls(401, error_body(401, "You didn't provide an API key."))
        masked = f"{key[:4]}{'*' * 8}{key[-4:]}"
        return cls(401, error_body(401, f"Incorrect API key provided: {masked}."))

    @classmethod
    def bad_request(cls, message: str, param: str | None) -> Self:
        """A request that is wrong in itself."""
        return cls(400, error_body(400, message, param=param))

    @classmethod
    def not_found(cls, what: str) -> Self:
        """No such path."""
        return cls(404, error_body(404, f"Invalid URL ({what})", error_code="unknown_url"))


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """The fields of a request that this upstream reads."""

    model: str
    script: Script
    question: str
    """The text of the last message from the user."""
    words: int
    """How many words all messages have: what the usage says by default."""
    stream: bool
    include_usage: bool


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _Message(msgspec.Struct):
    role: str
    content: str | list[dict[str, object]] | None = None

    def text(self) -> str:
        if isinstance(self.content, list):
            return " ".join(str(part["text"]) for part in self.content if "text" in part)
        return self.content or ""


class _Body(msgspec.Struct):
    model: str
    messages: list[_Message]
    stream: bool | None = False
    stream_options: _StreamOptions | None = None


_decoder = msgspec.json.Decoder(_Body)


def read_chat_request(body: bytes, demo_header: str | None) -> ChatRequest:
    """Read a chat-completions request.

    Args:
        body: the JSON as received.
        demo_header: the `X-Demo` header; it wins over the model's name.

    Raises:
        Refusal: 400, naming what is wrong.
    """
    try:
        fields = _decoder.decode(body)
    except msgspec.DecodeError as wrong:
        raise Refusal.bad_request(
            f"We could not parse the JSON body of your request: {wrong}", None
        ) from None
    if not fields.messages:
        raise Refusal.bad_request("Invalid 'messages': empty array.", "messages")
    asked = fields.model
    if demo_header is not None:
        asked = demo_header if demo_header.startswith("demo") else f"demo:{demo_header}"
    try:
        script = parse_script(asked)
    except ScriptError as wrong:
        raise Refusal.bad_request(str(wrong), "model") from None
    texts = [message.text() for message in fields.messages]
    questions = [text for text, message in zip(texts, fields.messages, strict=True) if message.role == "user"]
    return ChatRequest(
        model=fields.model,
        script=script,
        question=questions[-1] if questions else "",
        words=sum(len(text.split()) for text in texts),
        stream=bool(fields.stream),
        include_usage=bool(fields.stream_options and fields.stream_options.include_usage),
    )


class Answer:
    """The one answer to one request."""

    def __init__(self, conn: HTTP1Connection, seen: Seen, base_url: str) -> None:
        self._conn = conn
        self._seen = seen
        self._base_url = base_url

    def error(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        """Answer with an error body."""
        self._whole(code, "application/json", body, headers)

    def models(self) -> None:
        """Answer with the list of models."""
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "relayd"} for name in MODELS]
        self._whole(200, "application/json", encode({"object": "list", "data": data}))

    async def chat(self, chat: ChatRequest, authorization: str, *, faulty: bool) -> None:
        """Answer a chat request as its script says.

        Args:
            chat: the request.
            authorization: the header as received, for `fault=echo_key`.
            faulty: false leaves the script's faults out (`fail_times` is used up).

        Raises:
            StreamClosedError: the client has gone.
            Refusal: the script asks for what only a stream can do.
        """
        script = chat.script if faulty else replace(chat.script, faults=frozenset())
        if script.headers_ms:
            await asyncio.sleep(script.headers_ms / 1000)
        if script.answer_fault is not None:
            await self._instead(script, script.answer_fault, authorization)
        elif chat.stream:
            await self._stream(chat, script)
        elif script.faults:
            raise Refusal.bad_request(f"{' + '.join(sorted(script.faults))} needs stream=true", "model")
        else:
            await asyncio.sleep(script.first_ms / 1000)
            self._whole(200, "application/json", encode(_whole_completion(chat, script, self._seen.n)))

    async def _instead(self, script: Script, fault: str, authorization: str) -> None:
        """Answer with what stands in the place of a stream."""
        code, headers = script.code or 500, {}
        if script.retry_after is not None:
            headers["Retry-After"] = script.retry_after
        if fault == "stall_headers":
            await stall()
        elif fault == "cut_headers":
            cut(self._conn)
        elif fault == "redirect":
            headers["Location"] = self._base_url.removesuffix("/v1") + "/redirected"
            self.error(script.code or 307, b"", headers)
        elif fault == "html":
            self._whole(script.code or 200, "text/html; charset=utf-8", HTML, headers)
        elif fault == "garbage":
            self._whole(200, "text/event-stream; charset=utf-8", GARBAGE, headers)
        elif fault == "echo_key":
            code = script.code or 401
            self.error(code, error_body(code, f"Incorrect API key provided: {authorization}"), headers)
        elif fault == "huge_error_body":
            self.error(code, error_body(code, "x" * script.size), headers)
        else:
            self.error(code, error_body(code, script.message, error_code=script.error_code), headers)

    async def _stream(self, chat: ChatRequest, script: Script) -> None:
        chunks = Chunks(
            f"chatcmpl-demo{self._seen.n}",
            chat.model,
            refusal=script.refusal,
            tool_calls="tool_calls" in script.faults,
        )
        parts = pieces(script, chat.question)
        deltas = len(parts) if script.deltas is None else script.deltas
        reply = Reply(chunks, parts, chat.include_usage, *_tokens(chat, script, deltas))
        body = Body(self._conn.stream, script, self._stream_head(script))
        self._seen.head_at = time.monotonic()
        await Player(self._conn, script, body, reply, self._seen).play()

    def _stream_head(self, script: Script) -> bytes:
        lines = [
            "HTTP/1.1 200 OK",
            "Content-Type: text/event-stream; charset=utf-8",
            "Cache-Control: no-cache",
            f"x-request-id: {self._request_id}",
            "Transfer-Encoding: chunked",
        ]
        if self._seen.headers.get("connection", "").lower() == "close":
            lines.append("Connection: close")
        if "gzip" in script.faults:
            lines.append("Content-Encoding: gzip")
        if "header_flood" in script.faults:
            lines += [f"X-Flood-{k:06d}: {'x' * 82}" for k in range(script.size // 100 + 1)]
        return "\r\n".join([*lines, "\r\n"]).encode()

    @property
    def _request_id(self) -> str:
        return f"req_demo{self._seen.n:08d}"

    def _whole(self, code: int, content_type: str, body: bytes, extra: dict[str, str] | None = None) -> None:
        headers = HTTPHeaders({"Content-Type": content_type, "x-request-id": self._request_id})
        headers["Content-Length"] = str(len(body))
        for name, value in (extra or {}).items():
            headers[name] = value
        start = ResponseStartLine("HTTP/1.1", code, responses.get(code, "Unknown"))
        self._conn.write_headers(start, headers, body)
        self._seen.head_at = time.monotonic()
        self._conn.finish()


def _tokens(chat: ChatRequest, script: Script, deltas: int) -> tuple[int, int]:
    prompt = chat.words if script.prompt_tokens is None else script.prompt_tokens
    return prompt, deltas if script.completion_tokens is None else script.completion_tokens


def _whole_completion(chat: ChatRequest, script: Script, n: int) -> dict[str, object]:
    parts = pieces(script, chat.question)
    deltas = len(parts) if script.deltas is None else script.deltas
    text = "".join(msgspec.json.decode(parts[k % len(parts)], type=str) for k in range(deltas))
    message: dict[str, object] = {"role": "assistant", "content": text, "refusal": None}
    if script.refusal:
        message |= {"content": None, "refusal": text}
    whole = completion(f"chatcmpl-demo{n}", chat.model, message, script.finish_reason)
    return whole | {"usage": usage(*_tokens(chat, script, deltas))}
