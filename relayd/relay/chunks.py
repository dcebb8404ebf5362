"""What a provider's chat stream says, event by event: text, finish reason, usage, error.

Shapes: OpenAI API reference, "The chat completion chunk object". A chunk is judged only by the fields that
are needed here; odd values in other fields never spoil an answer.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from relayd.relay.errors import ErrorCode, RelayError, broken_off, truncated
from relayd.relay.provider_errors import (
    find_in_band_error,
    json_value,
    load_json,
    parse_error,
    parse_error_body,
    reported_error,
)
from relayd.relay.redact import Redactor
from relayd.relay.sse import EventSplitter, SseEvent, parse_event
from relayd.relay.usage import TokenCounts, read_count, read_usage

MAX_EVENT_BYTES = 1 << 20
MAX_FINISH_REASON_CHARS = 100
_MAX_UNFRAMED_BYTES = 64 << 10
# JSON or a page. A reply without `data:` may begin with `<think>`, and must not be recorded.
_MAY_BE_REASON = re.compile(rb"[{\[]|<(?:!doctype|html|head|body|\?xml|error)\b", re.IGNORECASE)
DONE = b"[DONE]"


class _Delta(msgspec.Struct):
    content: str | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[msgspec.Raw] | None = None


class Choice(msgspec.Struct):
    """The fields of a choice that are needed here."""

    index: int = 0
    delta: _Delta | None = None
    text: str | None = None
    """Of the older completions."""
    finish_reason: str | None = None


class Chunk(msgspec.Struct):
    """The fields of a chunk that are needed here."""

    choices: list[Choice] | None = None
    usage: dict[str, Any] | None = None


_decode = msgspec.json.Decoder(Chunk).decode


class Usage(msgspec.Struct, frozen=True):
    """Tokens as the provider counted them, for a client of /chat that asked."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class ChunkReader:
    """Follows one answer event by event: `read_event` gives its text, the attributes say the rest.

    Args:
        redact: applied to every text of the provider that is kept.
    """

    def __init__(self, redact: Redactor) -> None:
        self._redact = redact
        self._last_words: RelayError | None = None
        """The error of an answer that ends here, by the latest event that is no chunk: a keep-alive, or
        what a broken provider said last."""
        self._plain_text = ""
        """The latest event that is no JSON."""
        self._unframed: RelayError | None = None
        """The error of an answer that ends here, by what came in place of events."""
        self.finish_reason: str | None = None
        """Why the model stopped; None until it has, and again if it continues."""
        self.usage: Usage | None = None
        """Tokens as the client is told."""
        self.tokens: TokenCounts | None = None
        """Tokens as they are recorded."""
        self.done = False
        """Whether `[DONE]` came: nothing after it is read."""
        self.events = 0
        """Events so far; comments are none."""
        self.has_progressed = False
        """Whether the model has begun to write, be it reasoning that the client does not see."""
        self.error: RelayError | None = None
        """Why the answer failed. Text that came before it counts."""
        self.tells_error = False
        """Whether an event of the provider has the error where every client looks for it."""

    @property
    def finished(self) -> bool:
        """Whether the answer is whole: a finish reason came, and no text after it."""
        return self.finish_reason is not None and self.error is None

    def end(self, *, is_broken: bool = False) -> RelayError | None:
        """Return why the answer failed if its bytes end here, or are cut here, or None if it is whole."""
        if self.error is not None or self.finished:
            return self.error
        if self._unframed is not None:
            return self._unframed
        return broken_off() if is_broken else self._last_words or truncated()

    def read_unframed(self, raw: bytes) -> None:
        """Take what is no event: an error, or a page, without `data:` before it says why the answer ends."""
        text = raw.strip()
        if len(text) > _MAX_UNFRAMED_BYTES or _MAY_BE_REASON.match(text) is None:
            return
        said = json_value(text)
        error = find_in_band_error(said)
        if error is not None:
            self._unframed = reported_error(error, self._redact)
            return
        message = (parse_error(said) if text[:1] != b"<" else parse_error_body(text)).message
        if message is not None:
            self._unframed = truncated(self._redact(message))

    def read_event(self, event: SseEvent, texts: list[str]) -> None:
        """Take an event; append its pieces of text, none empty."""
        # `find_in_band_error` needs the whole chunk decoded, which nearly no chunk is worth.
        if b'"error"' not in event.data and event.type != b"error":
            try:
                chunk = _decode(event.data)
            except (ValueError, RecursionError):
                pass  # an unusual chunk: decoded leniently below
            else:
                if chunk.choices is not None:
                    self.take_chunk(chunk, texts)
                    return
        self._read_unusual(event, texts)

    def take_chunk(self, chunk: Chunk, texts: list[str]) -> None:
        """Take a chunk; append its pieces of text."""
        if chunk.usage is not None:
            self.take_usage(chunk.usage)
        for choice in chunk.choices or ():
            delta = choice.delta
            if delta is not None:
                if delta.content:
                    self._add_text(delta.content, texts)
                if delta.refusal:
                    self._add_text(delta.refusal, texts)
                if delta.reasoning_content or delta.reasoning:
                    self.has_progressed = True
            if choice.finish_reason is not None:
                self.take_finish(choice.finish_reason)

    def _read_unusual(self, event: SseEvent, texts: list[str]) -> None:
        data = event.data.strip()
        if data == DONE:
            self.done = True
            return
        try:
            chunk = load_json(data)
        except ValueError:
            if event.type == b"error":
                self._fail_in_band(data.decode("utf-8", "replace"))
            elif data.startswith((b"{", b"[")):
                # Its text stays out of the message: it may quote the conversation.
                self._fail("The provider sent an event that is not a chat completion chunk.")
            elif data:
                words = self._redact(data.decode("utf-8", "replace"))
                # One such text is a sentence; several may be the reply of a provider that sends no chunks.
                self._last_words = truncated(words, may_quote_reply=self._plain_text not in {"", words})
                self._plain_text = words
            return
        error = chunk if event.type == b"error" else find_in_band_error(chunk)
        if error is not None:
            self.tells_error = isinstance(chunk, dict) and bool(chunk.get("error"))
            self._fail_in_band(error)
        elif isinstance(chunk, dict):
            self.take_chunk(_lenient_chunk(chunk), texts)
            if "choices" not in chunk:
                # It may say why the answer ends early: `{"detail": "The model is overloaded"}`.
                self._last_words = truncated(self._redact(parse_error(chunk).message or ""))

    def _add_text(self, text: str, texts: list[str]) -> None:
        texts.append(text)
        self.has_progressed = True
        self.finish_reason = None

    def take_finish(self, reason: str) -> None:
        """Take the finish reason of a choice."""
        # Some providers write the text "null", or an empty one, until the last chunk.
        if not reason or reason == "null":
            return
        if reason == "error":
            self._fail("The provider broke off its answer with an error.")
            return
        self.finish_reason = self._redact(reason, MAX_FINISH_REASON_CHARS)

    def take_usage(self, usage: dict[str, Any]) -> None:
        """Take the usage of a chunk."""
        counts = [read_count(usage.get(field)) for field in Usage.__struct_fields__]
        if any(count is not None for count in counts):
            self.usage = Usage(*(count or 0 for count in counts))
            self.tokens = read_usage(usage)

    def _fail_in_band(self, error: object) -> None:
        # A finished answer is whole, whatever comes after it.
        if not self.finished and self.error is None:
            self.error = reported_error(error, self._redact)

    def _fail(self, message: str) -> None:
        if not self.finished and self.error is None:
            self.error = RelayError(ErrorCode.UPSTREAM_FAILED, message)


