"""The key ring: who may ask for models, in memory for every request and on disk for every change."""

from __future__ import annotations

import asyncio
import hmac
import logging
import sqlite3
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import msgspec

from relayd.state import ringrules
from relayd.state.audit import new_entry
from relayd.state.errors import RingUnavailable, StateError
from relayd.state.keys import digest
from relayd.state.keyuse import KeyUse
from relayd.state.records import AuditEntry, KeyInfo, KeyState, Peer, utc_text
from relayd.state.ringchange import Ask, RingChange, RingJob, Settled, with_expired
from relayd.state.ringfill import Filled, FillJob, FillResult
from relayd.state.ringstore import StoredRing, load_ring
from relayd.state.transactor import Transactor, Tx
from relayd.state.writer import Chore, Writer

__all__ = ["Admitted", "FillResult", "Filled", "KeyRing", "RingChange"]

FILL_TIMEOUT_S = 30.0
USE_EVERY_S = 5.0
SWEEP_EVERY_S = 1.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Admitted:
    """A key that works: its id and whose it is."""

    key_id: str
    client: str


@dataclass(frozen=True, slots=True)
class _Live:
    digest: bytes
    expires_s: float
    admitted: Admitted


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """The ring at one generation; replaced as a whole, by one assignment."""

    ring: StoredRing
    live: tuple[_Live, ...]
    known: dict[bytes, Admitted]
    """Every key of the ring by its digest, the dead ones too."""

    @classmethod
    def of(cls, ring: StoredRing) -> _Snapshot:
        live = (KeyState.ACTIVE, KeyState.RETIRING)
        return cls(
            ring,
            tuple(
                _Live(bytes.fromhex(key.digest_hex), key.expires_s(), Admitted(key.id, key.client))
                for key in ring.keys
                if key.state in live
            ),
            {bytes.fromhex(key.digest_hex): Admitted(key.id, key.client) for key in ring.keys},
        )


