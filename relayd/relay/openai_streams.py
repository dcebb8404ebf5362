"""The event streams of OpenAI's protocols, which pass as they are, and how they end.

A stream ends well only with its finish. If it does not, the client gets an error that the SDKs raise, in
place of the end that it expects.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from typing import Any, ClassVar, NamedTuple

import msgspec

from relayd.relay.chunks import DONE, MAX_FINISH_REASON_CHARS, Choice, Chunk, ChunkReader
from relayd.relay.errors import ErrorCode, RelayError, broken_off, truncated
from relayd.relay.json_fields import FieldScanner
from relayd.relay.openai_errors import error_event, failed_response_event
from relayd.relay.provider_errors import json_text, json_value, load_json, reported_error
from relayd.relay.redact import Redactor
from relayd.relay.sse import EventSplitter, SseEvent, parse_event
from relayd.relay.stream import Answer
from relayd.relay.usage import read_usage

HEARTBEAT = b":\n"
"""A comment without an empty line: behind an `id:` line openai-python takes an empty line for an event."""
_MAX_HELD_BYTES = 256 << 10
_EVENT_END = b"\n\n"
# An incomplete event that may become `[DONE]`.
_MAY_BE_DONE = re.compile(rb"(?:\A|[\r\n])(?:d|da|dat|data|data:[ \t]{0,16}(?:\[[^\r\n]{0,16}[\r\n]*)?)\Z")
# An event that may tell an error, which could quote the provider's key.
_MAY_TELL_ERROR = re.compile(rb'"error"|(?:\A|[\r\n])event: ?error')
_MAX_MARK_BYTES = len(b"\nevent: error")
_PAYLOAD = re.compile(rb"(?:\A|[\r\n])data: ?+[^\r\n]")
_FINISHES = frozenset({"response.completed", "response.incomplete", "response.failed"})
_WITH_RESPONSE = _FINISHES | {"response.created", "response.queued", "response.in_progress"}
_KEPT_OF_RESPONSE = ("id", "created_at", "model")


class StreamProtocol(Enum):
    """What an endpoint streams."""

    CHAT = auto()
    """Chunks with choices, then `[DONE]`: chat completions, completions."""
    RESPONSES = auto()
    """Typed events, the last of which has the response."""
    OTHER = auto()
    """Events until the body ends: images, transcriptions, speech."""


class ResponseHead(NamedTuple):
    """The head of the provider's response."""

    status: int
    headers: Sequence[tuple[bytes, bytes]]
    is_stream: bool


class Observation(msgspec.Struct, kw_only=True):
    """What a request wants of its answer beside the bytes.

    Args:
        protocol: of a stream.
        expects_stream: whether the client asked for one.
        strips_usage: whether the chunk with the usage was asked for by the relay alone.
        counts_usage: whether the answer tells what the request used; a stored one tells what another used.
        on_head: told the head before the first byte.
        on_created: told the id of an object that the answer creates, before its client knows it; and the
            route that made it.
        rewrite: makes another body of the whole one, if the body may not pass as it is.
    """

    protocol: StreamProtocol = StreamProtocol.OTHER
    expects_stream: bool = False
    strips_usage: bool = False
    counts_usage: bool = True
    on_head: Callable[[ResponseHead], None]
    on_created: Callable[[str, str | None], None] | None = None
    rewrite: Callable[[bytes], bytes] | None = None

    @property
    def must_stream(self) -> bool:
        """Whether the answer is a stream or none: not every model streams a transcription or an image."""
        return self.expects_stream and self.protocol is not StreamProtocol.OTHER


class Verdict(Enum):
    """What becomes of an event."""

    PASS = auto()
    DROP = auto()
    """It was asked for by the relay alone."""
    TELL = auto()
    """It tells an error in the provider's words, and passes without the provider's key."""
    STOP = auto()
    """It and all that follows stays here: the stream has failed."""


