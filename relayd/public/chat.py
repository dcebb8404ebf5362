"""`POST /chat`: admit a request by its headers, read its body, relay the answer, record how it ended."""

from __future__ import annotations

import time
from collections.abc import Coroutine
from contextlib import ExitStack
from http import HTTPStatus
from typing import Any, ClassVar

from tornado.httputil import HTTPServerRequest

from relayd.public.allowances import Meter, Wanted
from relayd.public.auth import presented_key, unauthorized, unverifiable
from relayd.public.chat_request import parse_chat_request
from relayd.public.client_address import network_of
from relayd.public.framing import malformed_body
from relayd.public.handlers import BaseHandler, PublicApp
from relayd.relay.chat_answer import ChatAnswer, ChatUpstream
from relayd.relay.errors import ClientGone, ErrorCode, RelayError, internal_error
from relayd.relay.ndjson import DONE_LINE, error_line
from relayd.relay.probe import is_probe
from relayd.relay.stream import Answer, RelayStream
from relayd.relay.usage import guess_prompt_tokens
from relayd.state.errors import StateError
from relayd.state.records import Client, Outcome, Phase, RequestRecord, utc_text

_NDJSON = "application/x-ndjson; charset=utf-8"
_MAX_HEADER_CHARS = 200


class RelayHandler(BaseHandler):
    """One request to the provider, and the way to its client (`relayd.relay.stream.ResponseWriter`).

    `prepare` admits or refuses from the headers alone. When the body is here, the subclass says in `ask` what
    the provider is asked; `relay` relays the answer to its end.
    """

    admitted_methods: ClassVar[frozenset[str]] = frozenset({"POST"})
    """Methods that ask the provider; the others are Tornado's matter."""

    def __init__(self, application: PublicApp, request: HTTPServerRequest, **kwargs: Any) -> None:
        super().__init__(application, request, **kwargs)
        self.status: int | None = None
        self.client: Client
        """Whose key it is; set once the request is authenticated."""
        self.held = ExitStack()
        """Gives back what the request holds: its slots, and the watch for the client's leaving."""
        self._began_at = time.monotonic()
        self.relayed: RelayStream | None = None
        self.meter: Meter | None = None
        """Counts what the request uses, once it is relayed."""
        context = self.context
        self.max_received_bytes += self.max_body_bytes
        self.record = RequestRecord(
            id=self.request_id,
            boot_id=context.boot_id,
            started_at=utc_text(time.time()),
            ip=context.proxies.client_address(self.stream.peer, request.headers.get_list("X-Forwarded-For")),
            origin=_cut(request.headers.get("Origin")),
            user_agent=_cut(request.headers.get("User-Agent")),
            path=request.path,
        )

    @property
    def age_ms(self) -> int:
        """Milliseconds since the request's headers came."""
        return round((time.monotonic() - self._began_at) * 1000)

    def prepare(self) -> None:
        """Admit or refuse from the headers alone; no byte of the body is read before this is over."""
        super().prepare()
        if self.request.method not in self.admitted_methods:
            return
        if self.stream.closed():
            self._on_client_left()
            return
        self.held.callback(self.context.disconnects.watch(self.stream.socket, self._on_client_left))
        try:
            self._authenticate()
            self.admit()
        except RelayError as error:
            self.refuse(error)
        else:
            self.body = bytearray()

    def _authenticate(self) -> None:
        context, record = self.context, self.record
        presented = presented_key(self.request.headers)
        holder, refusal = None, unauthorized()
        try:
            holder = context.keys.verify(presented)
        except StateError as error:
            refusal = unverifiable(str(error))
        # A dead key is recorded with its client, so that the operator can tell them.
        known = holder or context.keys.former_owner(presented)
        if known is not None:
            record.key_id, record.client = known.key_id, known.client
        if holder is None:
            raise refusal
        self.client = context.allowances.admit(holder.client, path=record.path, origin=record.origin)
        context.keys.record_use(holder.key_id, record.ip)

    def admit(self) -> None:
        """Raise RelayError if the request of a known client may not be read further; else acquire a slot."""
        context, record = self.context, self.record
        if context.accepting.refusal is not None:
            raise context.accepting.refusal
        if int(self.request.headers.get("Content-Length", "0")) > self.max_body_bytes:
            raise self.too_large()
        context.slots.acquire(record.ip)
        self.held.callback(context.slots.release, record.ip)
        context.allowances.acquire(self.client)
        self.held.callback(context.allowances.release, self.client)

    async def relay_body(self) -> None:
        """Relay, now that the body is here."""
        self.body_arrived()
        if self.body is None:
            # Refused before its body was here.
            self.finish()
            return
        try:
            answer, wanted = self.ask(bytes(self.body))
        except RelayError as error:
            self.refuse(error)
            return
        self.body.clear()
        await self.relay(answer, wanted)

    def ask(self, body: bytes) -> tuple[Answer, Wanted | None]:
        """Return the answer to a request that is whole, and what it may use. Raises RelayError."""
        raise NotImplementedError

    def relay(self, answer: Answer, wanted: Wanted | None = None) -> Coroutine[Any, Any, None]:
        """Open a stream, and return what relays one answer to its end, charges its client and records it.

        From now on the stream is told if the client leaves, also before the coroutine has begun.

        Args:
            answer: what the provider is asked, and what is made of its bytes.
            wanted: what it may use; None: no tokens. `Allowances.check` has passed it.
        """
        context, record = self.context, self.record
        meter = self.meter = context.allowances.meter(self.client, record, wanted)
        stream = self.relayed = RelayStream(
            record, answer, writer=self, limits=context.stream_limits, reserve=meter.reserve
        )
        context.recorder.open(record)
        context.streams.add(stream)
        return self._run(stream, meter)

    async def _run(self, stream: RelayStream, meter: Meter) -> None:
        context, record = self.context, self.record
        try:
            await stream.run()
        finally:
            context.streams.remove(stream)
            if record.outcome is None:
                record.phase, record.outcome, record.status = Phase.DONE, Outcome.CRASHED, None
            meter.charge()
            context.recorder.close(record)
            self.held.close()
            if not self.is_answered:
                # A client that only closed its sending side still reads: it must not see an orderly end.
                self.stream.close()

    def send(self, data: bytes) -> None:
        """Send a piece of the answer, the first time with the head. Raises ClientGone."""
        raise NotImplementedError

    async def end(self, data: bytes, error: RelayError | None) -> None:
        """Send the last piece and end the response; an error before the first byte sets the status."""
        raise NotImplementedError

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Render what was raised; before the stream began it leaves nothing open."""
        super().write_error(status_code, **kwargs)
        if status_code == HTTPStatus.INTERNAL_SERVER_ERROR:
            self._close_early(internal_error(self.request_id))
        elif self.body is not None:
            self._close_early(RelayError(ErrorCode.BAD_REQUEST, HTTPStatus(status_code).phrase))

    def refuse(self, error: RelayError) -> None:
        """Answer with an error, and record a request that never became a stream."""
        super().refuse(error)
        self._close_early(error)

    def on_connection_close(self) -> None:
        """Take the end of a connection whose body was still arriving (tornado.web.RequestHandler)."""
        super().on_connection_close()
        if self.body is None and self.relayed is None:
            return
        if self.stream.met_bad_body and self.relayed is None:
            self._close_early(malformed_body())
        self._on_client_left()

    def _on_client_left(self) -> None:
        if self.relayed is not None:
            self.relayed.stop(ClientGone())
        else:
            self._close_early(None)
            self.stream.close()

    def _close_early(self, error: RelayError | None) -> None:
        """Release what the request holds, and record its end if it never became a stream.

        Args:
            error: that its client was sent; None: it had left.
        """
        self.held.close()
        self.body = None
        record = self.record
        if record.outcome is None and self.relayed is None:
            record.duration_ms = self.age_ms
            self.context.recorder.refuse(record, error, network_of(record.ip))


class ChatHandler(RelayHandler):
    """One chat completion, a line a delta."""

    async def post(self) -> None:
        """Relay, now that the body is here."""
        await self.relay_body()

    def ask(self, body: bytes) -> tuple[ChatAnswer, Wanted | None]:
        """Return the answer to a request, and what it may use. Raises RelayError."""
        context, record = self.context, self.record
        request = parse_chat_request(body, context.chat_rules)
        upstream: ChatUpstream = context.upstream
        wanted = None
        if is_probe(request.model):
            upstream = context.probe.answer(request.model, record.ip)
        else:
            wanted = Wanted(
                prompt_guess=guess_prompt_tokens(request.upstream_body),
                output_limit=request.max_tokens,
                output_limit_name=request.max_tokens_name,
            )
            context.allowances.check(self.client, request.model, wanted)
        record.model = request.model
        answer = ChatAnswer(
            upstream, request.upstream_body, request.model, include_usage=request.include_usage
        )
        return answer, wanted

    def _begin(self, length: int | None = None) -> None:
        """Set status and headers of an answer; `length` if all of it is here."""
        self.status = int(HTTPStatus.OK)
        self.set_header("Content-Type", _NDJSON)
        if length is not None:
            self.set_header("Content-Length", str(length))
        self.pad_head()

    def send(self, data: bytes) -> None:
        """Send lines, the first time with the head. Raises ClientGone."""
        if self.status is None:
            self._begin()
        self.send_now(data)

    async def end(self, data: bytes, error: RelayError | None) -> None:
        """Send the last lines and end the response; an error before the first byte sets the status."""
        if self.status is not None:
            self.send_now(data)
            await self.drain()
            self.finish()
        elif error is not None:
            self.status = error.status
            self.render_error(error, data)
            self.finish()
        else:
            self._begin(len(data))
            self.finish(data)

    def error_body(self, error: RelayError) -> tuple[str, bytes]:
        """Return an error as the two lines that every client of /chat reads."""
        return _NDJSON, error_line(error) + DONE_LINE


def _cut(text: str | None) -> str | None:
    return None if text is None else text[:_MAX_HEADER_CHARS]
