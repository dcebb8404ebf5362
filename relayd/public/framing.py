"""Refuses a request whose head does not say in one way only where the request ends.

Two readers that understand one head differently can be made to see different requests (RFC 9112, 11.2), and
Tornado accepts some of those. So the raw head is checked before Tornado parses it.
"""

from __future__ import annotations

import asyncio
import re
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, cast

from tornado.iostream import IOStream, SSLIOStream, StreamClosedError, UnsatisfiableReadError
from typing_extensions import override

from relayd.relay.errors import ErrorCode, RelayError
from relayd.relay.ndjson import DONE_LINE, error_line

MAX_TARGET_BYTES = 2048
MAX_HEAD_BYTES = 16 << 10
READ_CHUNK_BYTES = 16 << 10
_MAX_RECORD_BYTES = 16 << 10
"""Longest plain text of one TLS record (RFC 8446, 5.1)."""
_LINGER_S = 1.0
_MAX_LINGERING = 256
_TORNADO_BAD_REQUEST = b"HTTP/1.1 400 Bad Request\r\n\r\n"
"""All that `HTTP1Connection` writes if it cannot read a body."""
_INTERIM_START = b"HTTP/1.1 100 "

_TOKEN = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
# RFC 9112: one empty line may precede (2.2); the target is in origin form, or `*` (3.2); a field's name
# touches its colon (5.1); its value holds no control but a tab (RFC 9110, 5.5), and does not continue on the
# next line (5.2). Possessive throughout, so that no byte is matched twice.
_HEAD = re.compile(
    rb"(?:\r\n)?+"
    rb"(?P<method>" + _TOKEN + rb") (?P<target>/[!-~]*+|\*) HTTP/1\.(?P<minor>[01])\r\n"
    rb"(?:" + _TOKEN + rb":[\t -~\x80-\xff]*+\r\n)*+"
    rb"\r\n"
)
_FRAMING = re.compile(rb"\n(content[-_]length|transfer[-_]encoding):[ \t]*+([^\r]*+)\r", re.IGNORECASE)
_HOST = re.compile(rb"\nhost:[ \t]*+([^\r]*+)\r", re.IGNORECASE)
# RFC 3986, 3.2.2: a registered name, IPv4 or bracketed IPv6 address, and a port.
_HOST_VALUE = re.compile(rb"(?:[0-9A-Za-z\-._~!$&'()*+,;=%]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]*)?[ \t]*")
_LENGTH = re.compile(rb"[0-9]{1,15}")


def head_fault(head: bytes) -> str | None:
    """Return why a head, with its closing empty line, is refused; None if it is sound.

    Refused: line ends other than CRLF, folded lines, control characters, names that are no token, versions
    other than 1.0 and 1.1, targets in absolute form or longer than `MAX_TARGET_BYTES`, a Host that is
    missing, repeated or no host, more than one Content-Length or Transfer-Encoding or both, a length that is
    no plain number, a coding other than `chunked`, any coding in HTTP/1.0, and framing fields spelt with an
    underscore, which CGI-like readers take for the real ones.
    """
    found = _HEAD.fullmatch(head)
    if found is None:
        return "The request's head is not valid HTTP/1.1."
    if found.end("target") - found.start("target") > MAX_TARGET_BYTES:
        return f"The request's path is longer than {MAX_TARGET_BYTES} bytes."
    is_1_1 = found["minor"] == b"1"
    hosts = _HOST.findall(head)
    # RFC 9112, 3.2.
    if len(hosts) > 1 or (is_1_1 and not hosts):
        return "The request has no Host field, or more than one."
    if hosts and _HOST_VALUE.fullmatch(hosts[0]) is None:
        return "The request's Host field is not a host name or address."
    return _framing_fault(head, chunks_allowed=is_1_1)


def _framing_fault(head: bytes, *, chunks_allowed: bool) -> str | None:
    framing = _FRAMING.findall(head)
    if not framing:
        return None
    if len(framing) > 1:
        return "The request states the length of its body more than once."
    name, value = framing[0]
    value = value.rstrip(b" \t")
    if b"_" in name:
        return "The request has a Content-Length or Transfer-Encoding field that is spelt with an underscore."
    if name[:1] in b"cC":
        return None if _LENGTH.fullmatch(value) else "The request's Content-Length is not a plain number."
    if chunks_allowed and value.lower() == b"chunked":
        return None
    return "The request's Transfer-Encoding is not supported."


