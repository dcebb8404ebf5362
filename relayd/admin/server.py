"""The admin API's life in time order: built, started, ticking, closed."""

from __future__ import annotations

import asyncio
import logging
import socket
from asyncio import Future
from typing import Any

import msgspec
from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream, UnsatisfiableReadError
from tornado.web import Application
from typing_extensions import override

from relayd.admin.alert_watch import AlertWatch
from relayd.admin.all_instances import AllInstances
from relayd.admin.context import AdminContext
from relayd.admin.handlers import (
    AlertsHandler,
    CancelHandler,
    ConfigHandler,
    DrainHandler,
    InflightHandler,
    InstancesHandler,
    MetricsHandler,
    NotFoundHandler,
    PauseHandler,
    ReloadHandler,
    StatusHandler,
)
from relayd.admin.key_handlers import (
    ClientHandler,
    ClientsHandler,
    FindKeyHandler,
    KeyChangeHandler,
    KeysHandler,
    KeyUsersHandler,
)
from relayd.admin.log_handlers import (
    AuditHandler,
    EventsHandler,
    RequestRecordHandler,
    RequestsHandler,
    UsageHandler,
)
from relayd.admin.schema import PROTOCOL, PROTOCOL_HEADER, ErrorDetail, ErrorReply

_log = logging.getLogger(__name__)

