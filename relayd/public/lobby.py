"""Where accepted connections wait to be served: known networks first, and each network in its turn."""

from __future__ import annotations

import asyncio
import socket
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

from relayd.public.connections import MAX_STRANGERS_PER_NETWORK

MAX_WAITING = 1024
"""Connections in the lobby; the kernel keeps as many more (the backlog) before it turns any away."""
_KNOWN_A_TURN = 8
"""Each comes with its first request. More would let a flood of connections delay every open stream."""
_STRANGERS_A_TURN = 1
"""A request takes some eight turns from its connection to its first delta: each pays for a stranger."""


class Newcomer(NamedTuple):
    """An accepted connection of which nothing was read."""

    socket: socket.socket
    peer: tuple[Any, ...]
    network: str


class Lobby:
    """Accepting costs little and serving much; whoever floods the relay waits here for the others.

    The kernel hands out connections in the order they came, so that a client behind a thousand strangers
    waits for all of them to be served. Here a network that showed a valid key before goes first, a few in
    each turn of the loop; then come strangers, fewer. Within both, networks take turns. Of one strange
    network the connection that waited longest is cut when there are more than it may have open.

    Args:
        serve: takes a connection over.
        is_known: whether a network showed a valid key before.
    """

    def __init__(self, serve: Callable[[Newcomer], None], is_known: Callable[[str], bool]) -> None:
        self._loop = asyncio.get_running_loop()
        self._serve = serve
        self._is_known = is_known
        self._known = _Queue()
        self._strangers = _Queue()
        self._next: asyncio.Handle | None = None

    def __len__(self) -> int:
        """How many wait."""
        return len(self._known) + len(self._strangers)

    @property
    def room(self) -> int:
        """How many more may enter."""
        return MAX_WAITING - len(self)

    def enter(self, newcomer: Newcomer) -> None:
        """Wait for a turn; `serve_some` must be called after one or several entered."""
        if self._is_known(newcomer.network):
            self._known.put(newcomer)
        elif self._strangers.put(newcomer) > MAX_STRANGERS_PER_NETWORK:
            self._strangers.pop(newcomer.network).socket.close()

    def serve_some(self) -> None:
        """Serve those whose turn it is, now and in each turn of the loop until nobody waits."""
        if self._next is None:
            self._turn()

    def _turn(self) -> None:
        self._next = None
        if len(self):
            # First: whatever one of them met, the others have their turns.
            self._next = self._loop.call_soon(self._turn)
        for queue, number in ((self._known, _KNOWN_A_TURN), (self._strangers, _STRANGERS_A_TURN)):
            for _ in range(min(number, len(queue))):
                self._serve(queue.pop())

    def close(self) -> None:
        """Cut everybody who still waits."""
        if self._next is not None:
            self._next.cancel()
            self._next = None
        for queue in (self._known, self._strangers):
            while len(queue):
                queue.pop().socket.close()


class _Queue:
    """Networks take turns; within one, first come, first served."""

    def __init__(self) -> None:
        self._by_network: OrderedDict[str, deque[Newcomer]] = OrderedDict()
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def put(self, newcomer: Newcomer) -> int:
        """Add one; returns how many wait of its network."""
        mine = self._by_network.setdefault(newcomer.network, deque())
        mine.append(newcomer)
        self._waiting += 1
        return len(mine)

    def pop(self, network: str | None = None) -> Newcomer:
        """Take the next one, or the first of a network."""
        if network is None:
            network = next(iter(self._by_network))
            self._by_network.move_to_end(network)
        mine = self._by_network[network]
        self._waiting -= 1
        newcomer = mine.popleft()
        if not mine:
            del self._by_network[network]
        return newcomer
