"""The public routes."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, cast

from tornado.http1connection import HTTP1Connection
from tornado.httputil import (
    HTTPConnection,
    HTTPHeaders,
    HTTPMessageDelegate,
    HTTPServerConnectionDelegate,
    RequestStartLine,
    ResponseStartLine,
)
from tornado.web import Application

from relayd.public.base import OtherMethodHandler
from relayd.public.chat import Chat
from relayd.public.exchange import Exchange, PublicSide
from relayd.public.health import HealthHandler, NotFoundHandler, ReadyHandler
from relayd.public.root import Page, PageHandler, notice, page_pattern
from relayd.public.service import ChatService
from relayd.relay.intake import Intake

_BODY_TIMEOUT_S = 10.0
"""Nothing but /chat wants a body; one that comes all the same is read and forgotten, for so long."""


class PublicApp(HTTPServerConnectionDelegate):
    """Everything that the internet may ask for; all other paths are 404 in JSON.

    `POST /chat` is answered on Tornado's connection itself: its web layer costs nearly twice what all of
    the rest of Tornado does (docs/performance.md), and builds a handler before the key is looked at.

    Args:
        public: what every handler needs.
        service: what `/chat` works with.
        intake: whether work is taken, for `/readyz`.
        page: the chat page's files; None shows a short notice instead.
    """

    def __init__(
        self, public: PublicSide, service: ChatService, intake: Intake, page: Page | None = None
    ) -> None:
        self._public = public
        self._service = service
        self._rest = _web_app(public, intake, page or notice())

    def start_request(self, server_conn: object, request_conn: HTTPConnection) -> HTTPMessageDelegate:
        """Tornado: a connection is about to read a request."""
        return _Routing(self, server_conn, request_conn)

    def delegate(
        self, start_line: RequestStartLine, headers: HTTPHeaders, server_conn: object, conn: HTTPConnection
    ) -> HTTPMessageDelegate:
        """Who takes a request with this head."""
        if start_line.method == "POST" and start_line.path.partition("?")[0] == "/chat":
            exchange = Exchange(self._public, cast("HTTP1Connection", conn), start_line, headers)
            return Chat(exchange, self._service)
        cast("HTTP1Connection", conn).set_body_timeout(_BODY_TIMEOUT_S)
        return self._rest.start_request(server_conn, conn)


class _Routing(HTTPMessageDelegate):
    """Finds out from the head who takes a request."""

    def __init__(self, app: PublicApp, server_conn: object, conn: HTTPConnection) -> None:
        self._app = app
        self._server_conn = server_conn
        self._conn = conn

    def headers_received(
        self, start_line: RequestStartLine | ResponseStartLine, headers: HTTPHeaders
    ) -> Awaitable[None] | None:
        start_line = cast("RequestStartLine", start_line)
        self._delegate = self._app.delegate(start_line, headers, self._server_conn, self._conn)
        return self._delegate.headers_received(start_line, headers)

    def data_received(self, chunk: bytes) -> Awaitable[None] | None:
        return self._delegate.data_received(chunk)

    def finish(self) -> None:
        self._delegate.finish()

    def on_connection_close(self) -> None:
        self._delegate.on_connection_close()


def _web_app(public: PublicSide, intake: Intake, page: Page) -> Application:
    common: dict[str, Any] = {"public": public}
    return Application(
        [
            (r"/chat", OtherMethodHandler, common),
            (r"/healthz", HealthHandler, common),
            (r"/readyz", ReadyHandler, {**common, "intake": intake}),
            (page_pattern(page), PageHandler, {**common, "page": page}),
        ],
        default_handler_class=NotFoundHandler,
        default_handler_args=common,
        # None of these leaves a record; Tornado's own access log would tell of every probe.
        log_function=lambda _handler: None,
        compress_response=False,
    )
