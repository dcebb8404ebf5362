"""What every admin route shares: strict questions, one form for errors, who asks."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable
from http import HTTPStatus
from types import TracebackType
from typing import Any, TypeVar, cast

import msgspec
from tornado.http1connection import HTTP1Connection
from tornado.web import HTTPError, RequestHandler

from relayd.admin.context import AdminContext
from relayd.admin.errors import AdminError, as_admin_error
from relayd.admin.schema import PROTOCOL, PROTOCOL_HEADER, VERSION_MISMATCH, ErrorDetail, ErrorReply
from relayd.state.records import Peer

_log = logging.getLogger(__name__)

_GENERATION = re.compile(r'(?:W/)?"([0-9]{1,18})"|([0-9]{1,18})')
_SEQ = re.compile(r"[0-9]{1,18}")

T = TypeVar("T")


class AdminHandler(RequestHandler):
    """A route of the admin socket. Methods raise; `write_error` is the one place that answers errors."""

    parts: AdminContext
    arguments: frozenset[str] = frozenset()
    """The names that the query may have."""

    def initialize(self, parts: AdminContext) -> None:
        """Take what the server passes on."""
        self.parts = parts

    def set_default_headers(self) -> None:
        """Tornado calls this before a question is handled and again before an error is answered."""
        self.clear_header("Server")
        self.set_header("Cache-Control", "no-store")
        self.set_header(PROTOCOL_HEADER, PROTOCOL)

    def prepare(self) -> Awaitable[None] | None:
        """Refuse what is meant for another version, or has arguments that nobody would look at."""
        spoken = self.request.headers.get(PROTOCOL_HEADER, PROTOCOL)
        if spoken != PROTOCOL:
            raise AdminError(
                HTTPStatus.CONFLICT,
                VERSION_MISMATCH,
                f"This daemon speaks version {PROTOCOL} of the admin protocol, not {spoken[:20]}. Use the "
                "relayd command of the version that runs.",
            )
        unknown = sorted(set(self.request.query_arguments) - self.arguments)
        if unknown:
            raise AdminError.bad_request(
                f"{unknown[0][:40]!r} means nothing here; "
                f"this path knows: {', '.join(sorted(self.arguments)) or 'no parameters'}."
            )
        return None

    def compute_etag(self) -> str | None:
        """Only the ring has one."""
        return None

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        """No route reads its body as it comes."""
        raise NotImplementedError

    @property
    def connection(self) -> HTTP1Connection:
        """The connection that this question came on."""
        return cast("HTTP1Connection", self.request.connection)

    async def peer(self) -> Peer:
        """Who asks."""
        stream = self.connection.stream
        if stream.closed():
            raise AdminError.bad_request("The asker has left.")
        return await self.parts.peers.of(stream.socket)

    def body(self, kind: type[T]) -> T:
        """The body; an empty one has every default.

        Raises:
            AdminError: it is not JSON, or not of this kind.
        """
        try:
            return msgspec.json.decode(self.request.body or b"{}", type=kind)
        except msgspec.MsgspecError as error:
            raise AdminError.bad_request(f"The body can't be understood: {error}.") from error

    def number(self, name: str) -> int | None:
        """A whole number of the query, if it is given."""
        text = self.get_query_argument(name, None)
        if text is None:
            return None
        if not _SEQ.fullmatch(text):
            raise AdminError.bad_request(f"{name} must be a whole number, not {text[:40]!r}.")
        return int(text)

    def generation(self) -> int:
        """The generation that If-Match names."""
        given = self.request.headers.get("If-Match")
        if given is None:
            raise AdminError(
                HTTPStatus.PRECONDITION_REQUIRED,
                "if_match_required",
                "Say which ring this change was decided on: If-Match with the ETag of GET /keys.",
            )
        match = _GENERATION.fullmatch(given.strip())
        if match is None:
            raise AdminError.bad_request('If-Match must be the ETag of GET /keys, like "7".')
        return int(match[1] or match[2])

    def idempotency_key(self) -> str:
        """The key under which this change happens at most once."""
        given = self.request.headers.get("Idempotency-Key")
        if not given:
            raise AdminError(
                HTTPStatus.BAD_REQUEST,
                "idempotency_key_required",
                "Give this change an Idempotency-Key of its own, such as a UUID, so that it can be repeated.",
            )
        return given

    def send_json(self, document: object) -> asyncio.Future[None]:
        """Answer with one JSON document; the result says when it is sent, and need not be awaited."""
        self.set_header("Content-Type", "application/json; charset=utf-8")
        return self.finish(msgspec.json.encode(document) + b"\n")

    def write_error(self, status_code: int, **details: Any) -> None:
        """Render an error; what a bug looks like stays in the daemon's log."""
        kind, error, _ = details.get("exc_info", (None, None, None))
        answer = as_admin_error(error)
        if answer is None:
            name = "" if kind is None else f" ({kind.__name__})"
            answer = AdminError(status_code, "internal", f"relayd failed{name}; its log has the details.")
        self.set_status(answer.status)
        if isinstance(error, HTTPError) and answer.status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.set_header("Allow", ", ".join(self._methods()))
        self.send_json(ErrorReply(ErrorDetail(answer.code, str(answer))))

    def _methods(self) -> list[str]:
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
        """Log bugs with their traceback; refusals are not bugs."""
        if as_admin_error(value) is None and typ is not None and value is not None:
            _log.error("the admin socket met a bug", exc_info=(typ, value, tb))


class NotFoundHandler(AdminHandler):
    """Every other path."""

    def prepare(self) -> None:
        """Answer before any method is looked for."""
        raise HTTPError(HTTPStatus.NOT_FOUND)
