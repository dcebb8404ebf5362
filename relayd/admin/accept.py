"""Accepts the operator's connections, a bounded number at a time."""

from __future__ import annotations

import asyncio
import logging
import socket

from tornado.httpserver import HTTPServer
from tornado.iostream import IOStream
from tornado.web import Application
from typing_extensions import override

_log = logging.getLogger(__name__)

MAX_CONNECTIONS = 128
_HEADER_TIMEOUT_S = 10.0
_BODY_TIMEOUT_S = 10.0
_MAX_BODY_BYTES = 64 << 10
_MAX_HEADER_BYTES = 16 << 10
_MAX_BUFFER_BYTES = 256 << 10
_ACCEPTS_A_TURN = 16
_RETRY_ACCEPT_S = 0.2
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nConnection: close\r\n\r\n"
    b'{"error":{"code":"busy","message":"Too many programs are connected to the admin socket."}}\n'
)


class _CountingServer(HTTPServer):
    """Tornado's server, and how many connections it has."""

    open = 0

    @override
    def handle_stream(self, stream: IOStream, address: tuple[str, int]) -> None:
        """Serve a connection."""
        self.open += 1
        super().handle_stream(stream, address)

    @override
    def on_close(self, server_conn: object) -> None:
        """Tornado says that a connection is over."""
        self.open -= 1
        super().on_close(server_conn)


class BoundedServer:
    """Serves on a listening Unix socket, with small limits.

    A connection beyond the 128th is told so and closed: the operator's programs need one or two each.
    """

    def __init__(self, app: Application, listening: socket.socket) -> None:
        self._server = _CountingServer(
            app,
            idle_connection_timeout=_HEADER_TIMEOUT_S,
            body_timeout=_BODY_TIMEOUT_S,
            max_body_size=_MAX_BODY_BYTES,
            max_header_size=_MAX_HEADER_BYTES,
        )
        self._loop = asyncio.get_running_loop()
        self._listening = listening

    def start_accepting(self) -> None:
        """Accept from now on."""
        self._loop.add_reader(self._listening.fileno(), self._accept)

    def stop_accepting(self) -> None:
        """Leave the socket to its owner; open connections go on."""
        self._loop.remove_reader(self._listening.fileno())

    def _accept(self) -> None:
        for _ in range(_ACCEPTS_A_TURN):
            try:
                connection, _ = self._listening.accept()
            except (BlockingIOError, ConnectionError):
                return
            except OSError as error:
                # Out of descriptors: the socket stays readable, so look away or spin.
                _log.warning("the admin socket pauses for %g s: %s", _RETRY_ACCEPT_S, error)
                self.stop_accepting()
                self._loop.call_later(_RETRY_ACCEPT_S, self._accept_again)
                return
            self._take(connection)

    def _accept_again(self) -> None:
        if self._listening.fileno() >= 0:
            self.start_accepting()

    def _take(self, connection: socket.socket) -> None:
        connection.setblocking(False)  # noqa: FBT003 - the standard library's signature
        if self._server.open >= MAX_CONNECTIONS:
            connection.send(_FULL)
            connection.close()
            return
        stream = IOStream(connection, max_buffer_size=_MAX_BUFFER_BYTES)
        self._server.handle_stream(stream, ("", 0))

    async def close(self) -> None:
        """Close everything that is still open."""
        self.stop_accepting()
        await self._server.close_all_connections()
