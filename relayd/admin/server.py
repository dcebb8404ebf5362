"""The admin API's life in time order: built, started, ticking, closed."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream
from tornado.web import Application
from typing_extensions import override

from relayd.admin.context import AdminContext
from relayd.admin.handlers import (
    CancelHandler,
    DrainHandler,
    MetricsHandler,
    NotFoundHandler,
    PauseHandler,
    StatusHandler,
)
from relayd.admin.key_handlers import KeyChangeHandler, KeysHandler
from relayd.admin.log_handlers import AuditHandler, EventsHandler, RequestRecordHandler, RequestsHandler

MAX_CONNECTIONS = 128
_IDLE_TIMEOUT_S = 10.0
_BODY_TIMEOUT_S = 10.0
_MAX_BODY_BYTES = 64 << 10
_MAX_HEADER_BYTES = 16 << 10
_MAX_BUFFER_BYTES = 256 << 10
_TICK_S = 1.0
_ID = r"([^/]{1,200})"


class AdminServer:
    """Serves the admin API on a listening Unix socket, on the running loop.

    Args:
        listening: the socket; its owner closes it.
        context: the daemon, and what its handlers share; closed here.
    """

    def __init__(self, listening: socket.socket, context: AdminContext) -> None:
        self._listening = listening
        self._context = context
        self._http_server = _BoundedServer(
            _application(context),
            idle_connection_timeout=_IDLE_TIMEOUT_S,
            body_timeout=_BODY_TIMEOUT_S,
            max_body_size=_MAX_BODY_BYTES,
            max_header_size=_MAX_HEADER_BYTES,
            max_buffer_size=_MAX_BUFFER_BYTES,
        )
        self._ticking: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Answer from now on.

        Raises:
            StateError: the log can't be read.
        """
        context = self._context
        context.event_bus.open(context.metrics.event_logged)
        context.event_bus.advance(await context.read_log(context.state.reader.newest_seq))
        self._ticking = asyncio.create_task(self._tick(), name="admin tick")
        # A duplicate: Tornado closes the sockets that it is given, and this one's file must go first.
        self._http_server.add_socket(self._listening.dup())

    async def _tick(self) -> None:
        """Once a second, begin a slot of the rates and tell the readers where the open streams are."""
        context = self._context
        were_open = False
        while True:
            await asyncio.sleep(_TICK_S)
            context.metrics.recent.begin_second(context.streams.deltas)
            are_open = len(context.streams) > 0
            if len(context.event_bus) and (are_open or were_open):
                context.event_bus.publish_progress(context.progress())
            were_open = are_open

    async def close(self) -> None:
        """End the readers of events and the queries under way, then every connection, then the threads."""
        self._http_server.stop()
        if self._ticking is not None:
            self._ticking.cancel()
            await asyncio.gather(self._ticking, return_exceptions=True)
        self._context.event_bus.close()
        # Closing a connection waits for its handler: a heavy filter would hold up the end for seconds.
        self._context.state.reader.close()
        await self._http_server.close_all_connections()
        await self._context.close()


def _application(context: AdminContext) -> Application:
    arguments: dict[str, Any] = {"context": context}
    return Application(
        [
            (r"/status", StatusHandler, arguments),
            (r"/metrics", MetricsHandler, arguments),
            (r"/(pause|resume)", PauseHandler, arguments),
            (r"/drain", DrainHandler, arguments),
            (rf"/inflight/{_ID}", CancelHandler, arguments),
            (r"/keys", KeysHandler, arguments),
            (rf"/keys/{_ID}/(rotate|extend|undo|revoke)", KeyChangeHandler, arguments),
            (r"/requests", RequestsHandler, arguments),
            (rf"/requests/{_ID}", RequestRecordHandler, arguments),
            (r"/audit", AuditHandler, arguments),
            (r"/events", EventsHandler, arguments),
        ],
        default_handler_class=NotFoundHandler,
        default_handler_args=arguments,
        # What changes something is in the audit; requests that only look are not worth a log line.
        log_function=lambda _handler: None,
    )


class _BoundedServer(HTTPServer):
    """Tornado's server for at most 128 connections; one more is closed at once.

    The operator's programs need one or two each. Whatever else fills them may not take the descriptors
    that clients need.
    """

    _open = 0

    @override
    def handle_stream(self, stream: IOStream, address: tuple[str, int]) -> None:
        """Serve a new connection."""
        if self._open >= MAX_CONNECTIONS:
            stream.close()
            return
        self._open += 1
        super().handle_stream(stream, address)

    @override
    def on_close(self, server_conn: object) -> None:
        """Note that a connection is over."""
        self._open -= 1
        super().on_close(server_conn)
