"""`/v1/*`: OpenAI's own protocol, relayed as it is; who may ask for what, and the record, are relayd's."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Sequence
from dataclasses import replace
from functools import partial
from http import HTTPStatus
from itertools import islice
from typing import Any, ClassVar, NamedTuple
from urllib.parse import quote, unquote

import msgspec
from tornado.httputil import HTTPServerRequest

from relayd.json_handler import JSON_TYPE
from relayd.public.allowances import AnswerForm, Wanted, may_use
from relayd.public.chat import RelayHandler
from relayd.public.chat_request import check_count
from relayd.public.handlers import PublicApp
from relayd.public.json_request import RequestFields
from relayd.public.multipart import BodyPipe, FieldValue, MultipartReader
from relayd.public.v1_endpoints import Endpoint
from relayd.relay.errors import ErrorCode, RelayError
from relayd.relay.openai_errors import ErrorObject, NotFound, ProviderRefusal, UpgradeRefused, error_object
from relayd.relay.openai_streams import Observation, ResponseHead, StreamProtocol
from relayd.relay.passthrough import PassthroughAnswer
from relayd.relay.provider import EVENT_STREAM
from relayd.relay.provider_errors import load_json
from relayd.relay.upstream import UpstreamRequest, models_in
from relayd.relay.usage import guess_prompt_tokens
from relayd.state.errors import StateError
from relayd.state.stored_objects import Owner

_PASSED_IN = ("Accept", "OpenAI-Beta", "Idempotency-Key")
_PASSED_OUT = frozenset({b"openai-processing-ms", b"openai-version", b"openai-model", b"content-encoding"})
_REFUSAL_PASSED_OUT = frozenset(
    {b"openai-processing-ms", b"openai-version", b"retry-after", b"retry-after-ms", b"x-should-retry"}
)
_MAX_PREFIX_BYTES = 256 << 10
"""Bound of what comes before the first file of an upload."""
_MIN_PROGRESS_BYTES = 64 << 10
"""What must arrive within `server.body_timeout_s`: a large body may take longer than that in all."""
_MAX_NAME_CHARS = 200
_TOKENS_PER_FILE = 1000
"""A first guess, which the usage of earlier uploads corrects."""
_OUTPUT_LIMITS = {
    "max_tokens": StreamProtocol.CHAT,
    "max_completion_tokens": StreamProtocol.CHAT,
    "max_output_tokens": StreamProtocol.RESPONSES,
}
"""The field that bounds an answer, and where a provider heeds it: elsewhere it bounds nothing."""
_MAX_PROMPTS = 2048
_PROMPT = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"|\[[^"\[\]]*+\]', re.DOTALL)
"""Text, or a list of tokens; numbers by themselves are one prompt."""
_OBJECT_NAMES = {"responses": "Response", "conversations": "Conversation", "files": "File"}


class _Reference(NamedTuple):
    """A stored object that a request uses."""

    kind: str
    object_id: str
    param: str | None


class V1Handler(RelayHandler):
    """One request to any endpoint that is open; the body is JSON, an upload, or empty."""

    admitted_methods: ClassVar[frozenset[str]] = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE"})

    def __init__(self, application: PublicApp, request: HTTPServerRequest, **kwargs: Any) -> None:
        super().__init__(application, request, **kwargs)
        self._endpoint: Endpoint
        """Set when the request is admitted."""
        self._head: ResponseHead | None = None
        """Of the provider's response."""
        self._is_stream = False
        """Whether the response that was begun is an event stream."""
        self._reader: MultipartReader | None = None
        """Reads an upload."""
        self._pipe: BodyPipe | None = None
        """What an upload goes through, once it is relayed."""
        self._relaying: asyncio.Task[None] | None = None
        self._timed_bytes = 0
        """How much of the body had come when its timer was started."""

    @property
    def max_body_bytes(self) -> int:
        """Bound of an admitted request's body."""
        return self.context.v1_rules.max_body_bytes

    def set_default_headers(self) -> None:
        """Set the headers of every response."""
        super().set_default_headers()
        for name, value in self.context.cors.v1_headers(self.request.headers.get("Origin")).items():
            self.set_header(name, value)

    def options(self, *_path: str) -> None:
        """Answer a preflight: what it asks for is allowed, since SDKs in pages send headers of their own."""
        super().options()
        headers = self.request.headers
        requested = headers.get("Access-Control-Request-Headers")
        for name, value in self.context.cors.v1_preflight_headers(headers.get("Origin"), requested).items():
            self.set_header(name, value)

    def admit(self) -> None:
        """Raise RelayError if the endpoint is not open, or as the base class does."""
        request = self.request
        if "websocket" in request.headers.get("Upgrade", "").lower():
            raise UpgradeRefused
        endpoint = self.context.v1_rules.find(request.method or "", request.path)
        if endpoint is None:
            raise NotFound(
                f"Invalid URL ({request.method} {request.path[:_MAX_NAME_CHARS]}): this relay does not open "
                "it; its operator can, with v1.allow."
            )
        if endpoint.is_uncounted:
            self.context.allowances.check_uncounted(self.client)
        self._endpoint = endpoint
        content_type = request.headers.get("Content-Type", "")
        if content_type.lower().startswith("multipart/"):
            self._reader = MultipartReader(content_type)
        super().admit()

    # The request.

    async def _serve(self, *_path: str) -> None:
        """Relay, now that the body is here; an upload is under way already."""
        if self._reader is None:
            await self.relay_body()
        else:
            self.body_arrived()
            await self._end_upload()

    get = post = put = patch = delete = _serve

    def ask(self, body: bytes) -> tuple[PassthroughAnswer, Wanted | None]:
        """Return the answer to a request that is whole, and what it may use. Raises RelayError."""
        endpoint = self._endpoint
        if endpoint.is_models and endpoint.method == "GET":
            return self._ask_models(), None
        fields = RequestFields(body or b"{}")
        model = self._resolve(fields.get("model", str, "text"))
        if model is not None and model != fields.get("model", str, "text"):
            fields.put("model", model)
        is_stream = fields.get("stream", bool, "true or false") or False
        if endpoint.method == "GET":
            # A stored response, from its beginning or from an event of it.
            # Not `get_query_arguments`, which raises if the query is not UTF-8.
            is_stream = b"true" in self.request.query_arguments.get("stream", ())
        wanted = self._read_wanted(fields, self._form(is_stream=is_stream))
        wants = self._wants(
            expects_stream=is_stream, stores=fields.get("store", bool, "true or false") is not False
        )
        if is_stream and endpoint.protocol is StreamProtocol.CHAT and self.context.chat_rules.ask_usage:
            wants.strips_usage = _ask_usage(fields)
        references = [*self._reference_in_path(), *_references(fields)]
        sent = fields.edited() if body else b""
        return self._answer(self._target(), sent, wants, references), wanted

    def _wants(self, *, expects_stream: bool, stores: bool) -> Observation:
        endpoint = self._endpoint
        return Observation(
            protocol=endpoint.protocol,
            expects_stream=expects_stream,
            counts_usage=endpoint.costs,
            on_head=self._take_head,
            on_created=self._own if endpoint.creates and stores else None,
        )

    def _answer(
        self,
        target: str,
        body: bytes | AsyncIterator[bytes],
        wants: Observation,
        references: list[_Reference],
        content_length: int | None = None,
        model: str | None = None,
    ) -> PassthroughAnswer:
        headers = [
            (name.encode(), value.encode("latin-1"))
            for name in _PASSED_IN
            for value in self.request.headers.get_list(name)
        ]
        if self._reader is not None:
            headers.append((b"Content-Type", self.request.headers["Content-Type"].encode("latin-1")))
        elif body:
            # Whatever the client calls it: the provider must read it as it was read here.
            headers.append((b"Content-Type", b"application/json"))
        request = UpstreamRequest(
            self._endpoint.method, target, headers, body, content_length, model or self.record.model
        )
        make_request = partial(self._routed, request, references)
        return PassthroughAnswer(self.context.upstream, make_request, wants)

    def _target(self, path: str | None = None) -> str:
        query = self.request.query
        return (self._endpoint.path if path is None else path) + (f"?{query}" if query else "")

    def _resolve(self, name: str | None) -> str | None:
        """Return the model that the provider is asked for. Raises RelayError if it may not be asked for."""
        rules = self.context.chat_rules
        if name is None:
            if self._endpoint.costs and self._has_model_bounds:
                raise RelayError(ErrorCode.BAD_REQUEST, "The request must name its model here.")
            return None
        model = rules.aliases.get(name, name)
        self.record.model = model[:_MAX_NAME_CHARS]
        if not self._may_use(model):
            allowed = ", ".join(sorted(rules.allowed_models or self.client.models))
            raise RelayError(
                ErrorCode.MODEL_NOT_ALLOWED,
                f"The model {model[:_MAX_NAME_CHARS]!r} is not allowed here; allowed are: {allowed}.",
            )
        return model

    @property
    def _has_model_bounds(self) -> bool:
        lists = self.client.models or self.context.chat_rules.allowed_models
        return bool(lists) or self.client.has_usage_bound

    def _may_use(self, model: str) -> bool:
        allowed = self.context.chat_rules.allowed_models
        return (not allowed or model in allowed) and may_use(self.client, model)

    def _form(self, *, is_stream: bool) -> AnswerForm:
        if is_stream:
            return AnswerForm.PIECES
        return AnswerForm.TEXT if self._endpoint.answers_with_text else AnswerForm.MEDIA

    def _read_wanted(self, fields: RequestFields, form: AnswerForm) -> Wanted | None:
        """Return what a request may use, within the limits; None if it asks no model."""
        rules = self.context.chat_rules
        limits = {name: fields.get(name, int, "a whole number") for name in _OUTPUT_LIMITS}
        for name, wanted in limits.items():
            rules.check_limit(name, wanted)
        counts = {name: fields.get(name, int, "a whole number") for name in ("n", "best_of")}
        for name, count in counts.items():
            check_count(name, count)
        answers = max(count or 1 for count in counts.values())
        background = fields.get("background", bool, "true or false") or False
        if not self._endpoint.costs:
            return None
        heeded = [name for name, protocol in _OUTPUT_LIMITS.items() if protocol is self._endpoint.protocol]
        named = {limits[name] or 0: name for name in heeded if limits[name] is not None}
        most = max(named, default=None)
        return self._checked(
            Wanted(
                prompt_guess=guess_prompt_tokens(fields.body),
                output_limit=most,
                output_limit_name="" if most is None else named[most],
                answers=answers * (_prompts(fields) if self._endpoint.path == "/completions" else 1),
                has_output=self._endpoint.has_output,
                background=background,
                form=form,
            )
        )

    def _checked(self, wanted: Wanted) -> Wanted:
        """Return what a request wants of its model. Raises RelayError if its client may not have it."""
        self.context.allowances.check(self.client, self.record.model or "", wanted)
        return wanted

    # Stored objects.

    def _reference_in_path(self) -> list[_Reference]:
        endpoint = self._endpoint
        if endpoint.kind is None or endpoint.object_id is None:
            return []
        return [_Reference(endpoint.kind, endpoint.object_id, None)]

    def _own(self, object_id: str, route: str | None) -> None:
        """Note an object that the client has made."""
        owner = Owner(self.client.name, route, self._endpoint.kind or "", self.record.started_at)
        self.context.stored_objects.add(object_id, owner)

    async def _routed(self, request: UpstreamRequest, references: list[_Reference]) -> UpstreamRequest:
        """Return the request for the route that has its stored objects.

        Raises:
            NotFound: they are not the client's own.
            RelayError: `state_unavailable`.
        """
        stored, route = self.context.stored_objects, None
        for reference in references:
            object_id = reference.object_id
            owner = stored.recent(object_id)
            if owner is None:
                try:
                    owner = await stored.look_up(object_id)
                except StateError as error:
                    raise RelayError(
                        ErrorCode.STATE_UNAVAILABLE,
                        "This relay cannot look up whose this is at the moment; try again shortly.",
                        recorded=f"The owner of a stored object cannot be read: {error}",
                    ) from error
            if owner is None or not owner.is_of(self.client):
                shown = object_id[:_MAX_NAME_CHARS]
                name = _OBJECT_NAMES[reference.kind]
                raise NotFound(f"{name} with id '{shown}' not found.", param=reference.param)
            stored.keep(object_id, owner)
            route = owner.route
        return replace(request, route=route) if references else request

    # Models.

    def _ask_models(self) -> PassthroughAnswer:
        wants = self._wants(expects_stream=False, stores=False)
        name = unquote(self._endpoint.path.removeprefix("/models").removeprefix("/"))
        if not name:
            wants.rewrite = self._list_models
            return self._answer(self._target(), b"", wants, [])
        model = self.context.chat_rules.aliases.get(name, name)
        if not self._may_use(model):
            shown = name[:_MAX_NAME_CHARS]
            raise NotFound(
                f"The model '{shown}' does not exist or you do not have access to it.",
                "model_not_found",
                "model",
            )
        if model == name:
            return self._answer(self._target(), b"", wants, [], model=model)
        wants.rewrite = partial(_rename, name)
        return self._answer(self._target(f"/models/{quote(model)}"), b"", wants, [], model=model)

    def _list_models(self, body: bytes) -> bytes:
        """Leave what the client may use in a list of models, and add the aliases of that."""
        models, aliases = models_in(body), self.context.chat_rules.aliases
        for alias, model in aliases.items():
            if model in models:
                models.setdefault(alias, {**models[model], "id": alias})
        usable = [entry for name, entry in models.items() if self._may_use(aliases.get(name, name))]
        return msgspec.json.encode({"object": "list", "data": usable})

    # Uploads.

    def take_piece(self, chunk: bytes) -> Awaitable[None] | None:
        """Collect a body, or hand on a piece of an upload; no more is read before that is done."""
        return super().take_piece(chunk) if self._reader is None else self._take_upload(self._reader, chunk)

    def on_too_much(self) -> None:
        """Break off an upload that goes over the limits while it is relayed."""
        if self._pipe is None or self.is_answered:
            super().on_too_much()
        else:
            self._pipe.fail(self.too_tiny())

    async def _take_upload(self, reader: MultipartReader, chunk: bytes) -> None:
        if self.body is None and self._pipe is None:
            # Refused.
            return
        try:
            reader.feed(chunk)
            if self.received_bytes > self.max_body_bytes:
                raise self.too_large()
            if self._pipe is not None:
                self._check_fields(reader)
                await self._pipe.put(chunk)
                if self.relayed is not None:
                    self.relayed.request_continues()
            elif self.body is not None:
                self.body += chunk
                if reader.has_file or len(self.body) > _MAX_PREFIX_BYTES:
                    await self._begin_upload(reader)
        except RelayError as error:
            if self._pipe is None:
                self.refuse(error)
            else:
                self._pipe.fail(error)

    async def _begin_upload(self, reader: MultipartReader) -> None:
        """Ask the provider with what has come of an upload; the rest follows as it comes."""
        prefix = bytes(self.body or b"")
        reader.pass_on()
        self._check_fields(reader)
        field = reader.fields.get("model")
        model = self._resolve(None if field is None else field.text)
        if field is not None and model is not None and model != field.text:
            prefix = prefix[: field.start] + model.encode() + prefix[field.end :]
        length = self.request.headers.get("Content-Length")
        content_length = None
        if length is not None:
            content_length = int(length) + len(prefix) - len(self.body or b"")
        stream = reader.fields.get("stream")
        is_stream = stream is not None and stream.text.lower() == "true"
        wanted = None
        if self._endpoint.costs:
            count = reader.fields.get("n")
            if count is not None and not count.text.isdecimal():
                raise RelayError(ErrorCode.BAD_REQUEST, "n must be a whole number.")
            answers = 1 if count is None else int(count.text)
            check_count("n", answers)
            wanted = self._checked(
                Wanted(
                    prompt_guess=_TOKENS_PER_FILE,
                    answers=answers,
                    has_output=self._endpoint.has_output,
                    form=self._form(is_stream=is_stream),
                )
            )
        self.body = None
        self._pipe = BodyPipe()
        wants = self._wants(expects_stream=is_stream, stores=True)
        answer = self._answer(
            self._target(), aiter(self._pipe), wants, self._reference_in_path(), content_length
        )
        self._relaying = asyncio.create_task(
            self._relay_upload(self.relay(answer, wanted), self._pipe), name="relay an upload"
        )
        await self._pipe.put(prefix)

    async def _relay_upload(self, relaying: Awaitable[None], pipe: BodyPipe) -> None:
        try:
            await relaying
        finally:
            pipe.close()

    def _check_fields(self, reader: MultipartReader) -> None:
        """Refuse what decides what the request may do where it comes too late, behind a file."""
        model = reader.fields.get("model")
        is_late = "model" in reader.late
        is_bounded = self._has_model_bounds and self._endpoint.costs
        if (is_bounded and (is_late or model is None)) or (is_late and self._decides(model)):
            raise RelayError(ErrorCode.BAD_REQUEST, "The field model must come before the file.")
        if self.client.bounded and "n" in reader.late:
            raise RelayError(ErrorCode.BAD_REQUEST, "The field n must come before the file.")
        if model is not None and self.record.model is None:
            self.record.model = model.text[:_MAX_NAME_CHARS]

    def _decides(self, model: FieldValue | None) -> bool:
        """Return whether a model changes what the provider is asked for, or which route is asked."""
        is_alias = model is not None and model.text in self.context.chat_rules.aliases
        return is_alias or any(route.options.models for route in self.context.upstream.routes)

    async def _end_upload(self) -> None:
        reader = self._reader
        if reader is not None and self._pipe is None and self.body is not None:
            try:
                await self._begin_upload(reader)
            except RelayError as error:
                self.refuse(error)
        if self._pipe is not None and self._relaying is not None:
            self._pipe.end()
            await self._relaying
        if not self._finished:
            self.finish()

    def on_body_timeout(self) -> None:
        """Give a body that makes progress, or for which the provider has no room yet, more time."""
        pipe = self._pipe
        has_progressed = self.received_bytes - self._timed_bytes >= _MIN_PROGRESS_BYTES
        is_wanted = not self.is_answered and (self.body is not None or pipe is not None)
        is_wanted &= not self.stream.closed()
        if is_wanted and (has_progressed or (pipe is not None and pipe.is_full)):
            self._timed_bytes = self.received_bytes
            self.restart_body_timer()
        elif is_wanted and pipe is not None:
            limit_s = self.context.body_timeout_s
            pipe.fail(RelayError(ErrorCode.BAD_REQUEST, f"The body did not arrive within {limit_s:g} s."))
            # The client has this time once more to read why; then its connection ends.
            self.restart_body_timer()
        else:
            super().on_body_timeout()

    # The response.

    def _take_head(self, head: ResponseHead) -> None:
        self._head = head

    def _begin(self, length: int | None = None) -> None:
        """Set status and headers of a response that has a body; `length` if all of it is here."""
        head = self._head or ResponseHead(HTTPStatus.OK, (), is_stream=True)
        self.status = head.status
        self._is_stream = head.is_stream
        self.set_status(head.status)
        self._set_rate_limits()
        media_type = self._pass_on(head.headers, _PASSED_OUT)
        if head.is_stream and not media_type.startswith(EVENT_STREAM):
            media_type = f"{EVENT_STREAM}; charset=utf-8"
        self.clear_header("Content-Type")
        if media_type:
            self.set_header("Content-Type", media_type)
        if length is None and not head.is_stream:
            length = next(
                (int(value) for name, value in head.headers if name.lower() == b"content-length"), None
            )
        if length is not None and head.status != HTTPStatus.NO_CONTENT:
            self.set_header("Content-Length", str(length))

    def _pass_on(self, headers: Sequence[tuple[bytes, bytes]], names: frozenset[bytes]) -> str:
        """Pass headers of the provider on; return its content type."""
        media_type = ""
        for raw_name, raw_value in headers:
            name = raw_name.lower()
            if name != b"content-type" and name not in names:
                continue
            value = self.context.upstream.redact.scrub(raw_value).decode("latin-1")
            if not value.isprintable():
                continue
            if name == b"content-type":
                media_type = value
            else:
                self.set_header(raw_name.decode("latin-1"), value)
        return media_type

    def _set_rate_limits(self) -> None:
        """Tell a client with bounds what is left of them."""
        if self.meter is not None:
            for name, value in self.meter.rate_limit_headers().items():
                self.set_header(name, value)

    def send(self, data: bytes) -> None:
        """Send a piece, the first time with the head. Raises ClientGone."""
        if self.status is None:
            self._begin()
        self.send_now(data)

    async def end(self, data: bytes, error: RelayError | None) -> None:
        """Send the last piece and end the response; a body that is not whole must not seem so."""
        if self.status is None and error is not None:
            self.status = error.status
            self.render_error(error)
        elif self.status is None:
            self._begin(len(data))
            if data:
                self.write(data)
        elif error is not None and not self._is_stream:
            if self.request.version == "HTTP/1.0":
                # Without a length only a reset shows it.
                self.reset()
            self.stream.close()
            return
        elif data:
            self.send_now(data)
            await self.drain()
        self.end_response()

    def render_error(self, error: RelayError, body: bytes | None = None) -> None:
        """Render an error in OpenAI's shape; a refusal of the provider is passed on as it is."""
        self._set_rate_limits()
        if not isinstance(error, ProviderRefusal):
            super().render_error(error, body)
            if error.retry_after_s is not None:
                self.set_header("retry-after-ms", str(error.retry_after_s * 1000))
            if error.code is ErrorCode.UPSTREAM_AUTH:
                # Only the operator can help.
                self.set_header("x-should-retry", "false")
            if isinstance(error, UpgradeRefused):
                # RFC 9110, 15.5.22.
                self.set_header("Upgrade", "HTTP/1.1")
            return
        super().render_error(error, error.body or None)
        # The provider's own or none.
        self.clear_header("Retry-After")
        media_type = self._pass_on(error.headers, _REFUSAL_PASSED_OUT)
        if error.body and media_type:
            self.set_header("Content-Type", media_type)

    def http_error_body(self, code: str, message: str) -> bytes:
        """Return the body of what Tornado refuses, as OpenAI's SDKs read it."""
        error = ErrorObject(message, "invalid_request_error", code=code)
        return msgspec.json.encode({"error": error}) + b"\n"

    def error_body(self, error: RelayError) -> tuple[str, bytes]:
        """Return an error as OpenAI's SDKs read it."""
        return JSON_TYPE, msgspec.json.encode({"error": error_object(error)}) + b"\n"


