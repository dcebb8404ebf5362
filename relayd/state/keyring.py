"""The key ring: who may ask for models, in memory for every request and on disk for every change."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from relayd.state.records import KeyInfo, Peer


@dataclass(frozen=True, slots=True)
class Admitted:
    """A key that works: its id and whose it is."""

    key_id: str
    client: str


@dataclass(frozen=True, slots=True)
class RingChange:
    """What a change of the ring did, after it is on disk and in force."""

    generation: int
    key: KeyInfo
    """The key that the change made or touched."""
    old: KeyInfo | None = None
    """After rotate: the retiring key. After undo: the revoked one."""
    secret: str | None = field(default=None, repr=False)
    """The new key, once; never stored."""
    already_done: bool = False
    """True where this idempotency key had done its work before."""


class Filled(StrEnum):
    """What the start found and did."""

    STORED = "stored"
    """The ring was empty and took the given key."""
    MADE = "made"
    """The ring was empty and no key was given: a first one was made; show its secret once."""
    KEPT = "kept"
    """The ring had keys, and none was given or the given one is among the live ones."""
    DIFFERS = "differs"
    """The ring had keys, and the given one is not live: it is ignored, the note says why."""


@dataclass(frozen=True, slots=True)
class FillResult:
    """The outcome of `KeyRing.fill`."""

    kind: Filled
    key: KeyInfo | None = None
    secret: str | None = field(default=None, repr=False)
    note: str | None = None
    """A sentence for the log."""


class KeyRing:
    """The keys of all clients. `verify` does no I/O; changes are durable before they are in force.

    Every change may raise a `RingError`; the ring is then as it was. `expected_generation` is the
    generation on which the caller decided (None: any). The same `idempotency_key` never acts twice.
    """

    def verify(self, presented: bytes) -> Admitted | None:
        """Whose key this is, or None; takes the same time whatever is wrong with it."""
        raise NotImplementedError

    def used(self, key_id: str, ip: str) -> None:
        """Note that a key admitted a request from this address; written to disk later."""
        raise NotImplementedError

    def keys(self) -> list[KeyInfo]:
        """All live keys and the last 100 dead ones, oldest first, with their latest use."""
        raise NotImplementedError

    @property
    def generation(self) -> int:
        """Counts the changes of the ring."""
        raise NotImplementedError

    def fill(self, authorization_key: str | None) -> FillResult:
        """Give an empty ring its first key: the given one, or a new one. Blocks; call it at start.

        Raises:
            BadChange: the given key is too short, or mistyped.
            RingUnavailable: the disk refuses.
        """
        raise NotImplementedError

    async def add(
        self, client: str, *, peer: Peer, expected_generation: int | None, idempotency_key: str | None
    ) -> RingChange:
        """Make a key for a client that has no active one (1 to 64 of A-Z a-z 0-9 . _ -)."""
        raise NotImplementedError

    async def rotate(
        self,
        key_id: str,
        *,
        grace_s: float,
        peer: Peer,
        expected_generation: int | None,
        idempotency_key: str | None,
    ) -> RingChange:
        """Make a new active key for the client of this active one, which works on for the grace."""
        raise NotImplementedError

    async def extend(
        self,
        key_id: str,
        *,
        by_s: float,
        peer: Peer,
        expected_generation: int | None,
        idempotency_key: str | None,
    ) -> RingChange:
        """Move the end of a retiring key later by so many seconds."""
        raise NotImplementedError

    async def undo(
        self, key_id: str, *, peer: Peer, expected_generation: int | None, idempotency_key: str | None
    ) -> RingChange:
        """Make a retiring key active again and revoke the one that replaced it; takes the id of either."""
        raise NotImplementedError

    async def revoke(
        self,
        key_id: str,
        *,
        cut: bool,
        peer: Peer,
        expected_generation: int | None,
        idempotency_key: str | None,
    ) -> RingChange:
        """End a live key now, for good. `cut` is only noted in the audit: the caller cuts the streams."""
        raise NotImplementedError