class EventStreamAnswer(Answer):
    """An event stream of which every complete event leaves at once.

    Only if a chunk is to be taken out, an incomplete event is held back until it is whole; else only what may
    become `[DONE]`, which does not leave before a finish, or tell an error. Subclasses judge the events.

    Args:
        redact: makes the provider's texts fit to show.
        wants: what is to be seen in the stream.
        route: that made it.
    """

    finished = False
    long_fields: ClassVar[Mapping[bytes, int]]
    """What is read of an event that is too long to be kept, and its depth (`FieldScanner`)."""

    def __init__(self, redact: Redactor, wants: Observation, route: str | None) -> None:
        self.told: RelayError | None = None
        """The error that an event of the provider tells."""
        self.redact = redact
        self.wants = wants
        self.route = route
        self._splitter = EventSplitter()
        self._sent_bytes = 0
        """How much of the incomplete event the client was sent."""
        self._cut = b""
        """An event of which the client was sent a part, and no more will follow."""
        self._long: FieldScanner | None = None
        """What is read of an incomplete event that is too long to be kept."""

    def judge(self, event: SseEvent) -> Verdict:
        """Read an event, and decide what becomes of it; called with each in turn."""
        raise NotImplementedError

    def read_unframed(self, raw: bytes) -> None:
        """Read what is no event, and may say why the stream ends."""

    def judge_long(self, fields: Mapping[bytes, bytes]) -> None:
        """Read the `long_fields` of an event that was too long to be kept, and has left."""
        raise NotImplementedError

    def error_event(self, error: RelayError) -> bytes:
        """Return the event that makes the SDKs raise."""
        return error_event(error)

    def end(self, *, is_broken: bool) -> RelayError | None:
        """Return why the stream failed if it ends here, or is cut here, or None if it is whole."""
        if self.error is not None or self.finished:
            return self.error
        return broken_off() if is_broken else truncated()

    def relay(self, data: bytes) -> bytes:
        """Return what the client is sent for the next bytes: the same ones, nearly always."""
        sent = self._sent_bytes
        pieces: list[bytes] = []
        for raw in self._splitter.feed(data):
            verdict = self._read(raw)
            if verdict is Verdict.PASS:
                pieces.append(raw[sent:] if sent else raw)
            elif verdict is Verdict.TELL:
                pieces.append(self.redact.scrub(raw[sent:]))
            elif verdict is Verdict.STOP and sent:
                self._cut = raw[:sent]
            sent = 0
            if self.done or self.error is not None:
                self._splitter.rest.clear()
                break
        rest = self._splitter.rest
        if rest and not self._holds(rest, sent):
            pieces.append(bytes(rest[sent:]))
            sent = len(rest)
            if len(rest) > _MAX_HELD_BYTES:
                self._begin_long()
                sent = len(self._splitter.rest)
        self._sent_bytes = sent
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read(self, raw: bytes) -> Verdict:
        if self._long is not None:
            self._long.feed(raw)
            self.judge_long(self._long.found)
            self._long = None
            return Verdict.PASS
        event = parse_event(raw)
        if event is None:
            self.read_unframed(raw)
            # It passes though no client reads it: an error without `data:` before it may quote the key.
            return Verdict.TELL if _MAY_TELL_ERROR.search(raw) else Verdict.PASS
        self.events += 1
        self.has_progressed = True
        return self.judge(event)

    def _holds(self, rest: bytearray, sent: int) -> bool:
        """Return whether an incomplete event, of which `sent` bytes have left, must not leave further yet."""
        if len(rest) > _MAX_HELD_BYTES:
            return False
        if self.wants.strips_usage and not sent:
            return True
        # What has left began no match: only the end of it can be the beginning of one.
        at = max(0, sent - _MAX_MARK_BYTES)
        # An error is found at its beginning, and so is cheap to find again with each of many pieces.
        return _MAY_TELL_ERROR.search(rest, at) is not None or _MAY_BE_DONE.search(rest, at) is not None

    def _begin_long(self) -> None:
        start = self._splitter.forget()
        if self._long is None:
            self._long = FieldScanner(self.long_fields)
            start = start[start.find(b"{") :]
        self._long.feed(start)

    def heartbeat(self) -> bytes:
        """Return a comment if the client was sent whole events only."""
        return b"" if self._sent_bytes else HEARTBEAT

    def last_bytes(self, error: RelayError | None) -> bytes:
        """Return what was held back of a whole stream, or the event that tells the error."""
        rest = bytes(self._splitter.rest)
        if error is None:
            left = rest[self._sent_bytes :]
            # It ends without the empty line behind its last event.
            event = None if self._sent_bytes else parse_event(left)
            verdict = Verdict.PASS if event is None else self.judge(event)
            if verdict is Verdict.PASS:
                return left
            return self.redact.scrub(left) if verdict is Verdict.TELL else b""
        if error is self.told:
            return b""
        # Of a long event only the end is kept, which does not show that it has data.
        end = _EVENT_END if self._long is not None else _end_of_event(self._cut or rest[: self._sent_bytes])
        return end + self.error_event(error)


