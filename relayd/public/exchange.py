"""One request on its connection, and the way back: without Tornado's web layer."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from tornado.http1connection import HTTP1Connection
from tornado.httputil import HTTPHeaders, RequestStartLine

from relayd.public.address import ClientAddress
from relayd.public.cors import Cors
from relayd.public.guard import GuardedStream
from relayd.public.head import failure_fields, reply_head
from relayd.public.requestid import new_request_id
from relayd.relay.failure import Failure

_AT_ONCE = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class PublicSide:
    """What every public request is answered with; built once by the server."""

    cors: Cors
    address: ClientAddress


class Exchange:
    """A request whose head was read. Its reply is written straight to the connection.

    Args:
        public: whose rules the reply follows.
        connection: Tornado's, which reads the body and then the next request.
        start_line: of the request.
        headers: of the request.
    """

    def __init__(
        self,
        public: PublicSide,
        connection: HTTP1Connection,
        start_line: RequestStartLine,
        headers: HTTPHeaders,
    ) -> None:
        self._public = public
        self._connection = connection
        # The listener makes no other kind.
        self._stream = cast("GuardedStream", connection.stream)
        self.headers = headers
        self.path = start_line.path.partition("?")[0]
        self.request_id = new_request_id()
        self.client_address = public.address.of(self._stream.peer, headers.get_list("X-Forwarded-For"))
        """Where the request comes from, behind trusted proxies."""
        self.knows_chunks = start_line.version == "HTTP/1.1"
        """RFC 9112, 6.1: an HTTP/1.0 client knows no chunks; the connection's end is the reply's."""
        # RFC 9110, 7.6.1: a list of options.
        options = headers.get("Connection", "").lower().split(",")
        self._stays = self.knows_chunks and "close" not in [option.strip() for option in options]
        self.has_begun = False
        """Whether the head of the reply was made."""
        self.is_over = False
        """Whether the reply has ended, well or not."""

    @property
    def socket(self) -> socket.socket | None:
        """The connection's socket; None once it is closed."""
        return None if self._stream.closed() else self._stream.socket

    @property
    def hides_client(self) -> bool:
        """Whether it comes from a trusted proxy, which speaks for many and does not say for whom."""
        return self._public.address.is_proxy(self.client_address)

    @property
    def has_body(self) -> bool:
        """Whether the client sends, or will send, a body."""
        return self.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in self.headers

    def admitted(self) -> None:
        """A valid key was shown: the body may be read, whose size is its reader's to judge."""
        self._stream.admitted()
        # Over a limit of its own Tornado answers without our lines and our record.
        self._connection.set_max_body_size(sys.maxsize)

    @property
    def is_malformed(self) -> bool:
        """Whether the body turned out not to be HTTP, which the client was told."""
        return self._stream.is_malformed

    def when_closed(self, closed: Callable[[], None] | None) -> None:
        """Call this when somebody else closes the connection at this end; None: nobody asks any more."""
        self._stream.when_closed = closed

    def head(self, failure: Failure | None = None, *, length: int | None = None, ends: bool = False) -> bytes:
        """The head of the reply.

        Args:
            failure: whose status and fields it has; None: 200.
            length: of the body; None: it is sent in pieces.
            ends: the connection ends with the reply, whatever the client would have.
        """
        self.has_begun = True
        fields = {"X-Request-Id": self.request_id, **self._public.cors.headers(self.headers.get("Origin"))}
        if failure is not None:
            fields.update(failure_fields(failure))
        self._stays = self._stays and not ends and "Connection" not in fields
        if not self._stays:
            fields["Connection"] = "close"
        if length is not None:
            fields["Content-Length"] = str(length)
        elif self.knows_chunks:
            fields["Transfer-Encoding"] = "chunked"
        return reply_head(200 if failure is None else failure.status, fields)

    def send(self, data: bytes) -> asyncio.Future[None] | None:
        """Send bytes of the reply; returns what to wait for where the kernel does not take them all now.

        Raises:
            StreamClosedError: the connection is gone.
        """
        left = self._stream.send_now(data)
        if not left:
            return None
        sent = self._stream.write(left)
        if not sent.done():
            return sent
        sent.result()
        return None

    def finish(self) -> None:
        """The whole reply is sent: the connection reads the next request, or ends where that was said."""
        self.is_over = True
        self.when_closed(None)
        self._connection.finish()
        if not self._stays:
            self._connection.close()

    def close(self) -> None:
        """Cut the connection now, with whatever is still to be sent."""
        self.is_over = True
        self.when_closed(None)
        self._connection.close()

    def reset(self) -> None:
        """Cut the connection now, and take from the kernel what a client that does not read left there."""
        sock = self.socket
        if sock is not None:
            # socket(7): SO_LINGER with no time makes close() send RST and free what is unsent.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self.close()
