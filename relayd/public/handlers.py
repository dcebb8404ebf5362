"""What every public route has: a request id, CORS, one renderer of errors, and a bounded body."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import time
from collections.abc import Awaitable
from http import HTTPStatus
from typing import Any, cast

import msgspec
from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPServerRequest
from tornado.iostream import SSLIOStream, StreamClosedError
from tornado.web import Application, HTTPError, stream_request_body

from relayd.json_handler import JSON_TYPE, JsonHandler
from relayd.public.context import AppContext
from relayd.public.framing import RequestStream
from relayd.relay.errors import ClientGone, ClientStalled, ErrorCode, RelayError, internal_error

MAX_DRAINED_BYTES = 32 << 20
"""Bound of a body that is read only so that its client reads the answer."""
_FREE_PIECES = 1024
_BYTES_PER_PIECE = 16
_CROCKFORD = "0123456789abcdefghjkmnpqrstvwxyz"
_RANDOM_BITS = 35
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_CHROMIUM_HEAD_BUFFER_BYTES = 4096
"""How much Chromium reads of a response to find its head (net/http/http_stream_parser.cc)."""


def new_request_id() -> str:
    """Return 16 characters that sort by time: 45 bits of milliseconds, 35 random ones, in base 32."""
    number = (time.time_ns() // 1_000_000) << _RANDOM_BITS | int.from_bytes(os.urandom(5)) >> 5
    return "".join(_CROCKFORD[number >> shift & 31] for shift in range(75, -1, -5))


class PublicApp(Application):
    """Tornado's application, with the context that its handlers share."""

    context: AppContext