class ChatCompletion(ChunkReader):
    """Follows one answer through its bytes: `feed` returns its text.

    Args:
        redact: applied to every text of the provider that is kept.
    """

    def __init__(self, redact: Redactor) -> None:
        super().__init__(redact)
        self._splitter = EventSplitter()

    def feed(self, data: bytes) -> list[str]:
        """Take the next bytes; return the pieces of text in them, in order, none empty."""
        texts: list[str] = []
        for raw in self._splitter.feed(data):
            if self.done or self.error is not None:
                return texts
            if len(raw) > MAX_EVENT_BYTES:
                self._overflow()
                return texts
            event = parse_event(raw)
            if event is not None:
                self.events += 1
                self.read_event(event, texts)
            else:
                self.read_unframed(raw)
        if len(self._splitter.rest) > MAX_EVENT_BYTES and not self.done:
            self._overflow()
        return texts

    def end(self, *, is_broken: bool = False) -> RelayError | None:
        """Return why the answer failed if its bytes end here, or are cut here, or None if it is whole."""
        self.read_unframed(bytes(self._splitter.rest))
        return super().end(is_broken=is_broken)

    def _overflow(self) -> None:
        """Fail at an event that is too long. Nothing behind it is read, not even a finish."""
        self.done = True
        self._fail(f"The provider sent an event of more than {MAX_EVENT_BYTES} bytes.")


def _lenient_chunk(chunk: dict[str, Any]) -> Chunk:
    """Take from a chunk what can be used, and leave out what has an odd type."""
    choices = chunk.get("choices")
    usage = chunk.get("usage")
    return Chunk(
        choices=[_lenient_choice(choice) for choice in choices if isinstance(choice, dict)]
        if isinstance(choices, list)
        else None,
        usage=usage if isinstance(usage, dict) else None,
    )


def _lenient_choice(choice: dict[str, Any]) -> Choice:
    delta = choice.get("delta")
    reason = choice.get("finish_reason")
    index = choice.get("index")
    return Choice(
        index=index if isinstance(index, int) else 0,
        delta=_lenient_delta(delta) if isinstance(delta, dict) else None,
        text=_text_of(choice.get("text")),
        finish_reason=reason if isinstance(reason, str) else None,
    )


def _lenient_delta(delta: dict[str, Any]) -> _Delta:
    texts = {
        name: _text_of(delta.get(name)) for name in ("content", "refusal", "reasoning_content", "reasoning")
    }
    return _Delta(**texts, tool_calls=[msgspec.Raw(b"{}")] if delta.get("tool_calls") else None)


def _text_of(content: object) -> str | None:
    """Return a text, or the text parts of a list of content parts joined."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = (part.get("text") if isinstance(part, dict) else part for part in content)
        return "".join(part for part in parts if isinstance(part, str))
    return None
