"""What is said, without a handler, to a connection that never sent a request that could be handled."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Mapping

from relayd.public.head import failure_fields, reply_head
from relayd.relay.failure import Failure
from relayd.relay.lines import DONE, error_line

_MAX_LINGERING = 64
_LINGER_S = 1.0


def raw_reply(failure: Failure, more: Mapping[str, str] | None = None) -> bytes:
    """A whole reply, head with `more` fields and lines; its connection ends after it."""
    body = error_line(failure) + DONE
    fields = {
        **failure_fields(failure),
        "Connection": "close",
        "Content-Length": str(len(body)),
        **(more or {}),
    }
    return reply_head(failure.status, fields) + body


class Lingering:
    """Keeps refused sockets open for a moment, unread, so that a reset does not overtake the reply.

    At most `_MAX_LINGERING` at a time; beyond that a refused client may see a reset instead of its reply.
    """

    def __init__(self) -> None:
        self._sockets: set[socket.socket] = set()
        self._loop = asyncio.get_running_loop()

    def keep(self, sock: socket.socket) -> None:
        """Hold a duplicate of this socket for a second.

        Raises:
            OSError: the socket is gone, or no descriptor is left.
        """
        if len(self._sockets) >= _MAX_LINGERING:
            return
        # A TLS socket has no dup(); the connection beneath it has.
        held = socket.socket(fileno=os.dup(sock.fileno()))
        self._sockets.add(held)
        self._loop.call_later(_LINGER_S, self._let_go, held)

    def _let_go(self, held: socket.socket) -> None:
        self._sockets.discard(held)
        held.close()

    def close(self) -> None:
        """Let go of all."""
        for held in tuple(self._sockets):
            self._let_go(held)
