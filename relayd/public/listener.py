"""The listening sockets of the public side, their connections, and which worker accepts the next one."""

from __future__ import annotations

import asyncio
import logging
import mmap
import socket
import sys
from collections import Counter
from collections.abc import Sequence

from tornado.httpserver import HTTPServer
from tornado.web import Application

from relayd.public.client_address import TrustedProxies, network_of
from relayd.public.framing import (
    MAX_HEAD_BYTES,
    READ_CHUNK_BYTES,
    HeadTimeouts,
    LingeringConnections,
    RequestStream,
    TlsRequestStream,
)
from relayd.public.tls import TlsFiles

_log = logging.getLogger(__name__)

_BACKLOG = 1024
_ACCEPTS_PER_TURN = 16
"""Serving a new connection costs 0.2 to 0.5 ms; the kernel keeps the others meanwhile."""
_RETRY_ACCEPT_S = 0.2
_LEAVE_TO_OTHERS_S = 0.002
"""How long a connection waits for the worker with the fewest; after that, that one is busy or stuck."""
_SEND_BUFFER_BYTES = 128 << 10
_LAST_HEADS_S = 1.0
"""How long a connection that was just accepted may take to send its request while the daemon stops."""
_CLOSE_POLL_S = 0.02
_CONNECTIONS_BESIDE_STREAMS = 256
_CONNECTIONS_PER_STREAM = 2
"""Clients also hold connections between two requests, and while they are refused."""
_COUNT_BYTES = 8
_NOT_ACCEPTING = (1 << 63) - 1


def bind(host: str, port: int) -> list[socket.socket]:
    """Return listening TCP sockets for a host name or address; port 0 takes a free one.

    `::` and an empty host are every address, IPv4 too.

    Raises:
        OSError: the address cannot be resolved or bound.
    """
    dual_stack = host in {"", "::"} and socket.has_dualstack_ipv6()
    sockets: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(
            "::" if dual_stack else host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            sock = socket.socket(family, kind, protocol)
            sockets.append(sock)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0 if dual_stack else 1)
            sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
            limit_send_buffer(sock)
            sock.bind(address)
            sock.listen(_BACKLOG)
            if port == 0:
                break
    except OSError:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def limit_send_buffer(listening: socket.socket) -> None:
    """Bound what the kernel keeps for a client that does not read; accepted sockets inherit it.

    Linux would let it grow to 4 MiB each (tcp(7), tcp_wmem). It counts twice what is asked for.
    """
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)


def connection_limit(max_streams: int) -> int:
    """Derive the limit of open connections from the limit of streams."""
    return _CONNECTIONS_PER_STREAM * max_streams + _CONNECTIONS_BESIDE_STREAMS


