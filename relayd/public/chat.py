"""`POST /chat`, in the order it happens: admit, read, parse, relay, close the record."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from tornado.httputil import HTTPMessageDelegate
from tornado.iostream import StreamClosedError

from relayd.public.address import network_of
from relayd.public.bodyclock import BodyClock
from relayd.public.chatrequest import ChatRequest, parse_chat_request
from relayd.public.exchange import Exchange
from relayd.public.guard import malformed_body
from relayd.public.record import opened_record
from relayd.public.reply import ChatReply
from relayd.public.service import ChatService
from relayd.relay.failure import ClientGone, Code, Failure, bug
from relayd.relay.lines import DONE, error_line
from relayd.relay.stream import RelayStream
from relayd.state.records import Outcome, Phase, RecordedError

_log = logging.getLogger(__name__)

_LINGER_S = 1.0


class Chat(HTTPMessageDelegate):
    """One request to the model, from its head to its record. Tornado calls the methods of its base class."""

    def __init__(self, exchange: Exchange, service: ChatService) -> None:
        self._exchange = exchange
        self._service = service
        self._record = opened_record(exchange, service.boot_id)
        self._began_at = time.monotonic()
        self._body = bytearray()
        self._left = asyncio.Event()
        self._stream: RelayStream | None = None
        self._unwatch: Callable[[], None] | None = None
        self._place: str | None = None
        self._clock: BodyClock | None = None
        self._body_read = False
        self._refused = False
        self._settled = False
        """Whether the record is closed, or its stream's to close."""

    def headers_received(self, *_head: object) -> Awaitable[None] | None:
        """Admit or refuse from the headers alone; no byte of the body is read before this is over."""
        try:
            self._admit()
        except Failure as failure:
            return self._turn_away(failure)
        except Exception:  # noqa: BLE001 - whatever it is, it must end one request only, and be told
            return self._refuse(self._bug())
        return None

    def _admit(self) -> None:
        service, record, exchange = self._service, self._record, self._exchange
        sock = exchange.socket
        if sock is None:
            self._close(Outcome.CLIENT_CLOSED)
            return
        self._unwatch = service.hangups.watch(sock, self._client_left)
        service.admission.identify(exchange.headers, record)
        exchange.admitted()
        service.admission.check_intake(exchange.headers)
        service.registry.take_place(record.ip)
        self._place = record.ip
        self._clock = BodyClock(service.body_timeout_s, lambda: len(self._body), self._body_slow)

    async def _turn_away(self, failure: Failure) -> None:
        if failure.code is not Code.UNAUTHORIZED or await self._hold(failure):
            await self._refuse(failure)

    async def _hold(self, failure: Failure) -> bool:
        """Let an address that keeps failing wait for its refusal; False where it gets none.

        Nobody else waits, and who leaves meanwhile is denied all the same.
        """
        if self._exchange.hides_client:
            return True
        network = network_of(self._record.ip)
        seconds = self._service.penalties.failed(network)
        self._refused = True
        with self._service.penalties.held(network) as is_held:
            if not seconds or (is_held and not await self._leaves_within(seconds)):
                return True
        self._close(failure.outcome, failure, told=False)
        self._release()
        self._exchange.close()
        return False

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Collect the body; one without a Content-Length shows its size only here."""
        if self._settled:
            return None
        self._body += chunk
        if len(self._body) <= self._service.admission.max_body_bytes:
            return None
        self._body.clear()
        return self._refuse(self._service.admission.too_large())

    def finish(self) -> None:
        """The body is whole: relay, beside Tornado's own reading."""
        if self._settled:
            return
        self._body_read = True
        self._stop_clock()
        if self._exchange.socket is None:
            # Its body was all here when it left, and nobody watches a closed connection.
            self._client_left()
            return
        self._exchange.when_closed(self._client_left)
        self._service.begin(self._answer(), f"chat {self._record.id}")

    async def _answer(self) -> None:
        """At the end of this the client and the record know how the request ended."""
        try:
            if not self._settled:
                request = parse_chat_request(bytes(self._body), self._service.rules())
                await self._relay(request)
        except Failure as failure:
            await self._refuse(failure)
        except Exception:  # noqa: BLE001 - whatever it is, it must end one request only, and be told
            met = self._bug()
            if not self._exchange.has_begun:
                await self._refuse(met)
        finally:
            self._release()
            if not self._exchange.is_over:
                # One that only closed its sending side still reads: it must not see an orderly end.
                self._exchange.close()

    async def _relay(self, request: ChatRequest) -> None:
        service, record = self._service, self._record
        source = service.source(request.model, record.ip)
        self._body.clear()
        record.model = request.model
        stream = self._stream = RelayStream(
            record,
            request.upstream_body,
            tell_usage=request.tell_usage,
            upstream=source,
            reply=ChatReply(self._exchange, write_timeout_s=service.write_timeout_s),
            limits=service.limits,
        )
        self._settled = True
        service.ledger.open(record)
        service.registry.add(stream)
        try:
            await stream.run()
        finally:
            service.registry.remove(stream)
            if record.outcome is None:
                record.phase, record.outcome, record.status = Phase.DONE, Outcome.CRASHED, None
            service.ledger.close(record)

    async def _refuse(self, failure: Failure) -> None:
        """Answer with the failure's status and lines, end the record, and end or free the connection."""
        self._stop_clock()
        waiting = self._say(failure)
        if waiting is not None:
            # A client that pipelines and never reads may keep the kernel from taking it.
            await asyncio.wait((waiting,), timeout=self._service.write_timeout_s)
            if not waiting.done():
                self._left.set()
                self._exchange.reset()
            elif waiting.exception() is not None:
                self._left.set()
        self._close(failure.outcome, failure, told=not self._left.is_set())
        if not self._body_read and self._exchange.has_body:
            # Closing with bytes unread resets the connection, and a reset can overtake the reply: so a
            # client that is still sending has a moment to read it. Nothing more is read meanwhile.
            await self._leaves_within(_LINGER_S)
            await self._service.turns.wait()
        self._release()
        self._exchange.finish()

    def _say(self, failure: Failure) -> asyncio.Future[None] | None:
        self._refused = True
        lines = error_line(failure) + DONE
        # Tornado hangs up after a reply that did not wait for the body.
        head = self._exchange.head(failure, length=len(lines), ends=not self._body_read)
        try:
            return self._exchange.send(head + lines)
        except StreamClosedError:
            self._left.set()
            return None

    async def _leaves_within(self, seconds: float) -> bool:
        """Whether the connection ends within this time, at either end."""
        self._exchange.when_closed(self._left.set)
        try:
            async with asyncio.timeout(seconds):
                await self._left.wait()
        except TimeoutError:
            return False
        finally:
            self._exchange.when_closed(None)
        return True

    def _bug(self) -> Failure:
        """Log what was just raised; what the client is told of it."""
        _log.exception("request %s met a bug", self._record.id)
        return bug(self._record.id)

    def _body_slow(self, sentence: str) -> None:
        """Refuse in one of the next turns: a flood of slow bodies is late all at once."""
        self._service.turns.call(lambda: self._body_late(sentence))

    def _body_late(self, sentence: str) -> None:
        """Refuse, as far as the kernel takes it at once: who sends this slowly is not waited for."""
        if self._body_read or self._refused or self._settled:
            return
        failure = Failure(Code.BAD_REQUEST, sentence)
        self._say(failure)
        self._close(failure.outcome, failure)
        self._release()
        self._exchange.finish()

    def on_connection_close(self) -> None:
        """Tornado met the end while it read the body; its socket is closed before the watch is asked."""
        if self._exchange.is_malformed:
            failure = malformed_body()
            self._close(failure.outcome, failure)
            self._release()
        elif self._unwatch is not None:
            self._client_left()

    def _client_left(self) -> None:
        self._left.set()
        if self._stream is not None:
            self._stream.stop(ClientGone())
        elif not self._refused:
            self._close(Outcome.CLIENT_CLOSED)
            self._release()
            self._exchange.close()

    def _close(self, outcome: Outcome, failure: Failure | None = None, *, told: bool = True) -> None:
        """End the record of a request that never became a stream."""
        if self._settled:
            return
        self._settled = True
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
        self._exchange.when_closed(None)
        self._stop_clock()
        if self._place is not None:
            self._service.registry.give_back(self._place)
            self._place = None

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.stop()
            self._clock = None
