"""`POST /chat`, in the order it happens: admit, read, parse, relay, close the record."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus

from tornado.iostream import StreamClosedError
from tornado.web import stream_request_body

from relayd.public.address import network_of
from relayd.public.admission import Admission
from relayd.public.base import BaseHandler, PublicSide
from relayd.public.chatrequest import ChatRules, parse_chat_request
from relayd.public.hangup import HangupWatch
from relayd.public.penalty import Penalties
from relayd.public.record import opened_record
from relayd.public.reply import CONTENT_TYPE, ChatReply
from relayd.relay.ends import Source
from relayd.relay.failure import ClientGone, Code, Failure
from relayd.relay.ledger import Ledger
from relayd.relay.lines import DONE, error_line
from relayd.relay.probe import Probe, is_probe
from relayd.relay.registry import Registry
from relayd.relay.stream import RelayStream, StreamLimits
from relayd.state.records import Outcome, Phase, RecordedError

_LINGER_S = 1.0


@dataclass(slots=True)
class ChatService:
    """What `/chat` works with; built once by the server. Rules, limits and times may change live."""

    boot_id: str
    admission: Admission
    registry: Registry
    ledger: Ledger
    upstream: Source
    probe: Probe
    hangups: HangupWatch
    rules: Callable[[], ChatRules]
    limits: StreamLimits
    body_timeout_s: float
    write_timeout_s: float
    penalties: Penalties = field(default_factory=Penalties)

    def source(self, model: str, ip: str) -> Source:
        """Who answers a request: the provider, or the relay itself when it is probed.

        Raises:
            Failure: `bad_request`, a probe that cannot be read.
        """
        return self.probe.answering(model, ip) if is_probe(model) else self.upstream


@stream_request_body
class ChatHandler(BaseHandler):
    """One request to the model."""

    _service: ChatService

    def initialize(self, public: PublicSide, service: ChatService | None = None) -> None:
        """Take the service beside the common part."""
        super().initialize(public)
        assert service is not None  # noqa: S101 - only optional to fit the base class's signature
        self._service = service
        self._began_at = time.monotonic()
        self._body = bytearray()
        self._left = asyncio.Event()
        self._stream: RelayStream | None = None
        self._unwatch: Callable[[], None] | None = None
        self._place: str | None = None
        self._body_timer: asyncio.TimerHandle | None = None
        self._body_read = False
        self._refused = False
        self._closed = False

    async def prepare(self) -> None:
        """Admit or refuse from the headers alone."""
        if self.request.method == "OPTIONS":
            return
        if self.request.method != "POST":
            self.write_error(HTTPStatus.METHOD_NOT_ALLOWED)
            return
        self._record = opened_record(self, self._service.boot_id)
        try:
            self._admit()
        except Failure as failure:
            if failure.code is not Code.UNAUTHORIZED or await self._hold(failure):
                await self._refuse(failure)

    def _admit(self) -> None:
        service, record, headers = self._service, self._record, self.request.headers
        sock = self.socket
        if sock is None:
            self._close(Outcome.CLIENT_CLOSED)
            return
        self.connection.stream.set_nodelay(True)
        self._unwatch = service.hangups.watch(sock, self._client_left)
        service.admission.identify(headers, record)
        self.stream.admitted()
        service.admission.check_intake(headers)
        service.registry.take_place(record.ip)
        self._place = record.ip
        # Over its own limit Tornado answers a bare 400; `data_received` says it properly.
        self.connection.set_max_body_size(sys.maxsize)
        self._body_timer = asyncio.get_running_loop().call_later(service.body_timeout_s, self._body_late)

    async def _hold(self, failure: Failure) -> bool:
        """Let an address that keeps failing wait for its refusal; False where it gets none.

        Nobody else waits, and who leaves meanwhile is denied all the same.
        """
        if self.public.address.is_proxy(self._record.ip):
            # It speaks for many, and does not say for whom.
            return True
        network = network_of(self._record.ip)
        seconds = self._service.penalties.failed(network)
        self._refused = True
        with self._service.penalties.held(network) as is_held:
            if not seconds or (is_held and not await self._leaves_within(seconds)):
                return True
        self._close(failure.outcome, failure, told=False)
        self._release()
        self.close_connection()
        return False

    async def data_received(self, chunk: bytes) -> None:
        """Collect the body; one without a Content-Length shows its size only here."""
        if self._closed:
            return
        self._body += chunk
        if len(self._body) > self._service.admission.max_body_bytes:
            self._body.clear()
            await self._refuse(self._service.admission.too_large())

    async def post(self) -> None:
        """Relay the request; at the end of this the client and the record know how it ended."""
        if self._closed:
            return
        service, record = self._service, self._record
        self._body_read = True
        self._stop_body_timer()
        try:
            request = parse_chat_request(bytes(self._body), service.rules())
            source = service.source(request.model, record.ip)
        except Failure as failure:
            await self._refuse(failure)
            return
        self._body.clear()
        record.model = request.model
        stream = self._stream = RelayStream(
            record,
            request.upstream_body,
            tell_usage=request.tell_usage,
            upstream=source,
            reply=ChatReply(self, write_timeout_s=service.write_timeout_s),
            limits=service.limits,
        )
        service.ledger.open(record)
        service.registry.add(stream)
        try:
            await stream.run()
        finally:
            service.registry.remove(stream)
            self._release()
            service.ledger.close(record)
        if record.outcome is Outcome.CLIENT_CLOSED:
            # One that only closed its sending side still reads: it must not see an orderly end.
            self.close_connection()

    def set_reply_headers(self, content_type: str, failure: Failure | None = None) -> None:
        """As every reply, and with its connection's end where that follows."""
        super().set_reply_headers(content_type, failure)
        if self.get_status() == HTTPStatus.METHOD_NOT_ALLOWED:
            self.set_header("Allow", "POST, OPTIONS")
        if not self._body_read:
            # Tornado hangs up after a reply that did not wait for the body.
            self.set_header("Connection", "close")

    def on_finish(self) -> None:
        """The reply is sent: its connection may carry the next request from now on."""
        self._release()

    async def _refuse(self, failure: Failure) -> None:
        """Answer with the failure's status and lines, and end the record."""
        self._stop_body_timer()
        self._send_refusal(failure)
        await self._flush_refusal()
        self._close(failure.outcome, failure)
        if not self._body_read and self._has_body:
            await self._linger()
        self.finish()

    async def _flush_refusal(self) -> None:
        """Wait for the kernel to take it; a client that pipelines and never reads may keep it from that."""
        sent = self.flush()
        await asyncio.wait((sent,), timeout=self._service.write_timeout_s)
        if not sent.done():
            self.reset_connection()
        elif isinstance(sent.exception(), StreamClosedError):
            self._left.set()

    async def _linger(self) -> None:
        """Let a client that is still sending read the refusal, then cut the connection.

        Closing with bytes unread resets the connection, and a reset can overtake the reply. Nothing
        more is read meanwhile.
        """
        if not await self._leaves_within(_LINGER_S):
            self.close_connection()

    async def _leaves_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._left.wait()
        except TimeoutError:
            return False
        return True

    def _send_refusal(self, failure: Failure) -> None:
        self._refused = True
        lines = error_line(failure) + DONE
        self.set_status(failure.status)
        self.set_reply_headers(CONTENT_TYPE, failure)
        self.set_header("Content-Length", str(len(lines)))
        self.write(lines)

    def _body_late(self) -> None:
        failure = Failure(
            Code.BAD_REQUEST, f"The body did not arrive within {self._service.body_timeout_s:g} s."
        )
        self._send_refusal(failure)
        self._close(failure.outcome, failure)
        self.finish()

    def on_connection_close(self) -> None:
        """Tornado met the end while it read the body; its socket is closed before the watch is asked."""
        super().on_connection_close()
        if self._unwatch is not None:
            self._client_left()

    def _client_left(self) -> None:
        self._left.set()
        if self._stream is not None:
            self._stream.stop(ClientGone())
        elif not self._refused:
            self._close(Outcome.CLIENT_CLOSED)
            self._release()
            self.close_connection()

    def _close(self, outcome: Outcome, failure: Failure | None = None, *, told: bool = True) -> None:
        """End the record of a request that never became a stream."""
        if self._closed:
            return
        self._closed = True
        record, ledger = self._record, self._service.ledger
        if outcome is not Outcome.DENIED:
            ledger.open(record)
        record.phase = Phase.DONE
        record.outcome = outcome
        record.duration_ms = round((time.monotonic() - self._began_at) * 1000)
        if failure is not None:
            if failure.code is Code.DRAINING:
                # It never ran, so nothing of it was shut down.
                record.outcome = Outcome.REJECTED
            record.status = failure.status if told else None
            record.error = RecordedError(failure.code, failure.sentence)
        if outcome is Outcome.DENIED:
            ledger.denied(record, network_of(record.ip))
        else:
            ledger.close(record)

    def _release(self) -> None:
        """Give back what the request held."""
        if self._unwatch is not None:
            self._unwatch()
            self._unwatch = None
        self._stop_body_timer()
        if self._place is not None:
            self._service.registry.give_back(self._place)
            self._place = None

    def _stop_body_timer(self) -> None:
        if self._body_timer is not None:
            self._body_timer.cancel()

    @property
    def _has_body(self) -> bool:
        headers = self.request.headers
        return headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in headers