def _ask_usage(fields: RequestFields) -> bool:
    """Ask for the usage of a stream if the client leaves it open; return whether it was added."""
    if "stream_options" not in fields:
        fields.put("stream_options", {"include_usage": True})
        return True
    options = fields.nested("stream_options")
    if "include_usage" in options:
        return False
    options.put("include_usage", value=True)
    fields.edit("stream_options", options)
    return True


def _prompts(fields: RequestFields) -> int:
    """Return how many prompts a legacy completion has: each gets its own answers, of full length.

    Raises:
        RelayError: `bad_request`, they are too many.
    """
    prompt = fields.raw("prompt")
    if not prompt.startswith(b"["):
        return 1
    count = sum(1 for _ in islice(_PROMPT.finditer(prompt, 1), _MAX_PROMPTS + 1))
    if count > _MAX_PROMPTS:
        raise RelayError(ErrorCode.BAD_REQUEST, f"prompt may have at most {_MAX_PROMPTS} elements.")
    return max(1, count)


def _references(fields: RequestFields) -> list[_Reference]:
    """Return the stored objects that a body names."""
    found: list[_Reference] = []
    previous = fields.get("previous_response_id", str, "text")
    if previous is not None:
        found.append(_Reference("responses", previous, "previous_response_id"))
    if "conversation" in fields:
        expected = "an id, or an object with one"
        if fields.raw("conversation").startswith(b"{"):
            conversation = fields.nested("conversation").get("id", str, "text")
        else:
            conversation = fields.get("conversation", str, expected)
        if conversation is None:
            raise RelayError(ErrorCode.BAD_REQUEST, f"conversation must be {expected}.")
        found.append(_Reference("conversations", conversation, "conversation"))
    return found


def _rename(name: str, body: bytes) -> bytes:
    """Give a model the name by which the client knows it."""
    try:
        model = load_json(body)
    except ValueError:
        return body
    return msgspec.json.encode({**model, "id": name}) if isinstance(model, dict) else body