MAX_CONNECTIONS = 128
_RETRY_ACCEPT_S = 0.2
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
        self._all_instances = AllInstances(context)
        self._alert_watch = AlertWatch(context, self._all_instances)
        self._http_server = _BoundedServer(
            _application(context, self._all_instances),
            # A program that has its answer, a refused follower for one, holds no place.
            no_keep_alive=True,
            idle_connection_timeout=_IDLE_TIMEOUT_S,
            body_timeout=_BODY_TIMEOUT_S,
            max_body_size=_MAX_BODY_BYTES,
            max_header_size=_MAX_HEADER_BYTES,
        )
        self._loop = asyncio.get_running_loop()
        self._retry_accept: asyncio.TimerHandle | None = None
        self._ticking: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Answer from now on.

        Raises:
            StateError: the log can't be read.
        """
        context = self._context
        context.event_bus.open(context.metrics.event_logged)
        context.event_bus.advance(await context.read_log(context.state.reader.newest_seq))
        self._all_instances.start()
        self._alert_watch.start()
        self._ticking = [
            asyncio.create_task(self._tick(), name="admin tick"),
            asyncio.create_task(self._tell_progress(), name="admin progress"),
        ]
        self._start_accepting()

    def _start_accepting(self) -> None:
        self._loop.add_reader(self._listening, self._accept)

    def _stop_accepting(self) -> None:
        self._loop.remove_reader(self._listening)
        if self._retry_accept is not None:
            self._retry_accept.cancel()

    def _accept(self) -> None:
        try:
            connection, address = self._listening.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            # The socket stays readable: without a pause, the loop would only turn here and fill the log.
            _log.warning("the admin socket accepts nothing for %g s: %s", _RETRY_ACCEPT_S, error)
            self._stop_accepting()
            self._retry_accept = self._loop.call_later(_RETRY_ACCEPT_S, self._start_accepting)
            return
        self._http_server.accept(connection, address)

    async def _tick(self) -> None:
        """Once a second, begin a slot of the rates."""
        context = self._context
        while True:
            await asyncio.sleep(_TICK_S)
            context.metrics.recent.begin_second(context.streams.deltas)

    async def _tell_progress(self) -> None:
        """Once a second, tell the readers where the open streams are, and once when none is left."""
        event_bus, loop = self._context.event_bus, asyncio.get_running_loop()
        were_open, due = False, loop.time()
        while True:
            # The other instances are asked, which takes a part of the second.
            due = max(due + _TICK_S, loop.time())
            await asyncio.sleep(due - loop.time())
            if not len(event_bus):
                were_open = False
                continue
            progress = await self._all_instances.progress()
            are_open = bool(progress.streams)
            if are_open or were_open:
                event_bus.publish_progress(progress)
            were_open = are_open

    async def close(self) -> None:
        """End the readers of events and the queries under way, then every connection, then the threads."""
        self._stop_accepting()
        for task in self._ticking:
            task.cancel()
        await asyncio.gather(*self._ticking, return_exceptions=True)
        await self._alert_watch.close()
        await self._all_instances.close()
        self._context.event_bus.close()
        # Closing a connection waits for its handler: a heavy filter would hold up the end for seconds.
        self._context.state.reader.close()
        await self._http_server.close_all_connections()
        await self._context.close()


def _application(context: AdminContext, all_instances: AllInstances) -> Application:
    arguments: dict[str, Any] = {"context": context, "all_instances": all_instances}
    return Application(
        [
            (r"/status", StatusHandler, arguments),
            (r"/alerts", AlertsHandler, arguments),
            (r"/instances", InstancesHandler, arguments),
            (r"/config", ConfigHandler, arguments),
            (r"/metrics", MetricsHandler, arguments),
            (r"/(pause|resume)", PauseHandler, arguments),
            (r"/reload", ReloadHandler, arguments),
            (r"/drain", DrainHandler, arguments),
            (r"/inflight", InflightHandler, arguments),
            (rf"/inflight/{_ID}", CancelHandler, arguments),
            (r"/keys", KeysHandler, arguments),
            (r"/keys/find", FindKeyHandler, arguments),
            (rf"/keys/{_ID}/users", KeyUsersHandler, arguments),
            (rf"/keys/{_ID}/(rotate|extend|undo|revoke)", KeyChangeHandler, arguments),
            (r"/clients", ClientsHandler, arguments),
            (r"/usage", UsageHandler, arguments),
            (rf"/clients/{_ID}", ClientHandler, arguments),
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


_TORNADO_BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\n\r\n"
"""All that Tornado answers to a request whose framing it cannot read, or whose body is too large."""


class _AdminStream(IOStream):
    """A connection whose framing errors are answered like every other error."""

    @override
    def write(self, data: bytes | memoryview) -> Future[None]:
        """Send, with an error document instead of Tornado's bare status line."""
        if data == _TORNADO_BAD_REQUEST:
            data = _framing_error(
                f"The request is not valid HTTP/1.1, or its body has more than {_MAX_BODY_BYTES >> 10} KiB."
            )
        return super().write(data)

    @override
    def close(self, exc_info: Any = False) -> None:
        """Close; if the head is too large, send the error first."""
        if isinstance(exc_info, UnsatisfiableReadError) and not self.closed():
            super().write(
                _framing_error(f"The head of the request has more than {_MAX_HEADER_BYTES >> 10} KiB.")
            )
        super().close(exc_info)


def _framing_error(message: str) -> bytes:
    body = msgspec.json.encode(ErrorReply(ErrorDetail("bad_request", message))) + b"\n"
    return (
        b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json; charset=utf-8\r\n"
        b"%b: %b\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
        % (PROTOCOL_HEADER.encode(), PROTOCOL.encode(), len(body), body)
    )


class _BoundedServer(HTTPServer):
    """Tornado's server for at most 128 connections; one more is closed at once.

    The operator's programs need one or two each. Whatever else fills them may not take the descriptors
    that clients need.
    """

    _open = 0

    def accept(self, connection: socket.socket, address: tuple[str, int]) -> None:
        """Serve a new connection."""
        if self._open >= MAX_CONNECTIONS:
            connection.close()
            return
        self._open += 1
        self.handle_stream(_AdminStream(connection, max_buffer_size=_MAX_BUFFER_BYTES), address)

    @override
    def on_close(self, server_conn: object) -> None:
        """Note that a connection is over."""
        self._open -= 1
        super().on_close(server_conn)
