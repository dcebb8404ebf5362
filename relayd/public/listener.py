"""The listening sockets of the public side, and every connection that they accept."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Sequence

from tornado.httpserver import HTTPServer

from relayd.public.app import PublicApp
from relayd.public.connections import Connections
from relayd.public.guard import MAX_HEADER_BYTES, GuardedStream, GuardedTlsStream, RefuseLarge
from relayd.public.lobby import Lobby, Newcomer
from relayd.public.refusal import Lingering
from relayd.public.tls import TlsFiles

_log = logging.getLogger(__name__)

_BACKLOG = 1024
_ACCEPTS_A_TURN = 64
_ROOM_TO_MAKE = 64
_RETRY_ACCEPT_S = 0.2
_BODY_PIECE_BYTES = 16 << 10
_SEND_BUFFER_BYTES = 128 << 10


def bind(host: str, port: int) -> list[socket.socket]:
    """Listening TCP sockets for a host name or address; port 0 takes a free one.

    Raises:
        OSError: the address cannot be resolved or bound.
    """
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            sock = socket.socket(family, kind, protocol)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
            bound_send_buffer(sock)
            sock.bind(address)
            sock.listen(_BACKLOG)
            if port == 0:
                break
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def bound_send_buffer(listening: socket.socket) -> None:
    """Bound what the kernel keeps for a client that does not read; accepted sockets inherit it.

    Linux would let it grow to 4 MiB each (tcp(7), tcp_wmem). It counts twice what is asked for.
    """
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)


class Listener:
    """Accepts connections and hands them to Tornado.

    Args:
        app: the public routes.
        sockets: listening and non-blocking; closed by `stop_accepting`.
        header_timeout_s: for a request's head, TLS handshake included, and for an idle connection
            between requests.
        connections: counts them, and makes room.
        refuse_large: makes the reply to a head that is too large to be read.
        tls: None: plain HTTP.
    """

    def __init__(
        self,
        app: PublicApp,
        sockets: Sequence[socket.socket],
        *,
        header_timeout_s: float,
        connections: Connections,
        refuse_large: RefuseLarge,
        tls: TlsFiles | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sockets = list(sockets)
        self._connections = connections
        self._refuse_large = refuse_large
        self._tls = tls
        self._lingering = Lingering()
        self._lobby = Lobby(self._serve, connections.is_known)
        self._server = HTTPServer(
            app,
            chunk_size=_BODY_PIECE_BYTES,
            max_header_size=MAX_HEADER_BYTES,
            idle_connection_timeout=header_timeout_s,
        )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the first socket."""
        host, port, *_ = self._sockets[0].getsockname()
        return host, port

    def start(self) -> None:
        """Accept from now on."""
        for sock in self._sockets:
            # Accepted sockets inherit it; with Nagle's algorithm a delta would wait for the one before.
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._loop.add_reader(sock.fileno(), self._accept, sock)

    def _accept(self, listening: socket.socket) -> None:
        try:
            for _ in range(min(_ACCEPTS_A_TURN, self._lobby.room)):
                try:
                    connection, peer = listening.accept()
                except BlockingIOError:
                    return
                except ConnectionError:
                    # This client gave up while it waited; others may stand behind it.
                    continue
                except OSError as error:
                    self._pause(listening, error)
                    return
                connection.setblocking(False)  # noqa: FBT003 - as above
                self._lobby.enter(Newcomer(connection, peer, self._connections.network_of(peer[0])))
        finally:
            self._lobby.serve_some()

    def _serve(self, newcomer: Newcomer) -> None:
        connection, peer, network = newcomer
        try:
            stream = self._guarded(connection, peer[0])
        except OSError as error:
            # It left before TLS could begin: a scanner, not worth more than a word for who looks for it.
            _log.debug("a connection from %s ended before TLS began: %s", peer[0], error)
            connection.close()
            return
        self._connections.opened(stream, network)
        if not stream.closed():
            self._server.handle_stream(stream, peer)

    def _guarded(self, connection: socket.socket, peer: str) -> GuardedStream:
        if self._tls is None:
            return GuardedStream(connection, peer, self._lingering, self._connections, self._refuse_large)
        wrapped = self._tls.context().wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
        return GuardedTlsStream(wrapped, peer, self._lingering, self._connections, self._refuse_large)

    def _pause(self, listening: socket.socket, error: OSError) -> None:
        """Out of descriptors or memory: the socket stays readable, so look away or spin."""
        self._lobby.make_room(_ROOM_TO_MAKE - self._connections.make_room(_ROOM_TO_MAKE))
        _log.warning("accepting paused for %g s: %s", _RETRY_ACCEPT_S, error)
        self._loop.remove_reader(listening.fileno())
        self._loop.call_later(_RETRY_ACCEPT_S, self._accept_again, listening)

    def _accept_again(self, listening: socket.socket) -> None:
        if listening in self._sockets:
            self._loop.add_reader(listening.fileno(), self._accept, listening)

    def set_header_timeout(self, seconds: float) -> None:
        """For heads that begin to be read from now on."""
        self._server.conn_params.header_timeout = seconds

    def stop_accepting(self) -> None:
        """Close the listening sockets; open connections go on."""
        for sock in self._sockets:
            self._loop.remove_reader(sock.fileno())
            sock.close()
        self._sockets.clear()

    async def hear_out(self, timeout_s: float) -> None:
        """Let who was accepted last have an answer, which while draining is a refusal that ends it."""
        deadline = self._loop.time() + timeout_s
        while len(self._lobby) and self._loop.time() < deadline:  # noqa: ASYNC110 - each turn serves some
            await asyncio.sleep(0)
        await self._connections.strangers_heard(deadline - self._loop.time())

    async def close(self) -> None:
        """Close everything that is still open."""
        self.stop_accepting()
        self._lobby.close()
        await self._server.close_all_connections()
        self._lingering.close()
