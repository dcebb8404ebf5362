"""What every public route has: a request id, CORS, one renderer of errors, and a bounded body."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import struct
import time
from http import HTTPStatus
from types import TracebackType
from typing import Any, cast

import msgspec
from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPServerRequest
from tornado.iostream import SSLIOStream, StreamClosedError
from tornado.web import Application, HTTPError, RequestHandler, stream_request_body

from relayd.public.context import AppContext
from relayd.public.framing import RequestStream
from relayd.relay.errors import ClientGone, ClientStalled, ErrorCode, RelayError, internal_error

_log = logging.getLogger(__name__)

MAX_DRAINED_BYTES = 32 << 20
"""Bound of a body that is read only so that its client reads the answer."""
_FREE_PIECES = 1024
_BYTES_PER_PIECE = 16
_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
_RANDOM_BITS = 35
_JSON = "application/json; charset=utf-8"
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def new_request_id() -> str:
    """Return 16 characters that sort by time: 45 bits of milliseconds, 35 random ones, in base 32."""
    number = (time.time_ns() // 1_000_000) << _RANDOM_BITS | int.from_bytes(os.urandom(5)) >> 5
    return "".join(_CROCKFORD[number >> shift & 31] for shift in range(75, -1, -5))


class PublicApp(Application):
    """Tornado's application, with the context that its handlers share."""

    context: AppContext