class Listener:
    """Accepts connections and hands them to Tornado.

    More connections than twice the streams plus 256, in all or from one network, are closed at once; a
    trusted proxy is bound by the first limit only.

    Args:
        app: the public routes.
        sockets: listening and non-blocking; closed by `stop_accepting`.
        proxies: trusted proxies, which stand for many clients.
        tls: the certificate; None: plain HTTP.
        share: of the connections to all processes that accept from these sockets; None: this is the only one.
    """

    def __init__(
        self,
        app: Application,
        sockets: Sequence[socket.socket],
        *,
        proxies: TrustedProxies,
        tls: TlsFiles | None,
        share: Share | None = None,
    ) -> None:
        self._sockets = list(sockets)
        self._proxies = proxies
        self._tls = tls
        self._share = share
        self._loop = asyncio.get_running_loop()
        self._server = HTTPServer(
            app,
            max_header_size=MAX_HEAD_BYTES,
            # The handlers bound bodies; Tornado would answer in its own form.
            max_body_size=sys.maxsize,
            chunk_size=READ_CHUNK_BYTES,
        )
        # Tornado's one clock for heads would also count the idle time before them.
        self._server.conn_params.header_timeout = None
        self._streams: set[RequestStream] = set()
        self._open: Counter[str] = Counter()
        self._lingering = LingeringConnections()

    def configure(
        self, *, head_timeout_s: float, keep_alive_s: float, max_streams: int, max_streams_per_address: int
    ) -> None:
        """Set the limits for connections from now on; to be called before `start`.

        Args:
            head_timeout_s: for the head of a request, TLS handshake included.
            keep_alive_s: for an idle connection between requests.
            max_streams: open streams in all.
            max_streams_per_address: open streams of one network.
        """
        self._timeouts = HeadTimeouts(head_timeout_s, keep_alive_s)
        self._max_connections = connection_limit(max_streams)
        self._max_connections_per_network = connection_limit(max_streams_per_address)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the first socket."""
        host, port, *_ = self._sockets[0].getsockname()
        return host, port

    def start(self) -> None:
        """Accept connections."""
        self._tell_share()
        for sock in self._sockets:
            self._loop.add_reader(sock.fileno(), self._accept, sock)

    def _accept(self, listening: socket.socket) -> None:
        for _ in range(_ACCEPTS_PER_TURN):
            if self._share is not None and self._share.is_another_next():
                self._look_away(listening, _LEAVE_TO_OTHERS_S)
                return
            if not self._accept_one(listening):
                return

    def _accept_one(self, listening: socket.socket) -> bool:
        """Return whether there may be more to accept."""
        try:
            sock, peer = listening.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return False
        except OSError as error:
            _log.warning("accepting paused for %g s: %s", _RETRY_ACCEPT_S, error)
            self._look_away(listening, _RETRY_ACCEPT_S)
            return False
        try:
            self._serve(sock, peer)
        except OSError as error:
            _log.debug("a connection from %s ended before it was served: %s", peer[0], error)
            sock.close()
        return True

    def _serve(self, sock: socket.socket, peer: tuple[str, int]) -> None:
        network = "" if peer[0] in self._proxies else network_of(peer[0])
        if len(self._streams) >= self._max_connections or (
            network and self._open[network] >= self._max_connections_per_network
        ):
            sock.close()
            return
        sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._tls is None:
            stream = RequestStream(sock, peer[0], self._timeouts, self._lingering)
        else:
            wrapped = self._tls.context().wrap_socket(sock, server_side=True, do_handshake_on_connect=False)
            stream = TlsRequestStream(wrapped, peer[0], self._timeouts, self._lingering)
        self._open[network] += 1
        self._streams.add(stream)
        self._tell_share()

        def forget(stream: RequestStream) -> None:
            self._streams.discard(stream)
            self._tell_share()
            self._open[network] -= 1
            if not self._open[network]:
                del self._open[network]

        stream.on_closed = forget
        self._server.handle_stream(stream, peer)

    def _tell_share(self) -> None:
        if self._share is not None and self._sockets:
            self._share.set(len(self._streams))

    def _look_away(self, listening: socket.socket, for_s: float) -> None:
        """Accept nothing for a moment, then one connection in any case: the socket stays readable."""
        self._loop.remove_reader(listening.fileno())
        self._loop.call_later(for_s, self._look_again, listening)

    def _look_again(self, listening: socket.socket) -> None:
        if listening in self._sockets:
            self._loop.add_reader(listening.fileno(), self._accept, listening)
            self._accept_one(listening)

    def stop_accepting(self) -> None:
        """Close the listening sockets; an open connection ends with its next response."""
        self._server.conn_params.no_keep_alive = True
        if self._share is not None:
            self._share.withdraw()
        for sock in self._sockets:
            self._loop.remove_reader(sock.fileno())
            sock.close()
        self._sockets.clear()

    async def close(self) -> None:
        """Close everything that is still open.

        A new connection whose request is under way gets a second to bring it, and so its refusal: closed at
        once, its client could not tell whether the request was read.
        """
        self.stop_accepting()
        deadline_s = self._loop.time() + _LAST_HEADS_S
        while (  # noqa: ASYNC110 - a second at most, once
            any(stream.awaits_response for stream in self._streams) and self._loop.time() < deadline_s
        ):
            await asyncio.sleep(_CLOSE_POLL_S)
        await self._server.close_all_connections()
        self._lingering.close()


class Balance:
    """How many connections each worker has, in memory that all of them share: made before they are forked."""

    def __init__(self, workers: int) -> None:
        self._counts = memoryview(mmap.mmap(-1, workers * _COUNT_BYTES)).cast("q")
        for worker in range(workers):
            self._counts[worker] = _NOT_ACCEPTING

    def share(self, worker: int) -> Share:
        """Return the share of one worker, by its number from 1."""
        return Share(self._counts, worker - 1)


class Share:
    """What one worker has of all connections. A worker that does not accept is no reason to wait for it."""

    def __init__(self, counts: memoryview[int], place: int) -> None:
        self._counts = counts
        self._place = place

    def set(self, connections: int) -> None:
        """Tell the others how many connections this worker has."""
        self._counts[self._place] = connections

    def withdraw(self) -> None:
        """Tell the others that this worker does not accept."""
        self._counts[self._place] = _NOT_ACCEPTING

    def is_another_next(self) -> bool:
        """Return whether another worker has fewer connections, and so should accept the next one."""
        return self._counts[self._place] > min(self._counts)
