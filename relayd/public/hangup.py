"""Notices within milliseconds that a client left, in every phase and with any bytes left unread.

Tornado looks for a close only while its read buffer is empty: one pipelined byte, and it never sees
the client go. The kernel always knows; a second epoll, nested in the loop's own, asks it for nothing
but the other side's FIN or RST (epoll(7), EPOLLRDHUP). A half-closed connection counts as left.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
from collections.abc import Callable

_log = logging.getLogger(__name__)

_LEFT = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR | select.EPOLLONESHOT
_MAX_EVENTS = 256


class HangupWatch:
    """Watches sockets for their other side leaving; `close` ends it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], None]] = {}
        self._loop.add_reader(self._epoll.fileno(), self._collect)

    def watch(self, sock: socket.socket, left: Callable[[], None]) -> Callable[[], None]:
        """Call `left` once when the other side is gone; the returned function ends the watch."""
        number = sock.fileno()
        self._callbacks[number] = left
        # A number that was watched before is free again: closing a socket takes it out of the epoll.
        self._epoll.register(number, _LEFT)

        def unwatch() -> None:
            if self._callbacks.get(number) is not left:
                return
            del self._callbacks[number]
            if sock.fileno() == number:
                self._epoll.unregister(number)

        return unwatch

    def _collect(self) -> None:
        for number, _mask in self._epoll.poll(0, _MAX_EVENTS):
            # The callback stays listed until its owner unwatches: one shot means it is called once.
            left = self._callbacks.get(number)
            if left is None:
                continue
            try:
                left()
            except Exception:  # noqa: BLE001 - each event comes once: a bug of one must not lose the others'
                _log.exception("a client left, and its request met a bug")

    def close(self) -> None:
        """Stop watching."""
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._callbacks.clear()
