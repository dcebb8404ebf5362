"""`POST /chat`: authenticate, acquire a slot, read the body, relay the answer as lines, record the end."""

from __future__ import annotations

import time
from contextlib import ExitStack
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
from relayd.state.records import Outcome, Phase, RequestRecord, utc_text

_NDJSON = "application/x-ndjson; charset=utf-8"
_MAX_HEADER_CHARS = 200


class ChatHandler(BaseHandler):
    """One request to the model, and the way to its client (`relayd.relay.stream.ResponseWriter`)."""

    def __init__(self, application: PublicApp, request: HTTPServerRequest, **kwargs: Any) -> None:
        super().__init__(application, request, **kwargs)
        self.status: int | None = None
        self._began_at = time.monotonic()
        self._body: bytearray | None = None
        """What has come of the body of an admitted request; None: it is dropped."""
        self._stream: RelayStream | None = None
        self._held = ExitStack()
        """Gives back the slot, and ends the watch for the client's leaving."""
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

    def prepare(self) -> None:
        """Admit or refuse from the headers alone; no byte of the body is read before this is over."""
        super().prepare()
        if self.request.method != "POST":
            return
        if self.stream.closed():
            self._on_client_left()
            return
        self._held.callback(self.context.disconnects.watch(self.stream.socket, self._on_client_left))
        try:
            self._admit()
        except RelayError as error:
            self.refuse(error)
        else:
            self._body = bytearray()

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
        self._held.callback(context.slots.release, record.ip)

    def take_piece(self, chunk: bytes) -> None:
        """Collect the body of an admitted request; without a Content-Length its size shows only here."""
        if self._body is None:
            return
        self._body += chunk
        if len(self._body) > self.context.max_body_bytes:
            self.refuse(self._too_large())
        elif self.in_tiny_pieces:
            self.refuse(RelayError(ErrorCode.BAD_REQUEST, "The body arrives in too many tiny pieces."))

    async def post(self) -> None:
        """Relay, now that the body is here."""
        self.body_arrived()
        context, record = self.context, self._record
        if self._body is None:
            # Refused before its body was here.
            self.finish()
            return
        try:
            request = parse_chat_request(bytes(self._body), context.chat_rules)
            upstream = context.upstream
            if is_probe(request.model):
                upstream = context.probe.answer(request.model, record.ip)
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
            self._held.close()
            if not self._finished:
                # A client that only closed its sending side still reads: it must not see an orderly end.
                self.stream.close()

    def write_lines(self, lines: bytes) -> None:
        """Send lines, the first time with the head. Raises ClientGone."""
        if self.status is None:
            self.status = int(HTTPStatus.OK)
            self.set_header("Content-Type", _NDJSON)
            self.pad_head()
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
            self.pad_head()
            self.finish(lines)

    def error_body(self, error: RelayError) -> tuple[str, bytes]:
        """Return an error as the two lines that every client of /chat reads."""
        return _NDJSON, error_line(error) + DONE_LINE

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Render what was raised; a bug before the stream began leaves nothing open."""
        super().write_error(status_code, **kwargs)
        if status_code == HTTPStatus.INTERNAL_SERVER_ERROR:
            self._close_early(Outcome.CRASHED, internal_error(self.request_id))

    def refuse(self, error: RelayError) -> None:
        """Answer with an error, and record a request that never became a stream."""
        super().refuse(error)
        self._close_early(error.outcome, error)

    def on_connection_close(self) -> None:
        """Take the end of a connection whose body was still arriving (tornado.web.RequestHandler)."""
        super().on_connection_close()
        if self._body is None:
            return
        if self.stream.met_bad_body and self._stream is None:
            error = malformed_body()
            self._close_early(error.outcome, error)
        self._on_client_left()

    def _on_client_left(self) -> None:
        if self._stream is not None:
            self._stream.stop(ClientGone())
        else:
            self._close_early(Outcome.CLIENT_CLOSED)
            self.stream.close()

    def on_body_timeout(self) -> None:
        """Tell the client that its body did not arrive, and end the connection."""
        if self._body is not None:
            limit_s = self.context.body_timeout_s
            self.refuse(RelayError(ErrorCode.BAD_REQUEST, f"The body did not arrive within {limit_s:g} s."))
        if not self._finished:
            super().on_body_timeout()

    def _close_early(self, outcome: Outcome, error: RelayError | None = None) -> None:
        """Release what the request holds, and record its end if it never became a stream."""
        self._held.close()
        self._body = None
        record = self._record
        if record.outcome is None and self._stream is None:
            record.duration_ms = round((time.monotonic() - self._began_at) * 1000)
            self.context.recorder.refuse(record, outcome, error, network_of(record.ip))

    def _too_large(self) -> RelayError:
        return RelayError(
            ErrorCode.TOO_LARGE, f"The body may have at most {self.context.max_body_bytes} bytes."
        )


def _cut(text: str | None) -> str | None:
    return None if text is None else text[:_MAX_HEADER_CHARS]
