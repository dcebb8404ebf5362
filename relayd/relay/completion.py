"""What the provider's stream says, event by event: text, finish reason, usage, or its end.

Shapes: OpenAI API reference, "Chat Completions: the chunk object". Only the fields that relayd uses
are decoded; everything else is skipped unread.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from relayd.relay.failure import Code, Failure
from relayd.relay.lines import Usage
from relayd.relay.sse import SseDecoder

MAX_EVENT_BYTES = 1 << 20
_DONE = b"[DONE]"


class _Delta(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] | None = None
    usage: Usage | None = None
    error: Any = None


_decode = msgspec.json.Decoder(_Chunk).decode


class CompletionStream:
    """Follows one completion through its bytes. `feed` returns text; the attributes say the rest.

    Args:
        scrub: makes the provider's error messages fit to show.
    """

    def __init__(self, scrub: Callable[[str], str]) -> None:
        self._scrub = scrub
        self._decoder = SseDecoder(MAX_EVENT_BYTES)
        self.finish_reason: str | None = None
        self.usage: Usage | None = None
        self.done = False
        """True after `[DONE]`: nothing more is of interest."""
        self.failure: Failure | None = None
        """Set once the stream said that it failed, or cannot be read; what came before it counts."""

    @property
    def whole(self) -> bool:
        """Whether the answer has come to a good end, and nothing more is of interest."""
        return self.done and self.finish_reason is not None and self.failure is None

    @property
    def is_ending(self) -> bool:
        """Whether a finish reason, `[DONE]` or a failure has come."""
        return self.finish_reason is not None or self.done or self.failure is not None

    def feed(self, piece: bytes) -> list[str]:
        """Take the next bytes; return the pieces of text in them, in order, none empty."""
        texts: list[str] = []
        for event in self._decoder.feed(piece):
            if self.done or self.failure is not None:
                return texts
            if event == _DONE:
                self.done = True
            else:
                self._take(event, texts)
        if self._decoder.overflowed and not self.done and self.failure is None:
            self._fail(f"The provider sent an event of more than {MAX_EVENT_BYTES} bytes.")
        return texts

    def _take(self, event: bytes, texts: list[str]) -> None:
        try:
            chunk = _decode(event)
        except (ValueError, RecursionError):
            # The event's text stays out of the sentence: it may quote the conversation.
            self._fail("The provider sent an event that is not a chat completion chunk.")
            return
        if chunk.error:
            self._fail(self._in_band_sentence(chunk.error))
            return
        if chunk.usage is not None:
            self.usage = chunk.usage
        for choice in chunk.choices or ():
            if choice.delta is not None:
                if choice.delta.content:
                    texts.append(choice.delta.content)
                if choice.delta.refusal:
                    texts.append(choice.delta.refusal)
            if choice.finish_reason:
                self.finish_reason = choice.finish_reason

    def _fail(self, sentence: str) -> None:
        self.failure = Failure(Code.UPSTREAM_FAILED, sentence)

    def _in_band_sentence(self, error: Any) -> str:
        message = error.get("message") if isinstance(error, dict) else error
        if not isinstance(message, str) or not message:
            return "The provider reported an error in the middle of its answer."
        return f"The provider reported an error in the middle of its answer: {self._scrub(message)}"
