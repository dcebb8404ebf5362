"""What every handler on the public side shares: CORS, the request's id, errors in one form."""

from __future__ import annotations

import logging
import socket
import struct
from collections.abc import Awaitable
from dataclasses import dataclass
from http import HTTPStatus
from types import TracebackType
from typing import Any, cast

import msgspec
from tornado.http1connection import HTTP1Connection
from tornado.web import HTTPError, RequestHandler

from relayd.public.address import ClientAddress
from relayd.public.cors import Cors
from relayd.public.guard import GuardedStream
from relayd.public.requestid import new_request_id
from relayd.relay.failure import Code, Failure

_log = logging.getLogger(__name__)

_AT_ONCE = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class PublicSide:
    """What every public handler needs; built once by the server."""

    cors: Cors
    address: ClientAddress


class BaseHandler(RequestHandler):
    """Sets the common headers and turns every error into JSON that says what to do."""

    public: PublicSide

    def set_default_headers(self) -> None:
        """Tornado calls this before a request is handled and again before an error is written."""
        self.clear_header("Server")
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")

    def initialize(self, public: PublicSide) -> None:
        """Take what the server passes on."""
        self.public = public
        self.request_id = new_request_id()

    @property
    def connection(self) -> HTTP1Connection:
        """The connection that this request came on."""
        return cast("HTTP1Connection", self.request.connection)

    @property
    def stream(self) -> GuardedStream:
        """The connection's bytes; the listener makes no other kind."""
        return cast("GuardedStream", self.connection.stream)

    @property
    def socket(self) -> socket.socket | None:
        """The connection's socket; None once it is closed."""
        stream = self.connection.stream
        return None if stream.closed() else stream.socket

    @property
    def client_address(self) -> str:
        """Where the request comes from, behind trusted proxies."""
        peer = self.request.remote_ip or ""
        return self.public.address.of(peer, self.request.headers.get_list("X-Forwarded-For"))

    def close_connection(self) -> None:
        """Cut the connection now, with whatever is still to be sent."""
        self.connection.close()

    def reset_connection(self) -> None:
        """Cut the connection now, and take from the kernel what a client that does not read left there."""
        sock = self.socket
        if sock is not None:
            # socket(7): SO_LINGER with no time makes close() send RST and free what is unsent.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self.connection.close()

    def set_reply_headers(self, content_type: str, failure: Failure | None = None) -> None:
        """The headers of a reply, with what a failure adds to them."""
        self.set_header("Content-Type", content_type)
        self.set_header("X-Accel-Buffering", "no")
        self.set_header("X-Request-Id", self.request_id)
        for name, value in self.public.cors.headers(self.request.headers.get("Origin")).items():
            self.set_header(name, value)
        if failure is not None:
            self.set_header("X-Relayd-Error", failure.code)
            if failure.retry_after_s is not None:
                self.set_header("Retry-After", str(failure.retry_after_s))
            if failure.code is Code.DRAINING:
                self.set_header("Connection", "close")
            if failure.code is Code.UNAUTHORIZED:
                # RFC 9110, 11.6.1: a 401 names its scheme.
                self.set_header("WWW-Authenticate", "Bearer")

    def options(self, *_path: str) -> None:
        """Answer a preflight; it needs no key."""
        self.set_status(HTTPStatus.NO_CONTENT)
        for name, value in self.public.cors.preflight_headers(self.request.headers.get("Origin")).items():
            self.set_header(name, value)

    def send_json(self, body: object, status: int = HTTPStatus.OK) -> None:
        """Answer with one JSON document."""
        self.set_status(status)
        self.set_reply_headers("application/json; charset=utf-8")
        self.finish(msgspec.json.encode(body) + b"\n")

    def write_error(self, status_code: int, **_details: Any) -> None:
        """Render what Tornado refuses or a bug raised; details stay in the log."""
        phrase = HTTPStatus(status_code).phrase
        code = (
            "internal"
            if status_code >= HTTPStatus.INTERNAL_SERVER_ERROR
            else phrase.lower().replace(" ", "_")
        )
        message = {
            HTTPStatus.NOT_FOUND: "There is nothing at this path; POST /chat is where models answer.",
            HTTPStatus.METHOD_NOT_ALLOWED: f"{self.request.method} is not possible at this path.",
        }.get(HTTPStatus(status_code), f"{phrase}; the request id is {self.request_id}.")
        self.send_json({"error": {"code": code, "message": message}}, status_code)

    def log_exception(
        self,
        typ: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        """Log bugs with their traceback, under the request's id; refusals are not bugs."""
        if not isinstance(value, HTTPError) and typ is not None and value is not None:
            _log.error("request %s met a bug", self.request_id, exc_info=(typ, value, tb))

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """Only the chat handler reads bodies as they come."""
        raise NotImplementedError