def raw_response(error: RelayError) -> bytes:
    """Return a whole response, as /chat would render it, for a connection that ends with it."""
    body = error_line(error) + DONE_LINE
    return (
        b"HTTP/1.1 %d Bad Request\r\nContent-Type: application/x-ndjson; charset=utf-8\r\n"
        b"X-Relayd-Error: %b\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b"
        % (error.status, error.code.encode(), len(body), body)
    )


class LingeringConnections:
    """Connections that were sent an error while their client may still send.

    Closing with bytes unread resets a connection, and the reset can overtake the error (RFC 9112, 9.6). So
    their bytes are dropped until the client leaves, for a second at most.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._timers: dict[socket.socket, asyncio.TimerHandle] = {}

    def add(self, sock: socket.socket) -> None:
        """Take over a socket, and close it in the end; at once if there are too many."""
        try:
            sock.shutdown(socket.SHUT_WR)
        except OSError:
            # The client has reset it.
            sock.close()
            return
        if len(self._timers) >= _MAX_LINGERING:
            sock.close()
            return
        self._timers[sock] = self._loop.call_later(_LINGER_S, self._close, sock)
        self._loop.add_reader(sock, self._drop_bytes, sock)

    def _drop_bytes(self, sock: socket.socket) -> None:
        try:
            has_left = not sock.recv(READ_CHUNK_BYTES)
        except BlockingIOError:
            return
        except OSError:
            has_left = True
        if has_left:
            self._close(sock)

    def _close(self, sock: socket.socket) -> None:
        self._timers.pop(sock).cancel()
        self._loop.remove_reader(sock)
        sock.close()

    def close(self) -> None:
        """Close them all now."""
        for sock in tuple(self._timers):
            self._close(sock)


class HeadTimeouts(NamedTuple):
    """How long a connection waits for a head: from its first byte to its end, and for that first byte."""

    head_s: float
    """A new connection's first head has only this, TLS handshake included."""
    keep_alive_s: float


