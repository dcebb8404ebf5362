"""The answers of `/v1`: the provider's bytes unchanged, and what can be seen in them as they pass.

A stream ends well only with its finish. If it does not, the client gets an error that the SDKs of OpenAI
raise, in place of the end that it expects.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import Enum, auto
from typing import Any, ClassVar, NamedTuple, NoReturn, Protocol, cast

import msgspec

from relayd.relay.chunks import DONE, Choice, Chunk, ChunkReader
from relayd.relay.errors import ErrorCode, RelayError
from relayd.relay.event_stream import EventSplitter, read_event
from relayd.relay.json_fields import JsonFields
from relayd.relay.openai_errors import ProviderRefusal, error_object
from relayd.relay.provider import begins_with_event
from relayd.relay.provider_errors import load_json, parse_error
from relayd.relay.redact import Redactor
from relayd.relay.refusals import read_error_body
from relayd.relay.sse import SseEvent
from relayd.relay.stream import UpstreamBody
from relayd.relay.transport import ConnectionBroken, IncomingResponse
from relayd.relay.upstream import OnConnected, UpstreamRequest, UpstreamResponse
from relayd.relay.usage import TokenCounts, read_usage

_HEARTBEAT = b":\n"
"""A comment without an empty line: behind an `id:` line openai-python takes an empty line for an event."""
_MAX_HELD_BYTES = 256 << 10
# An incomplete event that may become `[DONE]`.
_MAY_BE_DONE = re.compile(rb"(?:\A|[\r\n])(?:d|da|dat|data:?|data: |data: ?\[[^\r\n]{0,8}[\r\n]*)\Z")
# An event that may tell an error, which could quote the provider's key.
_MAY_TELL_ERROR = re.compile(rb'"error"|(?:\A|[\r\n])event: ?error')
_PAYLOAD = re.compile(rb"(?:\A|[\r\n])data: ?+[^\r\n]")
EVENT_STREAM = "text/event-stream"
_MAX_FINISH_REASON_CHARS = 100
_encode = msgspec.json.encode
MakeRequest = Callable[[], Awaitable[UpstreamRequest]]


class Protocols(Enum):
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


class PassthroughUpstream(Protocol):
    """The provider of every endpoint."""

    @property
    def redact(self) -> Redactor:
        """Makes its texts fit to show."""

    async def send(self, request: UpstreamRequest, on_connected: OnConnected) -> UpstreamResponse:
        """Send a request; return when the head of its response is here. Raises RelayError."""


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

    protocol: Protocols = Protocols.OTHER
    expects_stream: bool = False
    strips_usage: bool = False
    counts_usage: bool = True
    on_head: Callable[[ResponseHead], None]
    on_created: Callable[[str, str | None], None] | None = None
    rewrite: Callable[[bytes], bytes] | None = None

    @property
    def must_stream(self) -> bool:
        """Whether the answer is a stream or none: not every model streams a transcription or an image."""
        return self.expects_stream and self.protocol is not Protocols.OTHER


class PassthroughAnswer:
    """What is common to all answers of `/v1`, and the answer before its head has come.

    Implements `relayd.relay.stream.Answer`.

    Args:
        upstream: the provider.
        make_request: returns what it is asked; raises RelayError if it may not be asked.
        wants: what is to be seen in the answer.
    """

    def __init__(self, upstream: PassthroughUpstream, make_request: MakeRequest, wants: Observation) -> None:
        self._upstream = upstream
        self._make_request = make_request
        self._wants = wants
        self._sent_heartbeat = False
        self.deltas = 0
        self.events = 0
        self.has_progressed = False
        self.done = False
        self.error: RelayError | None = None
        self.finish_reason: str | None = None
        self.tokens: TokenCounts | None = None
        self.finished = False
        self.delivered = False

    async def open(
        self, on_connected: OnConnected
    ) -> tuple[str | None, UpstreamBody, PassthroughAnswer | EventStreamAnswer]:
        """Ask the provider.

        Raises:
            ProviderRefusal: its refusal, to be passed on as it is.
            RelayError: any other failure.
        """
        # The request, perhaps megabytes of it, must not stay as long as the answer.
        make_request, self._make_request = self._make_request, _made
        response = await self._upstream.send(await make_request(), on_connected)
        del make_request
        try:
            answer = await self._answer_to(response)
        except BaseException:
            response.body.close()
            raise
        return response.request_id, response.body, answer

    async def _answer_to(self, response: UpstreamResponse) -> PassthroughAnswer | EventStreamAnswer:
        wants = self._wants
        if response.error is not None:
            if response.error.concerns_relay:
                raise response.error
            raise ProviderRefusal(response.error, response.status, response.headers, response.refusal or b"")
        body = response.body
        media_type = body.header(b"content-type").partition(";")[0].strip().lower()
        is_compressed = body.header(b"content-encoding").lower() not in {"", "identity"}
        is_stream = media_type == EVENT_STREAM
        if not is_compressed and not is_stream:
            first = await _first_bytes(body)
            # Some servers forget the type (express, net/http), and the SDKs do not look at it.
            is_stream = wants.must_stream and begins_with_event(first)
            if not is_stream and (wants.must_stream or _REFUSAL.match(first)):
                await self._raise_refusal(response)
        if is_compressed and (is_stream or wants.rewrite is not None):
            raise RelayError(
                ErrorCode.UPSTREAM_FAILED, "The provider compressed its answer, which relayd did not ask for."
            )
        wants.on_head(ResponseHead(response.status, response.headers, is_stream))
        if is_stream:
            make = _STREAMS[wants.protocol]
            return make(self._upstream.redact, wants, response.route)
        if wants.rewrite is not None:
            return RewrittenAnswer(self._upstream, self._make_request, wants)
        is_json = media_type.endswith("json") and not is_compressed
        return BodyAnswer(self._upstream, self._make_request, wants, response.route, is_json=is_json)

    async def _raise_refusal(self, response: UpstreamResponse) -> NoReturn:
        """Raise what an answer says that has status 200 and is none: no SDK would notice."""
        body = await read_error_body(response.body)
        said = _json_value(body)
        if not isinstance(said, dict) or not said.get("error"):
            raise RelayError(
                ErrorCode.UPSTREAM_FAILED,
                "The provider did not answer with an event stream; is upstream.base_url its API?",
            )
        error = _refused(said, "The provider refused the request, with status 200", self._upstream.redact)
        scrubbed = self._upstream.redact.scrub(body)
        raise ProviderRefusal(error, error.status, response.headers, scrubbed)

    def relay(self, data: bytes) -> bytes:
        """Not called: there is no body before the head."""
        raise NotImplementedError

    def heartbeat(self) -> bytes:
        """Return a comment if the client waits for a stream."""
        if not self._wants.must_stream:
            return b""
        self._sent_heartbeat = True
        return _HEARTBEAT

    def end(self, *, is_broken: bool) -> RelayError | None:
        """Return the error of a body that was cut off."""
        return _broken() if is_broken else None

    def last_bytes(self, error: RelayError | None) -> bytes:
        """Return the error for a client that was sent heartbeats."""
        if error is None or not self._sent_heartbeat:
            return b""
        if self._wants.protocol is Protocols.RESPONSES:
            return _failed_response(error, {}, 0)
        return _error_event(error)


class BodyAnswer(PassthroughAnswer):
    """One body, of any size and type.

    Args:
        upstream: as above.
        make_request: as above.
        wants: as above.
        route: that made it.
        is_json: whether fields can be read.
    """

    def __init__(
        self,
        upstream: PassthroughUpstream,
        make_request: MakeRequest,
        wants: Observation,
        route: str | None,
        *,
        is_json: bool,
    ) -> None:
        super().__init__(upstream, make_request, wants)
        self._route = route
        self._fields = JsonFields(_BODY_FIELDS) if is_json else None
        self._is_created = False

    def relay(self, data: bytes) -> bytes:
        """Return the bytes as they are."""
        self.events += 1
        self.deltas = 1
        self.has_progressed = True
        if self._fields is not None:
            self._fields.feed(data)
            self._read()
        return data

    def heartbeat(self) -> bytes:
        """Return nothing: a body has no place for it."""
        return b""

    def _read(self) -> None:
        fields = {} if self._fields is None else self._fields.found
        wants = self._wants
        if wants.on_created is not None and not self._is_created and b"id" in fields:
            created = _json_text(fields[b"id"])
            self._is_created = True
            if created:
                wants.on_created(created, self._route)
        if wants.counts_usage and self.tokens is None and b"usage" in fields:
            self.tokens = read_usage(_json_value(fields[b"usage"]))
        if self.finish_reason is None:
            reason = _json_text(fields.get(b"finish_reason", b"")) or _json_text(fields.get(b"status", b""))
            self.finish_reason = reason and self._upstream.redact(reason, _MAX_FINISH_REASON_CHARS)


class RewrittenAnswer(PassthroughAnswer):
    """A small JSON body that is changed when it is whole."""

    _body = b""
    _rewritten = b""

    def relay(self, data: bytes) -> bytes:
        """Keep the bytes."""
        self.events += 1
        self.has_progressed = True
        self._body += data
        if len(self._body) > _MAX_REWRITTEN_BYTES:
            self.error = RelayError(ErrorCode.UPSTREAM_FAILED, "The provider's answer is too long.")
        return b""

    def end(self, *, is_broken: bool) -> RelayError | None:
        """Return why there is no body, or None."""
        error = self.error or super().end(is_broken=is_broken)
        if error is None and self._wants.rewrite is not None:
            try:
                self._rewritten = self._wants.rewrite(self._body)
            except RelayError as unreadable:
                return unreadable
        return error

    def last_bytes(self, error: RelayError | None) -> bytes:
        """Return the changed body."""
        return b"" if error is not None else self._rewritten


class Verdict(Enum):
    """What becomes of an event."""

    PASS = auto()
    DROP = auto()
    """It was asked for by the relay alone."""
    TELL = auto()
    """It tells an error in the provider's words, and passes without the provider's key."""
    STOP = auto()
    """It and all that follows stays here: the stream has failed."""


class EventStreamAnswer:
    """An event stream of which every complete event leaves at once.

    Only if a chunk is to be taken out, an incomplete event is held back until it is whole; else only what may
    become `[DONE]`, which does not leave before a finish, or tell an error. Subclasses judge the events.

    Implements `relayd.relay.stream.Answer`.

    Args:
        redact: makes the provider's texts fit to show.
        wants: what is to be seen in the stream.
        route: that made it.
    """

    long_fields: ClassVar[Mapping[bytes, int]]
    """What is read of an event that is too long to be kept, and its depth (`JsonFields`)."""

    def __init__(self, redact: Redactor, wants: Observation, route: str | None) -> None:
        self.deltas = 0
        self.events = 0
        self.has_progressed = False
        self.done = False
        self.finished = False
        self.delivered = False
        self.error: RelayError | None = None
        self.finish_reason: str | None = None
        self.tokens: TokenCounts | None = None
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
        self._long: JsonFields | None = None
        """What is read of an incomplete event that is too long to be kept."""

    def judge(self, event: SseEvent) -> Verdict:
        """Read an event, and decide what becomes of it; called with each in turn."""
        raise NotImplementedError

    def judge_long(self, fields: Mapping[bytes, bytes]) -> None:
        """Read the `long_fields` of an event that was too long to be kept, and has left."""
        raise NotImplementedError

    def error_event(self, error: RelayError) -> bytes:
        """Return the event that makes the SDKs raise."""
        return _error_event(error)

    def end(self, *, is_broken: bool) -> RelayError | None:
        """Return why the stream failed if it ends here, or is cut here, or None if it is whole."""
        if self.error is not None or self.finished:
            return self.error
        return _broken() if is_broken else _truncated()

    async def open(self, on_connected: OnConnected) -> tuple[str | None, UpstreamBody, EventStreamAnswer]:
        """Not called: it is open."""
        raise NotImplementedError

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
                sent = len(rest)
        self._sent_bytes = sent
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _read(self, raw: bytes) -> Verdict:
        if self._long is not None:
            self._long.feed(raw)
            self.judge_long(self._long.found)
            self._long = None
            return Verdict.PASS
        event = read_event(raw)
        if event is None:
            return Verdict.PASS
        self.events += 1
        self.has_progressed = True
        return self.judge(event)

    def _holds(self, rest: bytearray, sent: int) -> bool:
        """Return whether an incomplete event, of which `sent` bytes have left, must not leave further yet."""
        if len(rest) > _MAX_HELD_BYTES:
            return False
        if self.wants.strips_usage and not sent:
            return True
        return _MAY_BE_DONE.search(rest) is not None or _MAY_TELL_ERROR.search(rest) is not None

    def _begin_long(self) -> None:
        start = self._splitter.forget()
        if self._long is None:
            self._long = JsonFields(self.long_fields)
            start = start[start.find(b"{") :]
        self._long.feed(start)

    def heartbeat(self) -> bytes:
        """Return a comment if the client was sent whole events only."""
        return b"" if self._sent_bytes else _HEARTBEAT

    def last_bytes(self, error: RelayError | None) -> bytes:
        """Return what was held back of a whole stream, or the event that tells the error."""
        rest = self._splitter.rest
        if error is None:
            left = bytes(rest[self._sent_bytes :])
            # It ends without the empty line behind its last event.
            event = None if self._sent_bytes else read_event(left)
            verdict = Verdict.PASS if event is None else self.judge(event)
            if verdict is Verdict.PASS:
                return left
            return self.redact.scrub(left) if verdict is Verdict.TELL else b""
        if error is self.told:
            return b""
        return _end_of_event(self._cut or bytes(rest[: self._sent_bytes])) + self.error_event(error)


class ChatStream(EventStreamAnswer):
    """Chunks with choices: chat completions and completions. It ends with `[DONE]`."""

    long_fields = {b"index": 3, b"finish_reason": 3, b"usage": 1}  # noqa: RUF012 - as declared

    def __init__(self, redact: Redactor, wants: Observation, route: str | None) -> None:
        super().__init__(redact, wants, route)
        self._reader = _ChunkReader(redact)

    def judge(self, event: SseEvent) -> Verdict:
        """Read a chunk; take out the one with the usage that the relay asked for."""
        reader = self._reader
        if event.data == DONE:
            reader.done = True
        else:
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

    def judge_long(self, fields: Mapping[bytes, bytes]) -> None:
        """Read a chunk with an image, or with all of an answer."""
        index = _json_value(fields.get(b"index", b"0"))
        usage = _json_value(fields.get(b"usage", b""))
        choice = Choice(
            index=index if isinstance(index, int) else 0,
            text="...",
            finish_reason=_json_text(fields.get(b"finish_reason", b"")),
        )
        self._reader.take_chunk(Chunk([choice], usage if isinstance(usage, dict) else None), [])
        self._note_progress()

    def _note_progress(self) -> None:
        reader = self._reader
        self.deltas, self.tokens = reader.deltas, reader.tokens
        self.finished, self.finish_reason = reader.finished, reader.finish_reason

    def end(self, *, is_broken: bool) -> RelayError | None:
        """Return why the answer failed, in the words of `/chat`."""
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
                self.error = _truncated()
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
        elif kind in _WITH_RESPONSE and not self.finished:
            self._read_response(kind, _json_value(bytes(seen.response)))
        elif kind == "error" or b'"error"' in event.data:
            self._read_error(kind, event.data)
        return Verdict.TELL if self.error is not None or kind == "error" else Verdict.PASS

    def judge_long(self, fields: Mapping[bytes, bytes]) -> None:
        """Read the last event of a response that holds an image."""
        kind = _json_text(fields.get(b"type", b"")) or ""
        if kind in _FINISHES:
            self._read_response(
                kind,
                {"usage": _json_value(fields.get(b"usage", b"")), "status": kind.rpartition(".")[2]},
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
        self.finish_reason = self.redact(reason, _MAX_FINISH_REASON_CHARS)
        if kind == "response.failed":
            self._fail(response)
        else:
            self.finished = self.delivered = True

    def _read_error(self, kind: str, data: bytes) -> None:
        event = _json_value(data)
        is_told = isinstance(event, dict) and bool(event.get("error"))
        if kind == "error" or is_told:
            self._fail(event, is_told=is_told)

    def _fail(self, said: object, *, is_told: bool = True) -> None:
        if self.finished or self.error is not None:
            return
        self.error = _in_band(said, self.redact)
        if is_told:
            self.told = self.error

    def error_event(self, error: RelayError) -> bytes:
        """Return a failed response that Python, Node and Codex all take for an error."""
        return _failed_response(error, self._response, self._sequence_number + 1)


class OtherStream(EventStreamAnswer):
    """Events that end with their body: images, transcriptions, speech."""

    long_fields = {b"usage": 1}  # noqa: RUF012 - as declared

    def judge(self, event: SseEvent) -> Verdict:
        """Count an event, and read its usage."""
        self.deltas += 1
        if event.data == DONE:
            self.done = self.finished = True
        elif b'"usage"' in event.data or b'"error"' in event.data:
            value = _json_value(event.data)
            if isinstance(value, dict):
                if self.wants.counts_usage:
                    self.tokens = read_usage(value.get("usage")) or self.tokens
                if value.get("error"):
                    self.error = self.told = _in_band(value, self.redact)
                    return Verdict.TELL
        return Verdict.PASS

    def judge_long(self, fields: Mapping[bytes, bytes]) -> None:
        """Count an event with an image, and read its usage."""
        self.deltas += 1
        if self.wants.counts_usage:
            self.tokens = read_usage(_json_value(fields.get(b"usage", b""))) or self.tokens

    def end(self, *, is_broken: bool) -> RelayError | None:
        """Return the error of a body that was cut off."""
        return self.error or (_broken() if is_broken and not self.finished else None)


_STREAMS: Mapping[Protocols, type[EventStreamAnswer]] = {
    Protocols.CHAT: ChatStream,
    Protocols.RESPONSES: ResponsesStream,
    Protocols.OTHER: OtherStream,
}
_FINISHES = frozenset({"response.completed", "response.incomplete", "response.failed"})
_WITH_RESPONSE = _FINISHES | {"response.created", "response.queued", "response.in_progress"}
# A body that is an error and nothing else.
_REFUSAL = re.compile(rb'\s*\{\s*"error"\s*:\s*[{"]')
_KEPT_OF_RESPONSE = ("id", "created_at", "model")
_BODY_FIELDS = {b"id": 1, b"usage": 1, b"status": 1, b"finish_reason": 3}
_MAX_REWRITTEN_BYTES = 4 << 20


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
        msgspec.Raw(_encode(value.get("response"))),
    )


async def _made() -> UpstreamRequest:
    raise RuntimeError("the provider is asked once")


def _json_value(raw: bytes) -> Any:
    """Return a decoded value; None if it is none."""
    try:
        return load_json(raw)
    except ValueError:
        return None


def _json_text(raw: bytes) -> str | None:
    value = _json_value(raw) if raw else None
    return value if isinstance(value, str) and value else None


def _end_of_event(cut: bytes) -> bytes:
    """Return what ends an event that was sent in part, so that another can follow."""
    if not cut:
        return b""
    if _PAYLOAD.search(cut):
        return b"\n\n"
    # No event without data: it would crash openai-python.
    return b"" if cut.endswith((b"\r", b"\n")) else b"\n"


def _error_event(error: RelayError) -> bytes:
    return b"data: " + _encode({"error": _shown(error)}) + b"\n\n"


def _failed_response(error: RelayError, response: Mapping[str, Any], sequence_number: int) -> bytes:
    shown = _shown(error)
    failed = {
        **response,
        "object": "response",
        "status": "failed",
        "error": {"code": shown["code"], "message": shown["message"]},
        "output": [],
    }
    event = {
        "type": "response.failed",
        "sequence_number": max(0, sequence_number),
        "response": failed,
        "error": shown,
    }
    return b"event: response.failed\ndata: " + _encode(event) + b"\n\n"


def _shown(error: RelayError) -> dict[str, Any]:
    """Return the error object; of a provider's refusal it is the provider's own."""
    if isinstance(error, ProviderRefusal):
        body = _json_value(error.body)
        said = body.get("error") if isinstance(body, dict) else None
        if isinstance(said, dict) and isinstance(said.get("message"), str):
            return {"type": None, "param": None, "code": None, **said}
    return cast("dict[str, Any]", msgspec.to_builtins(error_object(error)))


def _in_band(said: object, redact: Redactor) -> RelayError:
    return _refused(said, "The provider reported an error in the middle of its answer", redact)


def _refused(said: object, start: str, redact: Redactor) -> RelayError:
    provider = parse_error(said)
    if provider.message is None:
        return RelayError(ErrorCode.UPSTREAM_FAILED, f"{start}.")
    recorded = provider.kind if provider.may_quote_request else provider.message
    return RelayError(
        ErrorCode.UPSTREAM_FAILED,
        f"{start}: {redact(provider.message)}",
        recorded=f"{start}: {redact(recorded)}",
    )


async def _first_bytes(body: IncomingResponse) -> bytes:
    try:
        return await body.peek()
    except ConnectionBroken:
        return b""


def _broken() -> RelayError:
    return RelayError(
        ErrorCode.UPSTREAM_FAILED, "The connection to the provider broke in the middle of its answer."
    )


def _truncated() -> RelayError:
    return RelayError(ErrorCode.UPSTREAM_TRUNCATED, "The provider's answer ended before it was finished.")
