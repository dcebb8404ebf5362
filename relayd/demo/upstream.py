"""An offline upstream for `relayd serve --demo`: the provider's protocols, and an answer word by word.

It answers chat completions and responses, streamed or whole, and lists its models.

One of these words in the model's name or in the last message asks for something else than a short answer:

| word | answer |
|---|---|
| `demo-long` | two minutes of words |
| `demo-slow` | the first word after five seconds |
| `demo-limited` | 429, with `Retry-After` |
| `demo-failing` | 500 |
| `demo-broken` | the connection ends in the middle |

`python -m relayd.demo.upstream` runs it alone: it takes its key from `RELAYD_DEMO_KEY`, and prints its URL.
"""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Iterator
from itertools import count
from typing import Any, Final, Generic, TypeVar, cast

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
            [
                ("/v1/chat/completions", _ChatCompletions, arguments),
                ("/v1/responses", _Responses, arguments),
                ("/v1/models", _Models, arguments),
                ("/v1/models/(.+)", _Model, arguments),
            ],
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
    role: str = "user"
    content: str | list[dict[str, Any]] | None = None

    @property
    def text(self) -> str:
        if isinstance(self.content, list):
            return " ".join(str(part.get("text", "")) for part in self.content)
        return self.content or ""


class _StreamOptions(msgspec.Struct):
    include_usage: bool = False


class _Request(msgspec.Struct):
    """What both protocols ask."""

    model: str
    stream: bool | None = None

    @property
    def texts(self) -> list[str]:
        """Return the text of each message."""
        raise NotImplementedError

    @property
    def wish(self) -> str | None:
        """Return the word that asks for something else than a short answer."""
        found = re.search(r"demo-(long|slow|limited|failing|broken)\b", f"{self.model} {self._question}")
        return found and found[1]

    @property
    def _question(self) -> str:
        return self.texts[-1] if self.texts else ""

    @property
    def prompt_tokens(self) -> int:
        """Return how many tokens were asked; a word counts as one."""
        return sum(len(text.split()) for text in self.texts)

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


class _ChatRequest(_Request, kw_only=True):
    messages: list[_Message]
    stream_options: _StreamOptions | None = None

    @property
    def texts(self) -> list[str]:
        return [message.text for message in self.messages]


class _ResponsesRequest(_Request, kw_only=True):
    input: str | list[_Message]

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else [message.text for message in self.input]


_R = TypeVar("_R", bound=_Request)


class _Handler(RequestHandler):
    """Checks the key, and answers errors in the provider's form."""

    def initialize(self, key: str) -> None:
        self._key = key

    def prepare(self) -> None:
        self.number = next(_request_numbers)
        self.set_header("x-request-id", f"req_demo{self.number:08}")
        if self.request.headers.get("Authorization") != f"Bearer {self._key}":
            self.refuse(401, "Incorrect API key provided.", "invalid_api_key")

    def refuse(self, status: int, message: str, code: str | None = None) -> None:
        self.set_status(status)
        error = {"message": message, "type": "invalid_request_error", "param": None, "code": code}
        self.finish({"error": error})


class _Models(_Handler):
    def get(self) -> None:
        self.finish({"object": "list", "data": [_model(name) for name in _MODELS]})


class _Model(_Handler):
    def get(self, name: str) -> None:
        if name not in _MODELS:
            return self.refuse(404, f"The model '{name}' does not exist.", "model_not_found")
        self.finish(_model(name))
        return None


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "relayd"}


class _Answers(_Handler, Generic[_R]):
    """Answers a question; a subclass says how its protocol puts it."""

    request_type: type[_R]

    def answer(self, request: _R, words: list[str]) -> dict[str, Any]:
        """Return the whole answer."""
        raise NotImplementedError

    def pieces(self, request: _R, words: list[str]) -> Iterator[bytes]:
        """Yield what comes before the first word, then each word, then what follows the last one."""
        raise NotImplementedError

    def prepare(self) -> None:
        self._closed = asyncio.Event()
        self.created = int(time.time())
        super().prepare()

    async def post(self) -> None:
        try:
            request = msgspec.json.decode(self.request.body, type=self.request_type)
        except msgspec.DecodeError as error:
            return self.refuse(400, f"We could not parse the JSON body of your request: {error}")
        if request.wish == "limited":
            self.set_header("Retry-After", str(_RETRY_AFTER_S))
            return self.refuse(429, f"Rate limit reached for {request.model}.", "rate_limit_exceeded")
        if request.wish == "failing":
            return self.refuse(500, "The server had an error while processing your request.")
        if not request.stream:
            self.finish(self.answer(request, request.words()))
            return None
        try:
            await self._stream(request)
        except StreamClosedError:
            return None

    def on_connection_close(self) -> None:
        self._closed.set()

    async def _stream(self, request: _R) -> None:
        self.set_header("Content-Type", "text/event-stream; charset=utf-8")
        for number, piece in enumerate(self.pieces(request, request.words())):
            if number:
                await self._pause(_SLOW_S if number == 1 and request.wish == "slow" else _WORD_S)
            if number > _BREAK_AFTER_WORDS and request.wish == "broken":
                cast("HTTP1Connection", self.request.connection).stream.close()
                return
            self.write(piece)
            await self.flush()

    async def _pause(self, seconds: float) -> None:
        """Wait; raises StreamClosedError as soon as the client leaves."""
        try:
            async with asyncio.timeout(seconds):
                await self._closed.wait()
        except TimeoutError:
            return
        raise StreamClosedError