@stream_request_body
class BaseHandler(RequestHandler):
    """Base of every route. A body that the route does not read is dropped, up to a limit."""

    application: PublicApp

    def __init__(self, application: PublicApp, request: HTTPServerRequest, **kwargs: Any) -> None:
        self.context = application.context
        self.request_id = new_request_id()
        self.connection = cast("HTTP1Connection", request.connection)
        # The listener makes no other kind.
        self.stream = cast("RequestStream", self.connection.stream)
        self.stalled_s = 0.0
        """Seconds spent waiting for the client to read."""
        self.max_received_bytes = MAX_DRAINED_BYTES
        """Bound of the body in all, read or dropped."""
        self._received_bytes = 0
        self._received_pieces = 0
        self._body_arrived = False
        self._unsent: asyncio.Future[None] | None = None
        super().__init__(application, request, **kwargs)

    def set_default_headers(self) -> None:
        """Set the headers of every response."""
        self.clear_header("Server")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Accel-Buffering", "no")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("X-Request-Id", self.request_id)
        for name, value in self.context.cors.headers(self.request.headers.get("Origin")).items():
            self.set_header(name, value)

    def prepare(self) -> None:
        """Undo what Tornado would get wrong."""
        if self.request.version == "HTTP/1.0":
            # RFC 9110, 10.1.1: an HTTP/1.0 client knows no interim response.
            self.request.headers.pop("Expect", None)
            # `finish` closes the connection.
            self.request.headers.pop("Connection", None)
        # Tornado has none by itself; it closes the connection.
        self.connection.set_body_timeout(self.context.body_timeout_s)

    def options(self, *_path: str) -> None:
        """Answer a preflight, which needs no key."""
        headers = self.request.headers
        self.set_status(HTTPStatus.NO_CONTENT)
        for name, value in self.context.cors.preflight_headers(
            headers.get("Origin"),
            private_network=headers.get("Access-Control-Request-Private-Network") == "true",
        ).items():
            self.set_header(name, value)

    def data_received(self, chunk: bytes) -> None:
        """Take a piece of the body, and cut off a body that goes over the limits."""
        self._received_bytes += len(chunk)
        self._received_pieces += 1
        self.take_piece(chunk)
        is_too_much = self._received_bytes > self.max_received_bytes or self.in_tiny_pieces
        if is_too_much and not self._finished:
            self.finish()

    def take_piece(self, chunk: bytes) -> None:
        """Take a piece of the body; here it is dropped."""

    @property
    def in_tiny_pieces(self) -> bool:
        """Whether the body costs too much: each piece takes a turn of the event loop, whatever its size."""
        return self._received_pieces > _FREE_PIECES + self._received_bytes // _BYTES_PER_PIECE

    def refuse(self, error: RelayError) -> None:
        """Answer with an error at once, and end the response when the body has arrived.

        Closing with bytes unread resets the connection, and the reset can overtake the answer. A client that
        expects `100 Continue` has not begun to send.
        """
        self.render_error(error)
        awaits_continue = "Expect" in self.request.headers and not self._received_bytes
        if self._body_arrived or awaits_continue:
            self.finish()
        else:
            self.flush()

    def render_error(self, error: RelayError, body: bytes | None = None) -> None:
        """Set status, headers and body of an error; `body` takes the place of the route's own."""
        content_type, usual_body = self.error_body(error)
        body = usual_body if body is None else body
        self.set_status(error.status)
        self.set_header("Content-Type", content_type)
        self.set_header("Content-Length", str(len(body)))
        self.set_header("X-Relayd-Error", error.code)
        if error.status == HTTPStatus.UNAUTHORIZED:
            self.set_header("WWW-Authenticate", "Bearer")
        if error.retry_after_s is not None:
            self.set_header("Retry-After", str(error.retry_after_s))
        if error.code is ErrorCode.CANCELLED:
            self.set_header("x-should-retry", "false")
        self.write(body)

    def error_body(self, error: RelayError) -> tuple[str, bytes]:
        """Return the content type and the body of an error."""
        return _JSON, _json_error(error.code, error.message)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Render what a handler raised, or what Tornado refuses (tornado.web.RequestHandler)."""
        _, raised, _ = kwargs.get("exc_info", (None, None, None))
        if status_code >= HTTPStatus.INTERNAL_SERVER_ERROR or isinstance(raised, RelayError):
            self.render_error(raised if isinstance(raised, RelayError) else internal_error(self.request_id))
            return
        phrase = HTTPStatus(status_code).phrase
        message = {
            HTTPStatus.NOT_FOUND: "There is nothing at this path; POST /chat is where models answer.",
            HTTPStatus.METHOD_NOT_ALLOWED: f"{self.request.method} is not possible at this path.",
        }.get(HTTPStatus(status_code), f"{phrase}; the request id is {self.request_id}.")
        self.set_header("Content-Type", _JSON)
        if status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            self.set_header("Allow", ", ".join(self._methods()))
        self.write(_json_error(phrase.lower().replace(" ", "_"), message))

    def _methods(self) -> list[str]:
        """Return the methods that the route has; Tornado refuses the others when the body has arrived."""
        return [
            method
            for method in self.SUPPORTED_METHODS
            if getattr(type(self), method.lower()) is not getattr(RequestHandler, method.lower())
        ]

    def log_exception(
        self,
        typ: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Log bugs with their traceback, under the request's id; refusals are not bugs."""
        if not isinstance(value, HTTPError | RelayError) and typ is not None and value is not None:
            _log.error("request %s met a bug", self.request_id, exc_info=(typ, value, tb))

    def finish(self, chunk: str | bytes | dict[str, Any] | None = None) -> asyncio.Future[None]:
        """End the response; a client that does not read it within the write timeout is dropped."""
        finished = super().finish(chunk)
        if self.request.version == "HTTP/1.0":
            # Its body may have no length, and Tornado would keep the connection if the client asks for it.
            finished.add_done_callback(lambda _finished: self.stream.close())
        if not finished.done():
            loop = asyncio.get_running_loop()
            timer = loop.call_later(self.context.write_timeout_s, self.reset)
            finished.add_done_callback(lambda _finished: timer.cancel())
        return finished

    def send_json(self, body: object, status: int = HTTPStatus.OK) -> None:
        """Answer with one JSON document."""
        self.set_status(status)
        self.set_header("Content-Type", _JSON)
        self.finish(msgspec.json.encode(body) + b"\n")

    # The way to the client for a body that is sent piece by piece.

    @property
    def blocked(self) -> bool:
        """Whether the client must read before it is sent more."""
        return self._unsent is not None and not self._unsent.done()

    def send_now(self, data: bytes) -> None:
        """Send a piece of the body without waiting for the client. Raises ClientGone.

        `flush` costs two futures and two turns of the loop even if the kernel takes everything at once, as it
        nearly always does: so the socket is tried first, unless bytes are queued or TLS must wrap them.
        """
        stream = self.stream
        if stream.closed():
            raise ClientGone
        if not self._headers_written:
            self.write(data)
            self._unsent = self.flush()
            return
        if self.request.version == "HTTP/1.1":
            data = b"%x\r\n%b\r\n" % (len(data), data)
        if not stream.writing() and not isinstance(stream, SSLIOStream):
            try:
                sent = stream.socket.send(data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                stream.close(exc_info=error)
                raise ClientGone from error
            if sent == len(data):
                return
            data = data[sent:]
        self._unsent = stream.write(data)

    async def drain(self) -> None:
        """Wait until the kernel has taken everything. Raises ClientGone or ClientStalled."""
        unsent = self._unsent
        if unsent is None:
            return
        if not unsent.done():
            loop = asyncio.get_running_loop()
            began_at = loop.time()
            try:
                # Not awaited by itself: Tornado's callbacks fail on a future that a timeout has cancelled.
                await asyncio.wait((unsent,), timeout=self.context.write_timeout_s)
            finally:
                self.stalled_s += loop.time() - began_at
        if not unsent.done():
            self.reset()
            raise ClientStalled
        try:
            unsent.result()
        except StreamClosedError as error:
            raise ClientGone from error

    def reset(self) -> None:
        """Cut the connection, and free what the kernel keeps for a client that does not read."""
        if not self.stream.closed():
            # socket(7): SO_LINGER with no time makes close() send RST and drop what is unsent.
            self.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self.stream.close()


def _json_error(code: str, message: str) -> bytes:
    return msgspec.json.encode({"error": {"code": code, "message": message}}) + b"\n"