class ChatStream(EventStreamAnswer):
    """Chunks with choices: chat completions and completions. It ends with `[DONE]`."""

    long_fields = {b"index": 3, b"finish_reason": 3, b"usage": 1}  # noqa: RUF012 - as declared

    def __init__(self, redact: Redactor, wants: Observation, route: str | None) -> None:
        super().__init__(redact, wants, route)
        self._reader = _ChunkReader(redact)

    def judge(self, event: SseEvent) -> Verdict:
        """Read a chunk; take out the one with the usage that the relay asked for."""
        reader = self._reader
        reader.is_usage_only = reader.tells_error = False
        reader.read_event(event, [])
        self._note_progress()
        if reader.done:
            self.done = True
            return Verdict.PASS if self.finished else Verdict.STOP
        if reader.error is not None:
            self.error = reader.error
            if not reader.tells_error:
                return Verdict.STOP
            self.told = reader.error
        if reader.tells_error:
            return Verdict.TELL
        return Verdict.DROP if reader.is_usage_only and self.wants.strips_usage else Verdict.PASS

    def read_unframed(self, raw: bytes) -> None:
        """Read an error that stands where a chunk should."""
        self._reader.read_unframed(raw)

    def judge_long(self, fields: Mapping[bytes, bytes]) -> None:
        """Read a chunk with an image, or with all of an answer."""
        index = json_value(fields.get(b"index", b"0"))
        usage = json_value(fields.get(b"usage", b""))
        choice = Choice(
            index=index if isinstance(index, int) else 0,
            text="...",
            finish_reason=json_text(fields.get(b"finish_reason", b"")),
        )
        self._reader.take_chunk(Chunk([choice], usage if isinstance(usage, dict) else None), [])
        self._note_progress()

    def _note_progress(self) -> None:
        reader = self._reader
        self.deltas, self.tokens = reader.deltas, reader.tokens
        self.finished, self.finish_reason = reader.finished, reader.finish_reason

    def end(self, *, is_broken: bool) -> RelayError | None:
        """Return why the answer failed, in the words of `/chat`."""
        self.read_unframed(bytes(self._splitter.rest))
        return self._reader.end(is_broken=is_broken)


class _ChunkReader(ChunkReader):
    """Counts the pieces of every kind: text, reasoning, tool calls; knows several choices."""

    deltas = 0
    is_usage_only = False

    def __init__(self, redact: Redactor) -> None:
        super().__init__(redact)
        self._unfinished: set[int] = set()
        """The choices that have begun, and have no finish reason."""

    def take_chunk(self, chunk: Chunk, texts: list[str]) -> None:
        """Read what counts; the texts pass as they are."""
        del texts
        if chunk.usage is not None:
            self.take_usage(chunk.usage)
            self.is_usage_only = not chunk.choices
        is_piece = False
        for choice in chunk.choices or ():
            delta = choice.delta
            if (delta is not None and delta.content) or _has_rare_piece(choice):
                is_piece = True
                self._unfinished.add(choice.index)
                self.finish_reason = None
            if choice.finish_reason is not None:
                self.take_finish(choice.finish_reason)
                if self.finish_reason is not None:
                    self._unfinished.discard(choice.index)
        self.deltas += is_piece

    @property
    def finished(self) -> bool:
        """Whether the answer is whole: each choice that began has its finish."""
        return self.finish_reason is not None and self.error is None and not self._unfinished


def _has_rare_piece(choice: Choice) -> bool:
    delta = choice.delta
    if delta is None:
        return bool(choice.text)
    return bool(
        delta.tool_calls or delta.reasoning_content or delta.reasoning or delta.refusal or choice.text
    )


