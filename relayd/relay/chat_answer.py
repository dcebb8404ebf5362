"""The answer of `/chat`: one chat completion, sent as NDJSON lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from relayd.relay.chunks import ChatCompletion, Usage
from relayd.relay.errors import RelayError
from relayd.relay.redact import Redactor
from relayd.relay.stream import Answer, UpstreamBody

_encode = msgspec.json.Encoder().encode

_DELTA_START = b'{"done":false,"error":false,"content":'
_ERROR_START = b'{"done":false,"error":true,"content":'
_DONE_START = b'{"done":true,"error":false,"content":"[DONE]"'

DONE_LINE = _DONE_START + b"}\n"
HEARTBEAT_LINE = _DELTA_START + b'""}\n'

# Line ends for Python's splitlines, httpx and requests, but not for JSON.
_LINE_SEPARATORS = (("\x85", b"\\u0085"), ("\u2028", b"\\u2028"), ("\u2029", b"\\u2029"))


class ChatUpstream(Protocol):
    """The provider of chat completions, or what takes its place."""

    @property
    def redact(self) -> Redactor:
        """Makes its texts fit to show."""

    async def open(
        self, body: bytes, on_connected: Callable[[str | None], None], model: str
    ) -> tuple[str | None, UpstreamBody]:
        """Ask for one completion; return the provider's request id and the answer. Raises RelayError."""


class ChatAnswer(ChatCompletion, Answer):
    """Turns each delta into one line.

    Args:
        upstream: the provider.
        body: the provider's request, as JSON.
        model: that it asks for.
        include_usage: whether the last line carries `finish_reason` and `usage`.
    """

    def __init__(self, upstream: ChatUpstream, body: bytes, model: str, *, include_usage: bool) -> None:
        super().__init__(upstream.redact)
        self._upstream = upstream
        self._body = body
        self._model = model
        self._include_usage = include_usage

    async def open(
        self, on_connected: Callable[[str | None], None]
    ) -> tuple[str | None, UpstreamBody, ChatAnswer]:
        """Ask the provider."""
        # The request, perhaps megabytes of it, must not stay as long as the answer.
        request, self._body = self._body, b""
        request_id, body = await self._upstream.open(request, on_connected, self._model)
        return request_id, body, self

    def relay(self, data: bytes) -> bytes:
        """Return the lines of the deltas in the next bytes; those that came together leave together."""
        texts = self.feed(data)
        if not texts:
            return b""
        self.deltas += len(texts)
        return b"".join([delta_line(text) for text in texts])

    def heartbeat(self) -> bytes:
        """Return a line that adds nothing to the text."""
        return HEARTBEAT_LINE

    def last_bytes(self, error: RelayError | None) -> bytes:
        """Return the `done` line, after the error's if there is one."""
        done = done_line(self.finish_reason, self.usage) if self._include_usage else DONE_LINE
        return done if error is None else error_line(error) + done


def delta_line(content: str) -> bytes:
    """Return the line of one piece of text."""
    return _DELTA_START + _json_string(content) + b"}\n"


def done_line(finish_reason: str | None, usage: Usage | None) -> bytes:
    """Return the last line for a client that asked for usage; unknown values are null."""
    return b'%b,"finish_reason":%b,"usage":%b}\n' % (
        _DONE_START,
        b"null" if finish_reason is None else _json_string(finish_reason),
        _encode(usage),
    )


def error_line(error: RelayError) -> bytes:
    """Return the line of an error; the done line follows it."""
    return _ERROR_START + _json_string(str(error)) + b"}\n"


def _json_string(text: str) -> bytes:
    """Encode text so that every line splitter finds the same lines."""
    encoded = _encode(text)
    if not text.isascii():
        for char, escape in _LINE_SEPARATORS:
            if char in text:
                encoded = encoded.replace(char.encode(), escape)
    return encoded