class KeyRing:
    """The keys of all clients. `verify` does no I/O; changes are durable before they are in force.

    Every change may raise a `RingError`; the ring is then as it was. `expected_generation` is the
    generation on which the caller decided (None: any). The same `idempotency_key` never acts twice:
    the second answer has `already_done`, and no secret.
    """

    def __init__(self, writer: Writer, ring: StoredRing, clock: Callable[[], float]) -> None:
        self._writer = writer
        self._clock = clock
        self._use = KeyUse(clock)
        self._expired: set[str] = set()
        self._snapshot = _Snapshot.of(ring)
        self._use_chore = Chore("key use", USE_EVERY_S, self._use.write)

    def chores(self) -> list[Chore]:
        """What the writer does for the ring when it is idle."""
        return [self._use_chore, Chore("expired keys", SWEEP_EVERY_S, self._sweep)]

    def verify(self, presented: bytes) -> Admitted | None:
        """Whose key this is, or None; takes the same time whatever is wrong with it."""
        theirs = digest(presented)
        now_s = self._clock()
        found: _Live | None = None
        for live in self._snapshot.live:
            # Every digest is compared, in constant time, whether or not one has matched already.
            if hmac.compare_digest(live.digest, theirs):
                found = live
            if live.expires_s <= now_s:
                self._expired.add(live.admitted.key_id)
        if found is None or found.admitted.key_id in self._expired:
            return None
        return found.admitted

    def former(self, presented: bytes) -> Admitted | None:
        """Whose key this was, of one that `verify` refused: for the record, never for the answer."""
        return self._snapshot.known.get(digest(presented))

    def used(self, key_id: str, ip: str) -> None:
        """Note that a key admitted a request from this address; written to disk within seconds."""
        if self._use.note(key_id, ip):
            known = self._snapshot.ring.key(key_id)
            if known is not None and known.first_used_at is None:
                self._writer.hurry(self._use_chore)

    def keys(self) -> list[KeyInfo]:
        """All live keys and the last 100 dead ones, oldest first, with their latest use."""
        now = utc_text(self._clock())
        ring = with_expired(self._snapshot.ring, set(self._expired))
        shown = [self._use.shown(key.info(now)) for key in ring.keys]
        return sorted(shown, key=lambda key: (key.created_at, key.id))

    @property
    def generation(self) -> int:
        """Counts the changes of the ring."""
        return self._snapshot.ring.generation

    def fill(self, authorization_key: str | None) -> FillResult:
        """Give an empty ring its first key: the given one, or a new one. Blocks; call it at start.

        Raises:
            BadChange: the given key is too short, or mistyped.
            RingUnavailable: the disk refuses.
        """
        job = FillJob(authorization_key, self._clock)
        try:
            future = self._writer.submit(job, lambda done: self._adopt(done[0]))
            return future.result(FILL_TIMEOUT_S)[1]
        except (sqlite3.Error, StateError, TimeoutError) as error:
            raise RingUnavailable(f"The first key could not be put on disk: {error}.") from error

    async def add(
        self, client: str, *, peer: Peer, expected_generation: int | None, idempotency_key: str | None
    ) -> RingChange:
        """Make a key for a client that has no active one (1 to 64 of A-Z a-z 0-9 . _ -)."""
        return await self._change(
            Ask("add", client, f"add {client}", ringrules.add, peer, expected_generation, idempotency_key)
        )

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
        rule = partial(ringrules.rotate, grace_s=grace_s)
        parameters = f"rotate {key_id} grace {ringrules.seconds(grace_s)} s"
        return await self._change(
            Ask("rotate", key_id, parameters, rule, peer, expected_generation, idempotency_key)
        )

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
        rule = partial(ringrules.extend, by_s=by_s)
        parameters = f"extend {key_id} by {ringrules.seconds(by_s)} s"
        return await self._change(
            Ask("extend", key_id, parameters, rule, peer, expected_generation, idempotency_key)
        )

    async def undo(
        self, key_id: str, *, peer: Peer, expected_generation: int | None, idempotency_key: str | None
    ) -> RingChange:
        """Make a retiring key active again and revoke the one that replaced it; takes the id of either."""
        return await self._change(
            Ask("undo", key_id, f"undo {key_id}", ringrules.undo, peer, expected_generation, idempotency_key)
        )

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
        rule = partial(ringrules.revoke, cut=cut)
        parameters = f"revoke {key_id}{' and cut' if cut else ''}"
        return await self._change(
            Ask("revoke", key_id, parameters, rule, peer, expected_generation, idempotency_key)
        )

    async def _change(self, ask: Ask) -> RingChange:
        job = RingJob(ask, self._clock, lambda: self._snapshot.ring, self._expired)
        try:
            # The new ring is adopted on the writer's thread, right after the commit: so memory and disk
            # stay together also when the caller is cancelled here.
            settled = await asyncio.wrap_future(self._writer.submit(job, self._adopt_settled))
        except (sqlite3.Error, StateError) as error:
            if job.refusal is not None:
                raise job.refusal from error
            self._audit_failure(ask, error)
            raise RingUnavailable(
                f"The change could not be put on disk ({error}). The ring is as it was: "
                "mend the disk, then repeat."
            ) from error
        if settled.change is None:
            raise settled.refusal or RingUnavailable("The change was neither done nor refused.")
        return settled.change

    def _adopt_settled(self, settled: Settled) -> None:
        self._adopt(settled.ring)

    def _adopt(self, ring: StoredRing) -> None:
        self._snapshot = _Snapshot.of(ring)

    def _audit_failure(self, ask: Ask, error: Exception) -> None:
        """Note the failure where the disk allows it again.

        The write also takes the place of what a failed commit may have left in the WAL, which a
        crash could else bring back.
        """

        def work(tx: Tx) -> AuditEntry:
            now = utc_text(self._clock())
            return tx.audit(new_entry(ask.action, RingUnavailable.code, ask.peer, now, self.generation))

        def told(future: Future[AuditEntry]) -> None:
            if not future.cancelled() and future.exception() is not None:
                _log.error("A failed %s of %s could not be audited", ask.action, ask.subject[:64])

        _log.error("A %s of %s could not be put on disk: %s", ask.action, ask.subject[:64], error)
        try:
            self._writer.submit(work).add_done_callback(told)
        except StateError:
            _log.error("A failed %s of %s could not be audited", ask.action, ask.subject[:64])

    def _sweep(self, transactor: Transactor) -> bool:
        """Put on disk which retiring keys have expired, so that a clock set back can't revive them."""
        now_s = self._clock()
        gone = [
            live.admitted.key_id
            for live in self._snapshot.live
            if live.expires_s <= now_s or live.admitted.key_id in self._expired
        ]
        if gone:
            transactor.run(partial(_store_expired, gone=gone), durable=False, after=self._adopt)
            self._expired.difference_update(gone)
        return False


def _store_expired(tx: Tx, gone: list[str]) -> StoredRing:
    tx.connection.execute(
        "UPDATE keys SET state = 'expired'"
        " WHERE state = 'retiring' AND id IN (SELECT value FROM json_each(?))",
        (msgspec.json.encode(gone).decode(),),
    )
    return load_ring(tx.connection)
