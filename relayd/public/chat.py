"""`POST /chat`: authenticate, acquire a slot, read the body, relay the answer as lines, record the end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from tornado.httputil import HTTPServerRequest

from relayd.public.auth import presented_key, unauthorized
from relayd.public.chat_request import parse_chat_request
from relayd.public.client_address import network_of
from relayd.public.framing import malformed_body
from relayd.public.handlers import BaseHandler, PublicApp
from relayd.relay.errors import ClientGone, ErrorCode, RelayError, internal_error
from relayd.relay.ndjson import DONE_LINE, error_line
from relayd.relay.probe import is_probe
from relayd.relay.stream import RelayStream
from relayd.state.records import Outcome, Phase, RecordedError, RequestRecord, utc_text

_NDJSON = "application/x-ndjson; charset=utf-8"
_MAX_HEADER_CHARS = 200
_CHROMIUM_HEAD_BUFFER_BYTES = 4096
"""How much Chromium reads of a response to find its head (net/http/http_stream_parser.cc)."""


class ChatHandler(BaseHandler):
    """One request to the model, and the way to its client (`relayd.relay.stream.ResponseWriter`)."""

    def __init__(self, application: PublicApp, request: HTTPServerRequest, **kwargs: Any) -> None:
        super().__init__(application, request, **kwargs)
        self.status: int | None = None
        self._began_at = time.monotonic()
        self._body = bytearray()
        self._stream: RelayStream | None = None
        self._has_slot = False
        self._body_timer: asyncio.TimerHandle | None = None
        context = self.context
        self.max_received_bytes += context.max_body_bytes
        self._record = RequestRecord(
            id=self.request_id,
            boot_id=context.boot_id,
            started_at=utc_text(time.time()),
            ip=context.proxies.client_address(self.stream.peer, request.headers.get_list("X-Forwarded-For")),
            origin=_cut(request.headers.get("Origin")),
            user_agent=_cut(request.headers.get("User-Agent")),
            path=request.path,
        )
        self._unwatch: Callable[[], None] = lambda: None

    def prepare(self) -> None:
        """Admit or refuse from the headers alone; no byte of the body is read before this is over."""
        super().prepare()
        if self.request.method != "POST":
            return
        if self.stream.closed():
            self._on_client_left()
            return
        self._unwatch = self.context.disconnects.watch(self.stream.socket, self._on_client_left)
        loop = asyncio.get_running_loop()
        self._body_timer = loop.call_later(self.context.body_timeout_s, self._on_body_timeout)
        try:
            self._admit()
        except RelayError as error:
            self.refuse(error)

    def _admit(self) -> None:
        context, record, headers = self.context, self._record, self.request.headers
        presented = presented_key(headers)
        holder = context.keys.verify(presented)
        # A dead key is recorded with its client, so that the operator can tell them.
        known = holder or context.keys.former_owner(presented)
        if known is not None:
            record.key_id, record.client = known.key_id, known.client
        if holder is None:
            raise unauthorized()
        context.keys.record_use(holder.key_id, record.ip)
        if context.accepting.refusal is not None:
            raise context.accepting.refusal
        if int(headers.get("Content-Length", "0")) > context.max_body_bytes:
            raise self._too_large()
        context.slots.acquire(record.ip)
        self._has_slot = True

    def take_piece(self, chunk: bytes) -> None:
        """Collect the body unless it is refused; one without a Content-Length shows its size only here."""
        if self.request.method != "POST" or self._record.outcome is not None:
            return
        self._body += chunk
        if len(self._body) > self.context.max_body_bytes:
            self.refuse(self._too_large())
        elif self.in_tiny_pieces:
            self.refuse(RelayError(ErrorCode.BAD_REQUEST, "The body arrives in too many tiny pieces."))

    async def post(self) -> None:
        """Relay, now that the body is here."""
        self._stop_body_timer()
        self._body_arrived = True
        context, record = self.context, self._record
        if record.outcome is not None:
            # Refused before its body was here, or left.
            self.finish()
            return
        try:
            request = parse_chat_request(bytes(self._body), context.chat_rules)
            is_own = is_probe(request.model)
            upstream = context.probe.answer(request.model, record.ip) if is_own else context.upstream
        except RelayError as error:
            self.refuse(error)
            return
        self._body.clear()
        record.model = request.model
        stream = self._stream = RelayStream(
            record,
            request.upstream_body,
            include_usage=request.include_usage,
            upstream=upstream,
            writer=self,
            limits=context.stream_limits,
        )
        context.recorder.open(record)
        context.streams.add(stream)
        try:
            await stream.run()
        finally:
            context.streams.remove(stream)
            if record.outcome is None:
                record.phase, record.outcome, record.status = Phase.DONE, Outcome.CRASHED, None
            context.recorder.close(record)
            self._release()
            if not self._finished:
                # One that only closed its sending side still reads: it must not see an orderly end.
                self.stream.close()

    def write_lines(self, lines: bytes) -> None:
        """Send lines, the first time with the head. Raises ClientGone."""
        if self.status is None:
            self.status = int(HTTPStatus.OK)
            self.set_header("Content-Type", _NDJSON)
            self._pad_head()
        self.send_now(lines)

    async def end(self, lines: bytes, error: RelayError | None) -> None:
        """Send the last lines and end the response; an error before the first byte sets the status."""
        if self.status is not None:
            self.send_now(lines)
            await self.drain()
            self.finish()
        elif error is not None:
            self.status = error.status
            self.render_error(error, lines)
            self.finish()
        else:
            self.status = int(HTTPStatus.OK)
            self.set_header("Content-Type", _NDJSON)
            self.set_header("Content-Length", str(len(lines)))
            self._pad_head()
            self.finish(lines)

    def _pad_head(self) -> None:
        """Make the head as long as Chromium's first read, so that the read never ends inside a line.

        Whatever follows the head in that read is the first piece that a page gets, and pages exist that parse
        each piece by itself. A proxy writes a head of its own, and only browsers send Origin.
        """
        if "Origin" not in self.request.headers or "X-Forwarded-For" in self.request.headers:
            return
        head = "HTTP/1.1 200 OK\r\n" + "".join(f"{n}: {v}\r\n" for n, v in self._headers.get_all())
        if "Content-Length" not in self._headers:
            head += "Transfer-Encoding: chunked\r\n"
        padding = _CHROMIUM_HEAD_BUFFER_BYTES - len(f"{head}X-Padding: \r\n\r\n")
        self.set_header("X-Padding", "0" * padding)

    def error_body(self, error: RelayError) -> tuple[str, bytes]:
        """Return an error as the two lines that every client of /chat reads."""
        return _NDJSON, error_line(error) + DONE_LINE

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Render what was raised; a bug before the stream began leaves nothing open."""
        super().write_error(status_code, **kwargs)
        if status_code == HTTPStatus.INTERNAL_SERVER_ERROR:
            self._stop_body_timer()
            self._close_record(Outcome.CRASHED, internal_error(self.request_id))
            self._release()

    def refuse(self, error: RelayError) -> None:
        """Answer with an error, and record a request that never became a stream."""
        super().refuse(error)
        self._body.clear()
        self._close_record(error.outcome, error)
        self._release()

    def on_connection_close(self) -> None:
        """Take the end of a connection whose body was still arriving (tornado.web.RequestHandler)."""
        super().on_connection_close()
        if self.stream.met_bad_body and self._stream is None:
            error = malformed_body()
            self._close_record(error.outcome, error)
        if self.request.method == "POST":
            self._on_client_left()

    def _on_client_left(self) -> None:
        if self._stream is not None:
            self._stream.stop(ClientGone())
            return
        self._stop_body_timer()
        self._close_record(Outcome.CLIENT_CLOSED)
        self._release()
        self.stream.close()

    def _on_body_timeout(self) -> None:
        if self._record.outcome is None:
            self.refuse(
                RelayError(
                    ErrorCode.BAD_REQUEST,
                    f"The body did not arrive within {self.context.body_timeout_s:g} s.",
                )
            )
        if not self._finished:
            self.finish()

    def _stop_body_timer(self) -> None:
        if self._body_timer is not None:
            self._body_timer.cancel()

    def _release(self) -> None:
        """Give back what the request holds."""
        self._unwatch()
        if self._has_slot:
            self._has_slot = False
            self.context.slots.release(self._record.ip)

    def _close_record(self, outcome: Outcome, error: RelayError | None = None) -> None:
        """End the record of a request that never became a stream."""
        record, recorder = self._record, self.context.recorder
        if record.outcome is not None or self._stream is not None:
            return
        record.phase = Phase.DONE
        # A request that was refused while draining never ran, so it was not shut down.
        record.outcome = Outcome.REJECTED if outcome is Outcome.SHUTDOWN else outcome
        record.duration_ms = round((time.monotonic() - self._began_at) * 1000)
        if error is not None:
            record.status = error.status
            record.error = RecordedError(error.code, error.recorded)
        if outcome is Outcome.DENIED:
            recorder.deny(record, network_of(record.ip))
        else:
            recorder.open(record)
            recorder.close(record)

    def _too_large(self) -> RelayError:
        return RelayError(
            ErrorCode.TOO_LARGE, f"The body may have at most {self.context.max_body_bytes} bytes."
        )


def _cut(text: str | None) -> str | None:
    return None if text is None else text[:_MAX_HEADER_CHARS]