class ResponsesStream(EventStreamAnswer):
    """Events with a type; the last one has the whole response."""

    long_fields = {b"type": 1, b"usage": 2}  # noqa: RUF012 - as declared

    def __init__(self, redact: Redactor, wants: Observation, route: str | None) -> None:
        super().__init__(redact, wants, route)
        self._response: dict[str, Any] = {}
        """What is known of the response."""
        self._sequence_number = -1

    def judge(self, event: SseEvent) -> Verdict:
        """Read an event; the stream needs no end behind the last one."""
        if event.data == DONE:
            self.done = self.finished
            if not self.finished:
                self.error = truncated()
            return Verdict.PASS if self.finished else Verdict.STOP
        try:
            seen = _decode_event(event.data)
        except (ValueError, RecursionError):
            try:
                seen = _lenient_event(load_json(event.data))
            except ValueError:
                self.error = RelayError(
                    ErrorCode.UPSTREAM_FAILED, "The provider sent an event that is not JSON."
                )
                return Verdict.STOP
        kind = seen.type or event.type.decode("utf-8", "replace")
        if seen.sequence_number is not None:
            self._sequence_number = seen.sequence_number
        if kind.endswith(".delta"):
            self.deltas += 1
        elif kind in _WITH_RESPONSE:
            # The response itself may be long, and is needed once at the beginning and once at the end.
            if not self.finished and (kind in _FINISHES or not self._response):
                self._read_response(kind, json_value(bytes(seen.response)))
        elif kind == "error" or b'"error"' in event.data:
            self._read_error(kind, event.data)
        return Verdict.TELL if self.error is not None or kind == "error" else Verdict.PASS

    def judge_long(self, fields: Mapping[bytes, bytes]) -> None:
        """Read the last event of a response that holds an image."""
        kind = json_text(fields.get(b"type", b"")) or ""
        if kind in _FINISHES:
            self._read_response(
                kind,
                {"usage": json_value(fields.get(b"usage", b"")), "status": kind.rpartition(".")[2]},
            )

    def _read_response(self, kind: str, response: object) -> None:
        if not isinstance(response, dict):
            response = {}
        if not self._response:
            self._response = {name: response[name] for name in _KEPT_OF_RESPONSE if name in response}
            created = response.get("id")
            if self.wants.on_created is not None and isinstance(created, str):
                self.wants.on_created(created, self.route)
        if kind not in _FINISHES:
            return
        if self.wants.counts_usage:
            self.tokens = read_usage(response.get("usage"))
        details = response.get("incomplete_details")
        reason = details.get("reason") if isinstance(details, dict) else None
        if not isinstance(reason, str):
            reason = kind.rpartition(".")[2]
        self.finish_reason = self.redact(reason, MAX_FINISH_REASON_CHARS)
        if kind == "response.failed":
            self._fail(response)
        else:
            self.finished = self.delivered = True

    def _read_error(self, kind: str, data: bytes) -> None:
        event = json_value(data)
        is_told = isinstance(event, dict) and bool(event.get("error"))
        if kind == "error" or is_told:
            self._fail(event, is_told=is_told)

    def _fail(self, said: object, *, is_told: bool = True) -> None:
        if self.finished or self.error is not None:
            return
        self.error = reported_error(said, self.redact)
        if is_told:
            self.told = self.error

    def error_event(self, error: RelayError) -> bytes:
        """Return a failed response that Python, Node and Codex all take for an error."""
        return failed_response_event(error, self._response, self._sequence_number + 1)


class OtherStream(EventStreamAnswer):
    """Events that end with their body: images, transcriptions, speech."""

    long_fields = {b"usage": 1}  # noqa: RUF012 - as declared

    def judge(self, event: SseEvent) -> Verdict:
        """Count an event, and read its usage."""
        self.deltas += 1
        if event.data == DONE:
            self.done = self.finished = True
        elif b'"usage"' in event.data or b'"error"' in event.data:
            value = json_value(event.data)
            if isinstance(value, dict):
                if self.wants.counts_usage:
                    self.tokens = read_usage(value.get("usage")) or self.tokens
                if value.get("error"):
                    self.error = self.told = reported_error(value, self.redact)
                    return Verdict.TELL
        return Verdict.PASS

    def judge_long(self, fields: Mapping[bytes, bytes]) -> None:
        """Count an event with an image, and read its usage."""
        self.deltas += 1
        if self.wants.counts_usage:
            self.tokens = read_usage(json_value(fields.get(b"usage", b""))) or self.tokens

    def end(self, *, is_broken: bool) -> RelayError | None:
        """Return the error of a body that was cut off."""
        return self.error or (broken_off() if is_broken and not self.finished else None)


STREAMS: Mapping[StreamProtocol, type[EventStreamAnswer]] = {
    StreamProtocol.CHAT: ChatStream,
    StreamProtocol.RESPONSES: ResponsesStream,
    StreamProtocol.OTHER: OtherStream,
}


class _Event(msgspec.Struct):
    type: str = ""
    sequence_number: int | None = None
    response: msgspec.Raw = msgspec.Raw(b"null")


_decode_event = msgspec.json.Decoder(_Event).decode


def _lenient_event(value: object) -> _Event:
    if not isinstance(value, dict):
        return _Event()
    kind, number = value.get("type"), value.get("sequence_number")
    return _Event(
        kind if isinstance(kind, str) else "",
        number if isinstance(number, int) else None,
        msgspec.Raw(msgspec.json.encode(value.get("response"))),
    )


def _end_of_event(cut: bytes) -> bytes:
    """Return what ends an event that was sent in part, so that another can follow."""
    if not cut:
        return b""
    if _PAYLOAD.search(cut):
        return _EVENT_END
    # No event without data: it would crash openai-python.
    return b"" if cut.endswith((b"\r", b"\n")) else b"\n"
