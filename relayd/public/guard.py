"""A connection that refuses what is not a request by the letter, before Tornado reads anything into it."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, TypeAlias, cast

from tornado.iostream import IOStream, SSLIOStream, StreamClosedError, UnsatisfiableReadError
from typing_extensions import override

from relayd.public.connections import Connections
from relayd.public.framing import head_fault
from relayd.public.refusal import Lingering, raw_reply
from relayd.relay.failure import Code, Failure

MAX_HEADER_BYTES = 16 << 10
_READ_CHUNK_BYTES = 16 << 10
_TORNADOS_WORDS = b"HTTP/1.1 400 Bad Request\r\n\r\n"
"""What `HTTP1Connection` writes, and nothing else, where it cannot read a body."""
_ExcInfo: TypeAlias = (
    bool
    | BaseException
    | tuple[type[BaseException] | None, BaseException | None, TracebackType | None]
    | None
)
RefuseLarge: TypeAlias = Callable[[bytes, str], bytes]


def malformed_body() -> Failure:
    """The failure of a body whose framing cannot be read."""
    return Failure(Code.BAD_REQUEST, "The request's body is not HTTP/1.1 by the letter.")


class GuardedStream(IOStream):
    """Reads at most one head of `MAX_HEADER_BYTES`, and hands on only a sound one.

    A longer head holds no key and gets a 401; an unsound one gets a 400. Both end the connection.

    Args:
        sock: an accepted, non-blocking connection that does not delay what is sent (TCP_NODELAY).
        peer: the address of its other end.
        lingering: where the socket waits after a refusal.
        connections: told when a key was shown that is valid, and when the connection is closed.
        refuse_large: makes the reply to a longer head, from what was read of it and the other end's address.
    """

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        lingering: Lingering,
        connections: Connections,
        refuse_large: RefuseLarge,
        **options: Any,
    ) -> None:
        # A body passes through in pieces, so no more than this is ever held.
        super().__init__(
            sock, max_buffer_size=4 * _READ_CHUNK_BYTES, read_chunk_size=_READ_CHUNK_BYTES, **options
        )
        self.peer = peer
        self._lingering = lingering
        self._connections = connections
        self._refuse_large = refuse_large
        self._reading_head = False
        self.when_closed: Callable[[], None] | None = None
        """Called when this end closes the connection, for whatever reason."""
        self.is_malformed = False
        """Whether a body came that is not HTTP."""

    def admitted(self) -> None:
        """A valid key came over this connection: it is not counted with the strangers any more."""
        self._connections.admitted(self)

    def read_until_regex(self, regex: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        """Read a head: Tornado reads nothing else this way."""
        if self.closed():
            # Tornado would go on with what a refused client had sent ahead.
            raise StreamClosedError(real_error=self.error)
        self._reading_head = True
        checked: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        read = cast("asyncio.Future[bytes]", super().read_until_regex(regex, max_bytes))
        if read.done():
            self._check_head(read, checked)
        else:
            read.add_done_callback(lambda read: self._check_head(read, checked))
        return checked

    def _check_head(self, read: asyncio.Future[bytes], checked: asyncio.Future[bytes]) -> None:
        error = read.exception()
        if checked.done():
            return
        if error is None:
            fault = head_fault(read.result())
            if fault is None:
                checked.set_result(read.result())
                return
            self._say(raw_reply(Failure(Code.BAD_REQUEST, fault)))
            self.close()
            error = StreamClosedError()
        checked.set_exception(error)
        # Nobody may wait for it any more, after a timeout; then it is not worth a log line.
        checked.exception()

    def read_until(self, delimiter: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        """Read the size of a chunk: Tornado reads nothing else this way."""
        self._reading_head = False
        return super().read_until(delimiter, max_bytes)

    @override
    def write(self, data: bytes | memoryview) -> asyncio.Future[None]:
        """Write as Tornado does, but say what is wrong with a body in our words and not in its own."""
        if data == _TORNADOS_WORDS:
            self.is_malformed = True
            data = raw_reply(malformed_body())
        return super().write(data)

    @override
    def set_nodelay(self, value: bool) -> None:
        """Nothing: Tornado would turn Nagle's algorithm on and off around every reply."""

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
            # Who sends is told by the exception.
            self.when_closed = None
            self.close(exc_info=error)
            raise StreamClosedError(real_error=error) from error

    @override
    def close(self, exc_info: _ExcInfo = False) -> None:
        """Close as Tornado asks; say why first where the head was too large."""
        if isinstance(exc_info, UnsatisfiableReadError) and self._reading_head and not self.closed():
            self._say(self._refuse_large(bytes(self._read_buffer[:MAX_HEADER_BYTES]), self.peer))
        super().close(exc_info)
        self._connections.forget(self)
        if self.when_closed is not None:
            self.when_closed()

    def _say(self, reply: bytes) -> None:
        """The last words of a connection, as far as the kernel takes them at once."""
        try:
            self.socket.send(reply)
            self.socket.shutdown(socket.SHUT_WR)
            self._lingering.keep(self.socket)
        except OSError:
            # The client is gone already, which is what comes next anyway.
            return


class GuardedTlsStream(GuardedStream, SSLIOStream):
    """The same over TLS. The handshake begins at once, and shares the head's time.

    Args:
        sock: wrapped for the server's side, the handshake not done.
        peer: as for a plain connection.
        lingering: as for a plain connection.
        connections: as for a plain connection.
        refuse_large: as for a plain connection.
    """

    socket: ssl.SSLSocket

    def __init__(
        self,
        sock: ssl.SSLSocket,
        peer: str,
        lingering: Lingering,
        connections: Connections,
        refuse_large: RefuseLarge,
    ) -> None:
        # Without a context of its own Tornado makes one for a client.
        super().__init__(sock, peer, lingering, connections, refuse_large, ssl_options=sock.context)

    @override
    def send_now(self, data: bytes) -> bytes:
        """Leave all of it to `write`: what OpenSSL would not take must be offered again as it was."""
        if self.closed():
            raise StreamClosedError(real_error=self.error)
        return data
