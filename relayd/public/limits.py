"""How many requests may be open: slots in all and for each client address."""

from __future__ import annotations

import asyncio
from collections import Counter

from relayd.public.client_address import network_of
from relayd.relay.errors import ErrorCode, RelayError

_RETRY_AFTER_S = 5


class Slots:
    """Counts open requests. A slot is acquired from the headers alone, before the body.

    Args:
        max_streams: slots in all.
        max_streams_per_address: slots of one IPv4 address or IPv6 /64.
    """

    def __init__(self, *, max_streams: int, max_streams_per_address: int) -> None:
        self.max_streams = max_streams
        self.max_streams_per_address = max_streams_per_address
        self._by_network: Counter[str] = Counter()
        self._acquired = 0
        self._none_acquired = asyncio.Event()
        self._none_acquired.set()

    def acquire(self, address: str) -> None:
        """Take a slot for a request of this address; `release` must follow.

        Raises:
            RelayError: `busy`, a limit is reached.
        """
        network = network_of(address)
        if self._acquired >= self.max_streams:
            raise RelayError(
                ErrorCode.BUSY,
                f"This relay has reached its limit of {self.max_streams} open streams; try again shortly.",
                retry_after_s=_RETRY_AFTER_S,
            )
        if self._by_network[network] >= self.max_streams_per_address:
            raise RelayError(
                ErrorCode.BUSY,
                f"Your address has reached its limit of {self.max_streams_per_address} open streams; "
                "close one or try again shortly.",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._by_network[network] += 1
        self._acquired += 1
        self._none_acquired.clear()

    def release(self, address: str) -> None:
        """Give back the slot that `acquire` took."""
        network = network_of(address)
        self._by_network[network] -= 1
        self._acquired -= 1
        if not self._by_network[network]:
            del self._by_network[network]
        if not self._acquired:
            self._none_acquired.set()

    async def wait_until_free(self, timeout_s: float) -> bool:
        """Wait until every slot is released; return False if time ran out first."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._none_acquired.wait()
        except TimeoutError:
            return False
        return True
