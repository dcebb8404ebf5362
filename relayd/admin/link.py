"""What an operator's program can ask of a daemon, whichever way it is reached.

`relayd.admin.client` speaks it over the Unix socket; the terminal app's `--demo` simulates it.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from typing import Protocol

from relayd.admin.schema import AuditPage, Event, KeyChange, RequestPage, RequestRecord, Ring, Status


class Link(Protocol):
    """One daemon. Every method may raise `AdminClientError`.

    A change of the ring names the `generation` that it was decided on: when the ring has moved on,
    the answer is `Refused` with status 412. The same `idempotency_key` never acts twice.
    """

    async def status(self) -> Status:
        """The daemon at a glance."""
        ...

    async def requests(
        self, *, where: str = "", after: int | None = None, before: int | None = None, limit: int = 100
    ) -> RequestPage:
        """Records with `after < seq < before` that pass the filter, newest first."""
        ...

    async def request(self, request_id: str) -> RequestRecord:
        """One record."""
        ...

    def events(self, after: int | None = None) -> AsyncGenerator[Event, None]:
        """Hello, what followed `after` (None: only what is new), then live, until the connection ends."""
        ...

    async def audit(self, *, before: int | None = None, limit: int = 100) -> AuditPage:
        """What operators did, newest first."""
        ...

    async def keys(self) -> Ring:
        """The ring and its generation."""
        ...

    async def add_key(self, client: str, *, generation: int, idempotency_key: str) -> KeyChange:
        """Make a first key for a new client."""
        ...

    async def rotate_key(
        self, key_id: str, *, grace_s: float | None, generation: int, idempotency_key: str
    ) -> KeyChange:
        """Make a new key for the client of this one, which retires after the grace."""
        ...

    async def extend_key(
        self, key_id: str, *, by_s: float, generation: int, idempotency_key: str
    ) -> KeyChange:
        """Move the end of a retiring key later."""
        ...

    async def undo_key(self, key_id: str, *, generation: int, idempotency_key: str) -> KeyChange:
        """Make a retiring key active again and revoke the one that replaced it."""
        ...

    async def revoke_key(self, key_id: str, *, cut: bool, generation: int, idempotency_key: str) -> KeyChange:
        """End a key now; with `cut`, its open streams too."""
        ...

    async def cancel(self, request_id: str) -> None:
        """End one open stream."""
        ...

    async def pause(self) -> Status:
        """Take no new work; open streams go on."""
        ...

    async def resume(self) -> Status:
        """Take new work again."""
        ...

    async def drain(self) -> Status:
        """Let open streams finish within the drain timeout, then stop the daemon."""
        ...

    async def close(self) -> None:
        """Let go of the connections."""
        ...
