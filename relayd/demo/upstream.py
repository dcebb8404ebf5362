"""An offline upstream for `relayd serve --demo`: the provider's protocol, and an answer word by word.

One of these words in the model's name or in the last message asks for something else than a short answer:

| word | answer |
|---|---|
| `demo-long` | two minutes of words |
| `demo-slow` | the first word after five seconds |
| `demo-limited` | 429, with `Retry-After` |
| `demo-failing` | 500 |
| `demo-broken` | the connection ends in the middle |
"""

from __future__ import annotations

import asyncio
import re
import time
from itertools import count
from typing import Any, Final, cast

import msgspec
from tornado.http1connection import HTTP1Connection
from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

_HOST: Final = "127.0.0.1"
_WORD_S: Final = 0.1
_SLOW_S: Final = 5.0
_LONG_WORDS: Final = 1200
_BREAK_AFTER_WORDS: Final = 5
_RETRY_AFTER_S: Final = 20
_MAX_BODY_BYTES: Final = 64 << 20
_MODELS: Final = ("demo", "gpt-4o-mini")
_SHOWN_CHARACTERS: Final = 200

_request_numbers = count(1)


class DemoUpstream:
    """The upstream, inside the running event loop.

    Args:
        key: the bearer key that requests must carry.
    """

    def __init__(self, key: str) -> None:
        arguments = {"key": key}
        application = Application(
            [("/v1/chat/completions", _ChatCompletions, arguments), ("/v1/models", _Models, arguments)],
            log_function=lambda _handler: None,
        )
        self._server = HTTPServer(application, max_body_size=_MAX_BODY_BYTES)
        self._port = 0

    def start(self) -> None:
        """Listen on a free port of 127.0.0.1."""
        sockets = bind_sockets(0, _HOST)
        self._port = sockets[0].getsockname()[1]
        self._server.add_sockets(sockets)

    @property
    def base_url(self) -> str:
        """Return what an SDK takes as its base URL, once started."""
        return f"http://{_HOST}:{self._port}/v1"

    async def close(self) -> None:
        """Stop listening and end what is open."""
        self._server.stop()
        await self._server.close_all_connections()


class _Message(msgspec.Struct):
    role: str
    content: str | list[dict[str, Any]] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return " ".join(str(part.get("text", "")) for part in self.content)
        return self.content or ""


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _ChatRequest(msgspec.Struct):
    model: str
    messages: list[_Message]
    stream: bool | None = None
    stream_options: _StreamOptions | None = None

    @property
    def wish(self) -> str | None:
        """Return the word that asks for something else than a short answer."""
        found = re.search(r"demo-(long|slow|limited|failing|broken)\b", f"{self.model} {self._question}")
        return found and found[1]

    @property
    def _question(self) -> str:
        return self.messages[-1].text if self.messages else ""

    def words(self) -> list[str]:
        """Return the answer, cut into words that keep the space behind them."""
        shown = self._question
        if len(shown) > _SHOWN_CHARACTERS:
            shown = shown[:_SHOWN_CHARACTERS] + "…"
        text = (
            f"You said: “{shown}” No model has read it: this is relayd's demo upstream, "
            "which streams these words, ten a second."
        )
        times = _LONG_WORDS // len(text.split()) if self.wish == "long" else 1
        return re.findall(r"\S+\s*", " ".join([text] * times))

    def usage(self, completion_tokens: int) -> dict[str, int]:
        """Return the usage; a word counts as a token."""
        prompt_tokens = sum(len(message.text.split()) for message in self.messages)
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "total_tokens": prompt_tokens + completion_tokens,
        }


class _Handler(RequestHandler):
    """Checks the key, and answers errors in the provider's form."""

    def initialize(self, key: str) -> None:
        self._key = key

    def prepare(self) -> None:
        self._number = next(_request_numbers)
        self.set_header("x-request-id", f"req_demo{self._number:08}")
        if self.request.headers.get("Authorization") != f"Bearer {self._key}":
            self.refuse(401, "Incorrect API key provided.", "invalid_api_key")

    def refuse(self, status: int, message: str, code: str | None = None) -> None:
        self.set_status(status)
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        self.finish({"error": error})


class _Models(_Handler):
    def get(self) -> None:
        self.finish({"object": "list", "data": [{"id": name, "object": "model"} for name in _MODELS]})


class _ChatCompletions(_Handler):
    def prepare(self) -> None:
        self._closed = asyncio.Event()
        super().prepare()

    async def post(self) -> None:
        try:
            request = msgspec.json.decode(self.request.body, type=_ChatRequest)
        except msgspec.DecodeError as error:
            return self.refuse(400, f"We could not parse the JSON body of your request: {error}")
        if request.wish == "limited":
            self.set_header("Retry-After", str(_RETRY_AFTER_S))
            return self.refuse(429, f"Rate limit reached for {request.model}.", "rate_limit_exceeded")
        if request.wish == "failing":
            return self.refuse(500, "The server had an error while processing your request.")
        if not request.stream:
            return self._answer(request)
        try:
            await self._stream(request)
        except StreamClosedError:
            return None

    def on_connection_close(self) -> None:
        self._closed.set()

    def _answer(self, request: _ChatRequest) -> None:
        words = request.words()
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": "".join(words), "refusal": None},
            "finish_reason": "stop",
        }
        usage = request.usage(len(words))
        self.finish(self._object("chat.completion", request) | {"choices": [choice], "usage": usage})

    async def _stream(self, request: _ChatRequest) -> None:
        self.set_header("Content-Type", "text/event-stream; charset=utf-8")
        self._write_delta(request, {"role": "assistant", "content": ""})
        await self.flush()
        await self._pause(_SLOW_S if request.wish == "slow" else _WORD_S)
        words = request.words()
        for number, word in enumerate(words):
            if request.wish == "broken" and number == _BREAK_AFTER_WORDS:
                cast("HTTP1Connection", self.request.connection).stream.close()
                return
            self._write_delta(request, {"content": word})
            await self.flush()
            await self._pause(_WORD_S)
        self._write_delta(request, {}, "stop")
        if request.stream_options is not None and request.stream_options.include_usage:
            usage = request.usage(len(words))
            self._write_event(
                self._object("chat.completion.chunk", request) | {"choices": [], "usage": usage}
            )
        self.write(b"data: [DONE]\n\n")

    def _write_delta(self, request: _ChatRequest, delta: dict[str, str], finish: str | None = None) -> None:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        self._write_event(self._object("chat.completion.chunk", request) | {"choices": [choice]})

    def _write_event(self, event: dict[str, Any]) -> None:
        self.write(b"data: %b\n\n" % msgspec.json.encode(event))

    def _object(self, kind: str, request: _ChatRequest) -> dict[str, Any]:
        created = int(time.time())
        return {
            "id": f"chatcmpl-demo{self._number}",
            "object": kind,
            "created": created,
            "model": request.model,
        }

    async def _pause(self, seconds: float) -> None:
        """Wait; raises StreamClosedError as soon as the client leaves."""
        try:
            await asyncio.wait_for(self._closed.wait(), seconds)
        except TimeoutError:
            return
        raise StreamClosedError
