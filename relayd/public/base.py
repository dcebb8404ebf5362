"""What every handler on the public side shares: CORS, the request's id, errors in one form."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from http import HTTPStatus
from types import TracebackType
from typing import Any

import msgspec
from tornado.web import HTTPError, RequestHandler, stream_request_body

from relayd.public.exchange import PublicSide
from relayd.public.requestid import new_request_id

_log = logging.getLogger(__name__)


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

    def set_reply_headers(self, content_type: str) -> None:
        """The headers of a reply."""
        self.set_header("Content-Type", content_type)
        self.set_header("X-Accel-Buffering", "no")
        self.set_header("X-Request-Id", self.request_id)
        for name, value in self.public.cors.headers(self.request.headers.get("Origin")).items():
            self.set_header(name, value)

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
        """No handler here reads bodies as they come."""
        raise NotImplementedError


@stream_request_body
class OtherMethodHandler(BaseHandler):
    """`/chat` for methods other than POST: a preflight is answered, all else is refused."""

    def set_reply_headers(self, content_type: str) -> None:
        """As every reply, and with the methods that there are; the body is not read."""
        super().set_reply_headers(content_type)
        self.set_header("Allow", "POST, OPTIONS")
        self.set_header("Connection", "close")

    def data_received(self, chunk: bytes) -> None:
        """A preflight's body, of which nothing is wanted."""

    def prepare(self) -> None:
        """Refuse before any of the body is read."""
        if self.request.method != "OPTIONS":
            self.write_error(HTTPStatus.METHOD_NOT_ALLOWED)