@stream_request_body
class BaseHandler(JsonHandler):
    """Base of every route. A body that the route does not want is dropped, up to a limit."""

    application: PublicApp

    def __init__(self, application: PublicApp, request: HTTPServerRequest, **kwargs: Any) -> None:
        self.context = application.context
        self.request_id = new_request_id()
        self.connection = cast("HTTP1Connection", request.connection)
        # The listener makes no other kind.
        self.stream = cast("RequestStream", self.connection.stream)
        self.stalled_s = 0.0
        """Seconds spent waiting for the client to read."""
        self.body: bytearray | None = None
        """What has come of a body that is wanted; None: it is dropped."""
        self.max_received_bytes = MAX_DRAINED_BYTES
        """Bound of the body in all, read or dropped."""
        self.received_bytes = 0
        self._received_pieces = 0
        # Tornado has no limit by itself. Cancelled when the body has arrived, or the response has ended.
        self.restart_body_timer()
        self.is_answered = False
        """Whether the response is whole, or will be when the body has arrived."""
        self._unsent: asyncio.Future[None] | None = None
        self._has_length = False
        """Whether the response that was begun has a Content-Length."""
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
        if self.request.version == "HTTP/1.1" and self._ends_connection():
            # RFC 9112, 9.6. Tornado sees `close` only if it stands alone.
            self.set_header("Connection", "close")

    def prepare(self) -> None:
        """Undo what Tornado would get wrong."""
        if self.request.version == "HTTP/1.0":
            # RFC 9110, 10.1.1: an HTTP/1.0 client knows no interim response.
            self.request.headers.pop("Expect", None)
            # `finish` closes the connection.
            self.request.headers.pop("Connection", None)

    def _ends_connection(self) -> bool:
        """Return whether the client wants no further request on its connection, or knows none."""
        options = self.request.headers.get("Connection", "").lower()
        return self.request.version == "HTTP/1.0" or (
            "close" in options and "close" in (option.strip() for option in options.split(","))
        )

    def options(self, *_path: str) -> None:
        """Answer a preflight, which needs no key."""
        headers = self.request.headers
        self.set_status(HTTPStatus.NO_CONTENT)
        for name, value in self.context.cors.preflight_headers(
            headers.get("Origin"),
            private_network=headers.get("Access-Control-Request-Private-Network") == "true",
        ).items():
            self.set_header(name, value)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Take a piece of the body, and cut off a body that goes over the limits."""
        self.received_bytes += len(chunk)
        self._received_pieces += 1
        taken = self.take_piece(chunk)
        if self.received_bytes > self.max_received_bytes or self.in_tiny_pieces:
            self.on_too_much()
        return taken

    @property
    def max_body_bytes(self) -> int:
        """Bound of a body that is wanted."""
        return self.context.max_body_bytes

    def take_piece(self, chunk: bytes) -> Awaitable[None] | None:
        """Take a piece of the body, whose size may show only here; what is returned is awaited."""
        if self.body is not None:
            self.body += chunk
            if len(self.body) > self.max_body_bytes:
                self.refuse(self.too_large())
        return None

    def on_too_much(self) -> None:
        """End the response of a request whose body goes over the limits, which ends the connection."""
        if self.body is not None:
            self.refuse(self.too_tiny())
        if not self._finished:
            self.finish()

    def too_tiny(self) -> RelayError:
        """Return the error of a body whose pieces cost too much."""
        return RelayError(ErrorCode.BAD_REQUEST, "The body arrives in too many tiny pieces.")

    def too_large(self) -> RelayError:
        """Return the error of a body over the limit."""
        return RelayError(ErrorCode.TOO_LARGE, f"The body may have at most {self.max_body_bytes} bytes.")

    def restart_body_timer(self) -> None:
        """Give the body its time."""
        self._body_timer = asyncio.get_running_loop().call_later(
            self.context.body_timeout_s, self.on_body_timeout
        )

    def body_arrived(self) -> None:
        """Note that the body is here: its time is over, and a refusal may end the response."""
        self._body_timer.cancel()

    def on_body_timeout(self) -> None:
        """End the connection of a request whose body does not arrive, and tell a client that waits for it."""
        if self.body is not None:
            limit_s = self.context.body_timeout_s
            self.refuse(RelayError(ErrorCode.BAD_REQUEST, f"The body did not arrive within {limit_s:g} s."))
        if not self._headers_written:
            self.stream.close()
        elif not self._finished:
            self.finish()

    def on_finish(self) -> None:
        """Stop the clock of the body, which would end the connection's next request (RequestHandler)."""
        self._body_timer.cancel()

    @property
    def in_tiny_pieces(self) -> bool:
        """Whether the body costs too much: each piece takes a turn of the event loop, whatever its size."""
        return self._received_pieces > _FREE_PIECES + self.received_bytes // _BYTES_PER_PIECE

    def refuse(self, error: RelayError) -> None:
        """Answer with an error at once, and end the response when the body has arrived.

        Closing with bytes unread resets the connection, and the reset can overtake the answer. A client that
        expects `100 Continue` has not begun to send.
        """
        self.render_error(error)
        self.end_response()

    def end_response(self) -> None:
        """End the response that was written, now or when the body has arrived."""
        self.is_answered = True
        awaits_continue = "Expect" in self.request.headers and not self.received_bytes
        if self._body_timer.cancelled() or awaits_continue:
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
        if error.is_final:
            self.set_header("x-should-retry", "false")
        self.write(body)

    def error_body(self, error: RelayError) -> tuple[str, bytes]:
        """Return the content type and the body of an error."""
        return JSON_TYPE, _json_error(error.code, error.message)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Render what a handler raised, or what Tornado refuses (tornado.web.RequestHandler)."""
        _, raised, _ = kwargs.get("exc_info", (None, None, None))
        if status_code >= HTTPStatus.INTERNAL_SERVER_ERROR or isinstance(raised, RelayError):
            self.render_error(raised if isinstance(raised, RelayError) else internal_error(self.request_id))
            return
        phrase = HTTPStatus(status_code).phrase
        message = {
            HTTPStatus.NOT_FOUND: "There is nothing at this path; send requests for a model to POST /chat.",
            HTTPStatus.METHOD_NOT_ALLOWED: f"{self.request.method} is not allowed at this path.",
        }.get(HTTPStatus(status_code), f"{phrase}; the request id is {self.request_id}.")
        self.set_header("Content-Type", JSON_TYPE)
        if status_code == HTTPStatus.METHOD_NOT_ALLOWED:
            self.allow_methods()
        self.write(self.http_error_body(phrase.lower().replace(" ", "_"), message))

    def http_error_body(self, code: str, message: str) -> bytes:
        """Return the body of what Tornado refuses."""
        return _json_error(code, message)

    def is_refusal(self, error: BaseException) -> bool:
        """Return whether it is an answer to the client."""
        return isinstance(error, HTTPError | RelayError)

    def bug_place(self) -> str:
        """Return the request, as its client knows it."""
        return f"request {self.request_id}"

    def finish(self, chunk: str | bytes | dict[str, Any] | None = None) -> asyncio.Future[None]:
        """End the response; a client that does not read it within the write timeout is dropped."""
        self.is_answered = True
        finished = super().finish(chunk)
        if self._ends_connection():
            # A body of HTTP/1.0 may have no length, and Tornado would keep the connection if it is asked to.
            finished.add_done_callback(lambda _finished: self.stream.close())
        if not finished.done():
            loop = asyncio.get_running_loop()
            timer = loop.call_later(self.context.write_timeout_s, self.reset)
            finished.add_done_callback(lambda _finished: timer.cancel())
        return finished

    # The way to the client for a body that is sent piece by piece.

    def pad_head(self) -> None:
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
            self._has_length = "Content-Length" in self._headers
        if not self._headers_written or self._has_length:
            # Tornado counts a body that has a length.
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
