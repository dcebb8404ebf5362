"""The answer of `/chat`: one chat completion, sent as NDJSON lines."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from relayd.relay.chunks import ChatCompletion
from relayd.relay.errors import RelayError
from relayd.relay.ndjson import DONE_LINE, HEARTBEAT_LINE, delta_line, done_line, error_line
from relayd.relay.redact import Redactor
from relayd.relay.stream import Answer, UpstreamBody


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
