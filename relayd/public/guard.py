"""A connection that answers a head too large to be anyone's, where Tornado would only hang up."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable
from types import TracebackType
from typing import TypeAlias

from tornado.iostream import IOStream, StreamClosedError, UnsatisfiableReadError
from typing_extensions import override

from relayd.public.admission import unauthorized
from relayd.relay.failure import Code
from relayd.relay.lines import DONE, error_line

MAX_HEADER_BYTES = 16 << 10
_READ_CHUNK_BYTES = 16 << 10
_ExcInfo: TypeAlias = (
    bool
    | BaseException
    | tuple[type[BaseException] | None, BaseException | None, TracebackType | None]
    | None
)
_MAX_LINGERING = 64
_LINGER_S = 1.0


def _oversize_reply() -> bytes:
    body = error_line(unauthorized()) + DONE
    head = (
        "HTTP/1.1 401 Unauthorized\r\n"
        "Content-Type: application/x-ndjson; charset=utf-8\r\n"
        "Cache-Control: no-store\r\n"
        f"X-Relayd-Error: {Code.UNAUTHORIZED}\r\n"
        "WWW-Authenticate: Bearer\r\n"
        "Connection: close\r\n"
        f"Content-Length: {len(body)}\r\n"
        "\r\n"
    )
    return head.encode() + body


_OVERSIZE_REPLY = _oversize_reply()


class Lingering:
    """Keeps refused sockets open for a moment, unread, so that a reset does not overtake the reply.

    At most `_MAX_LINGERING` at a time; beyond that a refused client may see a reset instead of its 401.
    """

    def __init__(self) -> None:
        self._sockets: set[socket.socket] = set()
        self._loop = asyncio.get_running_loop()

    def keep(self, sock: socket.socket) -> None:
        """Hold a duplicate of this socket for a second."""
        if len(self._sockets) >= _MAX_LINGERING:
            return
        held = sock.dup()
        self._sockets.add(held)
        self._loop.call_later(_LINGER_S, self._let_go, held)

    def _let_go(self, held: socket.socket) -> None:
        self._sockets.discard(held)
        held.close()

    def close(self) -> None:
        """Let go of all."""
        for held in tuple(self._sockets):
            self._let_go(held)


class GuardedStream(IOStream):
    """Reads at most one head of `MAX_HEADER_BYTES`; a longer one holds no key and gets a 401.

    Args:
        sock: an accepted, non-blocking connection.
        lingering: where the socket waits after a refusal.
    """

    def __init__(self, sock: socket.socket, lingering: Lingering) -> None:
        # A body passes through in pieces, so no more than this is ever held.
        super().__init__(sock, max_buffer_size=4 * _READ_CHUNK_BYTES, read_chunk_size=_READ_CHUNK_BYTES)
        self._lingering = lingering
        self._reading_head = False

    def read_until_regex(self, regex: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        """Read a head: Tornado reads nothing else this way."""
        self._reading_head = True
        return super().read_until_regex(regex, max_bytes)

    def read_until(self, delimiter: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        """Read the size of a chunk: Tornado reads nothing else this way."""
        self._reading_head = False
        return super().read_until(delimiter, max_bytes)

    def send_now(self, data: bytes) -> bytes:
        """Hand bytes straight to the kernel; returns what it would not take now.

        `write` costs a buffer, a future and two turns of the loop even where the kernel takes all at
        once, which it nearly always does.

        Raises:
            StreamClosedError: the connection is gone.
        """
        if self.closed():
            raise StreamClosedError(real_error=self.error)
        if self.writing():
            return data
        try:
            return data[self.socket.send(data) :]
        except BlockingIOError:
            return data
        except OSError as error:
            self.close(exc_info=error)
            raise StreamClosedError(real_error=error) from error

    @override
    def close(self, exc_info: _ExcInfo = False) -> None:
        """Close as Tornado asks; say why first where the head was too large."""
        if isinstance(exc_info, UnsatisfiableReadError) and self._reading_head and not self.closed():
            self._refuse_head()
        super().close(exc_info)

    def _refuse_head(self) -> None:
        try:
            self.socket.send(_OVERSIZE_REPLY)
            self.socket.shutdown(socket.SHUT_WR)
            self._lingering.keep(self.socket)
        except OSError:
            # The client is gone already, which is what comes next anyway.
            return
