"""How many connections may be open, and who makes room when there are too many."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Protocol

from relayd.public.address import network_of

MAX_STRANGERS_PER_NETWORK = 64
"""Connections of one address or IPv6 /64 that showed no valid key yet."""
MAX_KNOWN_NETWORKS = 4096
_ROOM_BESIDE_STREAMS = 256
_LOOK_EVERY_S = 0.01


class Closable(Protocol):
    """A connection, as far as it is counted here."""

    def close(self) -> None:
        """Cut it."""
        ...


class Connections:
    """Counts open connections. A connection is a stranger until a valid key came over it.

    When a bound is reached, the stranger that waited longest is cut: one that has something to say has
    said it long before. So a flood of silent connections ends itself, and never shuts others out. Only
    where all that are open have shown a key is the newcomer cut.

    Args:
        limit: how many may be open, now; asked each time.
        is_proxy: whether an address is a trusted proxy, which speaks for many; only `limit` binds it.
    """

    def __init__(self, limit: Callable[[], int], is_proxy: Callable[[str], bool]) -> None:
        self._limit = limit
        self._is_proxy = is_proxy
        self._open: dict[Closable, str] = {}
        self._strangers: OrderedDict[Closable, None] = OrderedDict()
        self._by_network: dict[str, OrderedDict[Closable, None]] = {}
        self._known: OrderedDict[str, None] = OrderedDict()
        """Networks from which a valid key came, also one that is revoked by now; the latest last."""
        self.cut = 0
        """How many were cut for others, since the start."""

    def __len__(self) -> int:
        """How many are open."""
        return len(self._open)

    @property
    def networks(self) -> int:
        """How many networks have strangers here."""
        return len(self._by_network)

    def network_of(self, address: str) -> str:
        """What is counted as one client; empty for a trusted proxy."""
        return "" if self._is_proxy(address) else network_of(address)

    def is_known(self, network: str) -> bool:
        """Whether a valid key came from there before, or it is a trusted proxy.

        Of so many networks as `MAX_KNOWN_NETWORKS`; another one makes the one be forgotten whose last
        connection with a key began the longest ago.
        """
        return not network or network in self._known

    def opened(self, connection: Closable, network: str) -> None:
        """Count a new connection, which may cut an older one, or this one.

        Args:
            connection: it must call `forget` when it is closed.
            network: what `network_of` says of its other end.
        """
        self._open[connection] = network
        self._strangers[connection] = None
        if network:
            mine = self._by_network.setdefault(network, OrderedDict())
            mine[connection] = None
            if len(mine) > MAX_STRANGERS_PER_NETWORK:
                self._cut(next(iter(mine)))
        if len(self._open) > self._limit():
            self._cut(next(iter(self._strangers)))

    async def strangers_heard(self, timeout_s: float) -> None:
        """Wait until no stranger is open, or time is over: one that was just accepted may still ask."""
        deadline = time.monotonic() + timeout_s
        while self._strangers and time.monotonic() < deadline:  # noqa: ASYNC110 - once a life, at its end
            await asyncio.sleep(_LOOK_EVERY_S)

    def make_room(self, number: int) -> int:
        """Cut so many strangers, those that waited longest: descriptors have run out. Returns how many."""
        oldest = list(itertools.islice(self._strangers, number))
        for connection in oldest:
            self._cut(connection)
        return len(oldest)

    def admitted(self, connection: Closable) -> None:
        """A valid key came over this connection."""
        if self._strangers.pop(connection, self) is self:
            return
        network = self._open[connection]
        if network:
            self._forget_in(network, connection)
            self._known[network] = None
            self._known.move_to_end(network)
            if len(self._known) > MAX_KNOWN_NETWORKS:
                self._known.popitem(last=False)

    def forget(self, connection: Closable) -> None:
        """The connection is closed; nothing for one that is not counted."""
        network = self._open.pop(connection, None)
        if network is None:
            return
        self._strangers.pop(connection, None)
        if network:
            self._forget_in(network, connection)

    def _forget_in(self, network: str, connection: Closable) -> None:
        mine = self._by_network.get(network)
        if mine is None:
            return
        mine.pop(connection, None)
        if not mine:
            del self._by_network[network]

    def _cut(self, connection: Closable) -> None:
        self.cut += 1
        connection.close()


def connection_limit(max_streams: int) -> int:
    """How many connections belong to so many streams.

    As many again as there may be streams, for clients that are between two requests or being refused,
    and room for probes and pages.
    """
    return 2 * max_streams + _ROOM_BESIDE_STREAMS
