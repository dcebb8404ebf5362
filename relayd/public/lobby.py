"""Where accepted connections wait to be served: known networks first, and each network in its turn."""

from __future__ import annotations

import asyncio
import socket
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, NamedTuple

MAX_KNOWN = 512
"""Where more of the known wait, the kernel keeps them (the backlog)."""
MAX_STRANGERS = 2048
"""Enough for all that the kernel kept while the daemon was started anew, twice over."""
_MAX_KNOWN_OF_ONE = 64
"""More of one known network wait with the strangers."""
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
    each turn of the loop; then come strangers, fewer. Within both, networks take turns.

    Strangers never keep the known out: where too many wait, one is cut unheard, the newcomer's own first or
    one of a network of which several wait. The known are not cut; where too many wait, `room` says that the
    kernel must keep the next.

    Args:
        serve: takes a connection over.
        is_known: whether a network showed a valid key before; the empty one is a proxy's, which speaks for
            many.
        max_strangers: how many of them may wait.
    """

    def __init__(
        self,
        serve: Callable[[Newcomer], None],
        is_known: Callable[[str], bool],
        max_strangers: int = MAX_STRANGERS,
    ) -> None:
        self._max_strangers = max_strangers
        self._loop = asyncio.get_running_loop()
        self._serve = serve
        self._is_known = is_known
        self._known = _Queue()
        self._strangers = _Queue()
        self._next: asyncio.Handle | None = None
        self.cut = 0
        """How many were cut for others, since the start."""

    def __len__(self) -> int:
        """How many wait."""
        return len(self._known) + len(self._strangers)

    @property
    def room(self) -> int:
        """How many more may enter, whoever they are."""
        return MAX_KNOWN - len(self._known)

    def enter(self, newcomer: Newcomer) -> None:
        """Wait for a turn; `serve_some` must be called after one or several entered."""
        network = newcomer.network
        if self._is_known(network) and not (network and self._known.of(network) >= _MAX_KNOWN_OF_ONE):
            self._known.put(newcomer)
            return
        if len(self._strangers) >= self._max_strangers:
            self.cut += 1
            crowd = network if self._strangers.of(network) else self._strangers.crowd
            if crowd is None:
                newcomer.socket.close()
                return
            self._strangers.pop(crowd).socket.close()
        self._strangers.put(newcomer)

    def make_room(self, number: int) -> int:
        """Cut so many strangers, as far as they are there: descriptors have run out. Returns how many."""
        number = min(number, len(self._strangers))
        for _ in range(number):
            self._strangers.pop(self._strangers.crowd).socket.close()
        self.cut += number
        return number

    def serve_some(self) -> None:
        """Serve those whose turn it is, now and in each turn of the loop until nobody waits."""
        if self._next is None:
            self._turn()

    def _turn(self) -> None:
        self._next = None
        try:
            for _ in range(min(_KNOWN_A_TURN, len(self._known))):
                self._serve(self._known.pop())
            for _ in range(min(_STRANGERS_A_TURN, len(self._strangers))):
                self._serve(self._strangers.pop())
            self._let_known_over()
        finally:
            # Whatever one of them met, the others have their turns.
            if len(self):
                self._next = self._loop.call_soon(self._turn)

    def _let_known_over(self) -> None:
        """The next strange network goes over to the known, as far as it may, if it showed a key meanwhile."""
        network = self._strangers.next_network
        if network is not None and self._is_known(network):
            number = min(self._strangers.of(network), _MAX_KNOWN_OF_ONE - self._known.of(network))
            for _ in range(number):
                self._known.put(self._strangers.pop(network))

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
        self._crowds: dict[str, None] = {}
        """Networks of which several wait."""
        self._waiting = 0

    def __len__(self) -> int:
        return self._waiting

    def of(self, network: str) -> int:
        """How many of a network wait."""
        return len(self._by_network.get(network, ()))

    @property
    def next_network(self) -> str | None:
        """Whose turn it is."""
        return next(iter(self._by_network), None)

    @property
    def crowd(self) -> str | None:
        """A network of which several wait."""
        return next(iter(self._crowds), None)

    def put(self, newcomer: Newcomer) -> None:
        """Add one."""
        mine = self._by_network.setdefault(newcomer.network, deque())
        mine.append(newcomer)
        self._waiting += 1
        if len(mine) > 1:
            self._crowds[newcomer.network] = None

    def pop(self, network: str | None = None) -> Newcomer:
        """Take the next one, or the first of a network."""
        if network is None:
            network = next(iter(self._by_network))
            self._by_network.move_to_end(network)
        mine = self._by_network[network]
        self._waiting -= 1
        newcomer = mine.popleft()
        if len(mine) == 1:
            self._crowds.pop(network, None)
        elif not mine:
            del self._by_network[network]
        return newcomer
