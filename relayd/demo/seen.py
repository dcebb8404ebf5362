"""What the demo upstream saw of its clients, for tests: a bounded list of facts, one a request."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field

_SECRET_HEADERS = frozenset({"authorization", "cookie", "proxy-authorization", "api-key"})


@dataclass(slots=True)
class Seen:
    """One request as the upstream saw it. Times are `time.monotonic()` in seconds."""

    n: int
    """Its number in the order of arrival, from 0."""
    method: str
    path: str
    headers: Mapping[str, str]
    """Lower-case names; headers that carry secrets are left out."""
    body: bytes
    started_at: float
    authorized: bool = False
    model: str = ""
    head_at: float | None = None
    """When the reply's status and headers were written."""
    deltas: int = 0
    """Deltas with text written so far."""
    closed_by_client_at: float | None = None
    """When the upstream noticed that its client had gone before the reply was whole."""
    ended_at: float | None = None
    completed: bool = False
    """The reply was written whole, errors and asked-for faults included."""
    closed: asyncio.Event = field(default_factory=asyncio.Event, repr=False)
    ended: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    def note_client_gone(self) -> None:
        """The client closed; only the first notice before the end counts."""
        if self.closed_by_client_at is None and self.ended_at is None:
            self.closed_by_client_at = time.monotonic()
            self.closed.set()

    def note_end(self, *, completed: bool) -> None:
        """Nothing more will be written."""
        self.completed = completed
        self.ended_at = time.monotonic()
        self.ended.set()


def public_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Copy headers with lower-case names, without those that carry secrets."""
    return {lower: value for name, value in headers.items() if (lower := name.lower()) not in _SECRET_HEADERS}


class SeenRequests:
    """The latest requests, oldest forgotten first, and ways to wait for what happens to them."""

    def __init__(self, remember: int) -> None:
        self.latest: deque[Seen] = deque(maxlen=remember)
        self.total = 0
        self._arrival = asyncio.Event()

    def add(self, seen: Seen) -> None:
        """Remember a request that has just arrived."""
        self.latest.append(seen)
        self.total += 1
        self._arrival.set()
        self._arrival = asyncio.Event()

    async def wait(self, n: int, timeout_s: float) -> Seen:
        """Wait until request `n` has arrived.

        Raises:
            TimeoutError: it did not come within `timeout_s`.
            LookupError: it came, and has been forgotten since.
        """
        async with asyncio.timeout(timeout_s):
            while self.total <= n:
                await self._arrival.wait()
        index = n - (self.total - len(self.latest))
        if index < 0:
            raise LookupError(f"request {n} is no longer remembered; remember more than {len(self.latest)}")
        return self.latest[index]

    async def wait_closed(self, n: int, timeout_s: float) -> Seen:
        """Wait until the client of request `n` has closed it before its end; errors as in `wait`."""
        async with asyncio.timeout(timeout_s):
            seen = await self.wait(n, timeout_s)
            await seen.closed.wait()
        return seen

    async def wait_ended(self, n: int, timeout_s: float) -> Seen:
        """Wait until nothing more will be written to request `n`, for any reason; errors as in `wait`."""
        async with asyncio.timeout(timeout_s):
            seen = await self.wait(n, timeout_s)
            await seen.ended.wait()
        return seen