def _sse(*events: dict[str, Any]) -> bytes:
    """Return events as a stream has them."""
    names = (f"event: {event['type']}\n".encode() if "type" in event else b"" for event in events)
    return b"".join(
        b"%bdata: %b\n\n" % (name, msgspec.json.encode(event))
        for name, event in zip(names, events, strict=True)
    )


class _ChatCompletions(_Answers[_ChatRequest]):
    request_type = _ChatRequest

    def answer(self, request: _ChatRequest, words: list[str]) -> dict[str, Any]:
        message = {"role": "assistant", "content": "".join(words), "refusal": None}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        usage = _chat_usage(request, words)
        return {**self._frame(request), "object": "chat.completion", "choices": choices, "usage": usage}

    def pieces(self, request: _ChatRequest, words: list[str]) -> Iterator[bytes]:
        yield _sse(self._chunk(request, {"role": "assistant", "content": ""}))
        for word in words:
            yield _sse(self._chunk(request, {"content": word}))
        last = [self._chunk(request, {}, "stop")]
        if request.stream_options is not None and request.stream_options.include_usage:
            last.append({**self._frame(request), "choices": [], "usage": _chat_usage(request, words)})
        yield _sse(*last) + b"data: [DONE]\n\n"

    def _chunk(
        self, request: _ChatRequest, delta: dict[str, str], finish: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return {**self._frame(request), "choices": [choice]}

    def _frame(self, request: _ChatRequest) -> dict[str, Any]:
        kind = {"object": "chat.completion.chunk", "created": self.created, "model": request.model}
        return {"id": f"chatcmpl-demo{self.number}", **kind}


class _Responses(_Answers[_ResponsesRequest]):
    request_type = _ResponsesRequest

    def answer(self, request: _ResponsesRequest, words: list[str]) -> dict[str, Any]:
        return self._response(request, words)

    def pieces(self, request: _ResponsesRequest, words: list[str]) -> Iterator[bytes]:
        numbers = count()

        def event(kind: str, **fields: Any) -> dict[str, Any]:
            return {"type": f"response.{kind}", "sequence_number": next(numbers), **fields}

        begun, text = self._response(request, None), "".join(words)
        at = {"item_id": f"msg_demo{self.number}", "output_index": 0, "content_index": 0}
        yield _sse(
            event("created", response=begun),
            event("in_progress", response=begun),
            event("output_item.added", output_index=0, item=self._item(None)),
            event("content_part.added", **at, part=_part("")),
        )
        for word in words:
            yield _sse(event("output_text.delta", **at, delta=word, logprobs=[]))
        yield _sse(
            event("output_text.done", **at, text=text, logprobs=[]),
            event("content_part.done", **at, part=_part(text)),
            event("output_item.done", output_index=0, item=self._item(words)),
            event("completed", response=self._response(request, words)),
        )

    def _item(self, words: list[str] | None) -> dict[str, Any]:
        content = [] if words is None else [_part("".join(words))]
        status = "in_progress" if words is None else "completed"
        said = {"role": "assistant", "status": status, "content": content}
        return {"id": f"msg_demo{self.number}", "type": "message", **said}

    def _response(self, request: _ResponsesRequest, words: list[str] | None) -> dict[str, Any]:
        """Return the response, over or, without words, begun."""
        usage = None
        if words is not None:
            usage = {
                "input_tokens": request.prompt_tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": len(words),
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": request.prompt_tokens + len(words),
            }
        return {
            "id": f"resp_demo{self.number}",
            "object": "response",
            "created_at": self.created,
            "status": "in_progress" if words is None else "completed",
            "error": None,
            "incomplete_details": None,
            "instructions": None,
            "metadata": {},
            "model": request.model,
            "output": [] if words is None else [self._item(words)],
            "parallel_tool_calls": True,
            "temperature": 1.0,
            "tool_choice": "auto",
            "tools": [],
            "top_p": 1.0,
            "usage": usage,
        }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _chat_usage(request: _ChatRequest, words: list[str]) -> dict[str, int]:
    return {
        "prompt_tokens": request.prompt_tokens,
        "completion_tokens": len(words),
        "total_tokens": request.prompt_tokens + len(words),
    }


async def _serve_alone() -> None:
    upstream = DemoUpstream(os.environ["RELAYD_DEMO_KEY"])
    upstream.start()
    print(upstream.base_url, flush=True)  # noqa: T201 - this is what the caller waits for
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve_alone())
