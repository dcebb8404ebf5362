"""What the routes that ask the provider share: who may ask, how large a body may be, how a request ends."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Coroutine
from contextlib import ExitStack
from http import HTTPStatus
from typing import Any, ClassVar

from tornado.httputil import HTTPServerRequest

from relayd.public.allowances import Meter, Wanted
from relayd.public.auth import presented_key, unauthorized, unverifiable
from relayd.public.client_address import network_of
from relayd.public.framing import malformed_body
from relayd.public.handlers import BaseHandler, PublicApp
from relayd.relay.errors import ClientGone, ErrorCode, RelayError, internal_error
from relayd.relay.stream import Answer, RelayStream
from relayd.state.errors import StateError
from relayd.state.records import Client, Outcome, Phase, RequestRecord, utc_text

_MAX_HEADER_CHARS = 200


class AdmittingHandler(BaseHandler):
    """One request to the provider, and the way to its client (`relayd.relay.stream.ResponseWriter`).

    `prepare` admits or refuses from the headers alone. The subclass reads what was collected in `body`, and
    gives `relay` the answer that it wants.
    """

    admitted_methods: ClassVar[frozenset[str]] = frozenset({"POST"})
    """Methods that ask the provider; the others are Tornado's matter."""

    def __init__(self, application: PublicApp, request: HTTPServerRequest, **kwargs: Any) -> None:
        super().__init__(application, request, **kwargs)
        self.status: int | None = None
        self.body: bytearray | None = None
        """What has come of the body of an admitted request; None: it is dropped."""
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

    @property
    def max_body_bytes(self) -> int:
        """Bound of an admitted request's body."""
        return self.context.max_body_bytes

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

    def take_piece(self, chunk: bytes) -> Awaitable[None] | None:
        """Collect the body of an admitted request; without a Content-Length its size shows only here."""
        if self.body is None:
            return None
        self.body += chunk
        if len(self.body) > self.max_body_bytes:
            self.refuse(self.too_large())
        return None

    def on_too_much(self) -> None:
        """Refuse a body that comes in tiny pieces, unless it is refused already; end the response."""
        if self.body is not None:
            self.refuse(self.too_tiny())
        super().on_too_much()

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

    def ask(self, body: bytes) -> tuple[Answer, Wanted | None]:
        """Return the answer to a request that is whole, and what it may use. Raises RelayError."""
        raise NotImplementedError

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
            self._close_early(Outcome.CRASHED, internal_error(self.request_id))
        elif self.body is not None:
            error = RelayError(ErrorCode.BAD_REQUEST, HTTPStatus(status_code).phrase)
            self._close_early(error.outcome, error)

    def refuse(self, error: RelayError) -> None:
        """Answer with an error, and record a request that never became a stream."""
        super().refuse(error)
        self._close_early(error.outcome, error)

    def on_connection_close(self) -> None:
        """Take the end of a connection whose body was still arriving (tornado.web.RequestHandler)."""
        super().on_connection_close()
        if self.body is None and self.relayed is None:
            return
        if self.stream.met_bad_body and self.relayed is None:
            error = malformed_body()
            self._close_early(error.outcome, error)
        self._on_client_left()

    def _on_client_left(self) -> None:
        if self.relayed is not None:
            self.relayed.stop(ClientGone())
        else:
            self._close_early(Outcome.CLIENT_CLOSED)
            self.stream.close()

    def on_body_timeout(self) -> None:
        """Tell the client that its body did not arrive, and end the connection."""
        if self.body is not None:
            limit_s = self.context.body_timeout_s
            self.refuse(RelayError(ErrorCode.BAD_REQUEST, f"The body did not arrive within {limit_s:g} s."))
        if not self._finished:
            super().on_body_timeout()

    def _close_early(self, outcome: Outcome, error: RelayError | None = None) -> None:
        """Release what the request holds, and record its end if it never became a stream."""
        self.held.close()
        self.body = None
        record = self.record
        if record.outcome is None and self.relayed is None:
            record.duration_ms = self.age_ms
            self.context.recorder.refuse(record, outcome, error, network_of(record.ip))

    def too_tiny(self) -> RelayError:
        """Return the error of a body whose pieces cost too much."""
        return RelayError(ErrorCode.BAD_REQUEST, "The body arrives in too many tiny pieces.")

    def too_large(self) -> RelayError:
        """Return the error of a body over the limit."""
        return RelayError(ErrorCode.TOO_LARGE, f"The body may have at most {self.max_body_bytes} bytes.")


def _cut(text: str | None) -> str | None:
    return None if text is None else text[:_MAX_HEADER_CHARS]