class RequestStream(IOStream):
    """A connection that hands only sound heads to Tornado; others get a 400 and the connection ends.

    Args:
        sock: accepted, non-blocking, with TCP_NODELAY.
        peer: address of the other end.
        timeouts: after which it is closed.
        lingering: takes over a connection whose head was refused.
    """

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        timeouts: HeadTimeouts,
        lingering: LingeringConnections,
        **options: Any,
    ) -> None:
        # A body passes through in pieces, so no more than this is ever held.
        super().__init__(
            sock, max_buffer_size=4 * READ_CHUNK_BYTES, read_chunk_size=READ_CHUNK_BYTES, **options
        )
        self.peer = peer
        self.on_closed: Callable[[RequestStream], None] | None = None
        """Called once when the connection is closed."""
        self.met_bad_body = False
        """Whether Tornado could not read a body."""
        self._is_answered = False
        """Whether the response to the latest request has begun."""
        self._lingering = lingering
        self._timeouts = timeouts
        self._timer: asyncio.TimerHandle | None = None
        self._reading_head = False
        self._is_idle = False
        self._start_timer(timeouts.head_s)

    @property
    def awaits_response(self) -> bool:
        """Whether a request is due, has begun to arrive, or has no response yet; False: idle, or answered."""
        return (self._timer is not None and not self._is_idle) or not self._is_answered

    def _start_timer(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = asyncio.get_running_loop().call_later(seconds, self.close)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @override
    def read_from_fd(self, buf: bytearray | memoryview) -> int | None:
        """Read, and start the clock of a head with its first byte: before that the connection is idle."""
        count = super().read_from_fd(buf)
        if count and self._is_idle:
            self._is_idle = False
            self._start_timer(self._timeouts.head_s)
        return count

    @override
    def read_until_regex(self, regex: bytes, max_bytes: int | None = None) -> Awaitable[bytes]:
        """Read a head, which is all that Tornado reads this way, and check it."""
        if self.closed():
            raise StreamClosedError(real_error=self.error)
        self._reading_head = True
        if self._timer is None:
            # Not the first head. A part of it may have come with the body before it.
            self._is_idle = not self._read_buffer_size
            self._start_timer(self._timeouts.keep_alive_s if self._is_idle else self._timeouts.head_s)
        checked: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        read = cast("asyncio.Future[bytes]", super().read_until_regex(regex, max_bytes))
        read.add_done_callback(lambda read: self._check_head(read, checked))
        return checked

    def _check_head(self, read: asyncio.Future[bytes], checked: asyncio.Future[bytes]) -> None:
        self._reading_head = False
        self._stop_timer()
        error = read.exception()
        if checked.done():
            return
        if error is None:
            fault = head_fault(read.result())
            if fault is None:
                self._is_answered = False
                checked.set_result(read.result())
                return
            self._refuse(RelayError(ErrorCode.BAD_REQUEST, fault))
            error = StreamClosedError()
        checked.set_exception(error)
        # Retrieve it, so that asyncio does not log it if Tornado's timeout came first.
        checked.exception()

    @override
    def write(self, data: bytes | memoryview) -> asyncio.Future[None]:
        """Write; Tornado's own words about a body that it cannot read become an error in our form.

        They are left out if the request is answered: a proxy could give them to the next one.
        """
        if data == _TORNADO_BAD_REQUEST:
            self.met_bad_body = True
            data = b"" if self._is_answered else raw_response(malformed_body())
        self._is_answered = self._is_answered or data[: len(_INTERIM_START)] != _INTERIM_START
        return super().write(data)

    @override
    def set_nodelay(self, value: bool) -> None:
        """Do nothing: TCP_NODELAY is always on, and Tornado would toggle it around every response."""

    @override
    def close(self, exc_info: Any = False) -> None:
        """Close as Tornado asks; if a head or a chunk's size is too long, send the error first."""
        if isinstance(exc_info, UnsatisfiableReadError) and not self.closed():
            if self._reading_head:
                self._refuse(
                    RelayError(
                        ErrorCode.BAD_REQUEST,
                        f"The request's headers are larger than {MAX_HEAD_BYTES} bytes.",
                    )
                )
            else:
                self.write(_TORNADO_BAD_REQUEST)
        self._stop_timer()
        super().close(exc_info)
        if self.on_closed is not None:
            on_closed, self.on_closed = self.on_closed, None
            on_closed(self)

    def _refuse(self, error: RelayError) -> None:
        """Send the error without waiting for it to drain; `close` must follow."""
        super().write(raw_response(error))
        if not self.closed():
            # Not `socket.dup`, which a TLS socket does not have.
            self._lingering.add(socket.fromfd(self.socket.fileno(), self.socket.family, self.socket.type))


class TlsRequestStream(RequestStream, SSLIOStream):
    """The same over TLS; the handshake shares the time of the first head.

    Args:
        sock: wrapped for the server's side, the handshake not done.
        peer: address of the other end.
        timeouts: after which it is closed.
        lingering: takes over a connection whose head was refused.
    """

    socket: ssl.SSLSocket

    def __init__(
        self, sock: ssl.SSLSocket, peer: str, timeouts: HeadTimeouts, lingering: LingeringConnections
    ) -> None:
        # Without a context of its own Tornado makes one for a client.
        super().__init__(sock, peer, timeouts, lingering, ssl_options=sock.context)

    @override
    def write_to_fd(self, data: memoryview) -> int:
        """End a record at the end of a line: a browser hands on record by record what it reads."""
        if len(data) > _MAX_RECORD_BYTES:
            end_of_line = bytes(data[:_MAX_RECORD_BYTES]).rfind(b"\n") + 1
            data = data[: end_of_line or _MAX_RECORD_BYTES]
        return super().write_to_fd(data)


def malformed_body() -> RelayError:
    """Return the error of a body whose framing cannot be read."""
    return RelayError(ErrorCode.BAD_REQUEST, "The request's body is not valid HTTP/1.1.")
