"""The base of every handler, public and admin: answers in JSON, and a log of bugs only."""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from types import TracebackType

import msgspec
from tornado.web import RequestHandler

_log = logging.getLogger(__name__)

JSON_TYPE = "application/json; charset=utf-8"


class JsonHandler(RequestHandler):
    """A route; `write_error` of its subclass renders what its methods raise."""

    def is_refusal(self, error: BaseException) -> bool:
        """Return whether what was raised is an answer to the client; anything else is a bug."""
        raise NotImplementedError

    def bug_place(self) -> str:
        """Return where a bug was met, for the log."""
        raise NotImplementedError

    def send_json(self, document: object, status: int = HTTPStatus.OK) -> asyncio.Future[None]:
        """Finish with one JSON document; the future is done when it is sent, and need not be awaited."""
        self.set_status(status)
        self.set_header("Content-Type", JSON_TYPE)
        return self.finish(msgspec.json.encode(document) + b"\n")

    def allow_methods(self) -> None:
        """Set `Allow` to the methods that the route has."""
        methods = [
            method
            for method in self.SUPPORTED_METHODS
            if getattr(type(self), method.lower()) is not getattr(RequestHandler, method.lower())
        ]
        self.set_header("Allow", ", ".join(methods))

    def log_exception(
        self, typ: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None
    ) -> None:
        """Log bugs with their traceback; refusals are not bugs."""
        if typ is not None and value is not None and not self.is_refusal(value):
            _log.error("%s met a bug", self.bug_place(), exc_info=(typ, value, tb))
