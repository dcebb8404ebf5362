"""The key ring: in memory to verify every request, on disk before a change is in force."""

from __future__ import annotations

import asyncio
import hmac
import logging
import sqlite3
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from msgspec.structs import replace

from relayd.state.audit import append_audit
from relayd.state.columns import storable_text
from relayd.state.database import Database, Transaction, explain
from relayd.state.directory import StateDirectory
from relayd.state.errors import RingError, RingUnavailable, StateError
from relayd.state.initial_key import InitialKey, InitialKeyOutcome, ensure_initial_key
from relayd.state.key_operations import Caller, ChangeRequest, apply_change
from relayd.state.key_store import load_ring, mark_expired, store_uses
from relayd.state.key_transitions import Rule, StoredRing, add, extend, revoke, rotate, seconds, undo
from relayd.state.keys import digest, fingerprint
from relayd.state.records import (
    LIVE_STATES,
    AuditEntry,
    Client,
    KeyChangeResult,
    KeyInfo,
    KeyState,
    epoch_s,
    utc_text,
)
from relayd.state.writer import Task, Writer

__all__ = ["Caller", "InitialKey", "InitialKeyOutcome", "KeyOwner", "KeyRing"]

_START_TIMEOUT_S = 30.0
_SUBJECT_CHARS = 200

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KeyOwner:
    """The id of a key, and the client it belongs to."""

    key_id: str
    client: str


@dataclass(frozen=True, slots=True)
class _LiveKey:
    digest: bytes
    expires_s: float
    owner: KeyOwner


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """The ring at one generation; replaced as a whole, by one assignment."""

    ring: StoredRing
    live: tuple[_LiveKey, ...]
    owners: dict[bytes, KeyOwner]
    """The owner of every key of the ring by its digest, the dead ones too."""
    clients: dict[str, Client]
    """Those that exist, by name."""

    @classmethod
    def of(cls, ring: StoredRing) -> _Snapshot:
        digests = {key.id: bytes.fromhex(ring.digests[key.id]) for key in ring.keys}
        owners = {key.id: KeyOwner(key.id, key.client) for key in ring.keys}
        live = (
            _LiveKey(
                digests[key.id], epoch_s(key.expires_at) if key.expires_at else float("inf"), owners[key.id]
            )
            for key in ring.keys
            if key.state in LIVE_STATES
        )
        return cls(
            ring,
            tuple(live),
            {digests[key_id]: owner for key_id, owner in owners.items()},
            {client.name: client for client in ring.clients if client.removed_at is None},
        )


class KeyRing:
    """The keys of all clients. `verify` does no I/O; changes are durable before they are in force.

    Every change may raise a `RingError`; the ring is then as it was. After a repeated change (same
    idempotency key) the result has `already_done`, and no secret.
    """

    def __init__(
        self, writer: Writer, database: Database, directory: StateDirectory, clock: Callable[[], float]
    ) -> None:
        """Load the ring.

        Raises:
            sqlite3.Error, StateDamaged: it can't be read.
        """
        self._writer = writer
        self._database = database
        self._directory = directory
        self._clock = clock
        self._uses = _KeyUses()
        self._expired: set[str] = set()
        """Keys once seen expired, until the disk has it: a clock set back must not revive them."""
        self.expiry_task = Task("expired keys", 1.0, self.store_expired)
        ring = load_ring(database.connection)
        if ring.keys and ring.generation < directory.generation:
            _log.warning(
                "The key ring is older (generation %d) than the one last in force here (generation %d): a "
                "backup was restored, or the disk lost something. Keys made since do not work, and keys "
                "revoked since work again: see `relayd keys list`.",
                ring.generation,
                directory.generation,
            )
        self._snapshot = _Snapshot.of(ring)

    def verify(self, presented: bytes) -> KeyOwner | None:
        """Return the owner of a valid key, else None. Takes equally long for every wrong key."""
        theirs = digest(presented)
        now_s = self._clock()
        found: _LiveKey | None = None
        for live in self._snapshot.live:
            # Every digest is compared, in constant time, whether or not one has matched already.
            if hmac.compare_digest(live.digest, theirs):
                found = live
            if live.expires_s <= now_s:
                self._note_expired(live.owner.key_id)
        if found is None or found.owner.key_id in self._expired:
            return None
        return found.owner

    def former_owner(self, presented: bytes) -> KeyOwner | None:
        """Return the owner of a key that `verify` refused: for the record, never for the answer."""
        return self._snapshot.owners.get(digest(presented))

    def record_use(self, key_id: str, ip: str) -> None:
        """Record that a key admitted a request from this address; it is on disk within 5 s."""
        self._uses.record(key_id, _Use(utc_text(self._clock()), storable_text(ip)))

    def keys(self) -> list[KeyInfo]:
        """Return all live keys and the last 100 dead ones, oldest first, with their latest use."""
        expired = self._find_expired()
        return [
            replace(key, state=KeyState.EXPIRED) if key.id in expired else key
            for key in map(self._uses.shown, self._snapshot.ring.keys)
        ]

    def client(self, name: str) -> Client | None:
        """Return a client with its bounds, unless there is none with this name."""
        return self._snapshot.clients.get(name)

    def clients(self) -> list[Client]:
        """Return all clients, and the last 100 removed ones, by name."""
        return self._snapshot.ring.clients

    @property
    def generation(self) -> int:
        """Return how often the ring has changed."""
        return self._snapshot.ring.generation

    def ensure_initial_key(self, authorization_key: str | None) -> InitialKey:
        """Give an empty ring its first key: the given one, or a new one. Blocks; call it at start.

        Raises:
            BadChange: the given key is too short, or mistyped.
            RingUnavailable: the disk refuses.
        """

        def work(transaction: Transaction) -> InitialKey:
            had_keys = self._directory.generation > 0
            initial = ensure_initial_key(transaction, authorization_key, self._clock(), had_keys=had_keys)
            self._adopt_after_commit(transaction)
            return initial

        try:
            return self._writer.submit(work).result(_START_TIMEOUT_S)
        except (sqlite3.Error, StateError, TimeoutError) as error:
            raise RingUnavailable(
                f"The first key could not be written to disk. {self._explain(error)}"
            ) from error

    async def add(self, client: str, *, caller: Caller) -> KeyChangeResult:
        """Make a key for a client that has no active one (1 to 64 of A-Z a-z 0-9 . _ -)."""
        return await self._change("add", client, "", add, caller)

    async def import_key(self, client: str, given: str, *, caller: Caller) -> KeyChangeResult:
        """Let a client that has no active key use a key of the operator's own; the result has no secret."""
        parameters = f" {fingerprint(digest(given.encode()))}"
        change = await self._change("import", client, parameters, partial(add, given=given), caller)
        return replace(change, secret=None)

    async def rotate(self, key_id: str, *, grace_s: float, caller: Caller) -> KeyChangeResult:
        """Make a new active key for the client of this active one, which works on until its grace ends."""
        parameters = f" grace {seconds(grace_s)} s"
        return await self._change("rotate", key_id, parameters, partial(rotate, grace_s=grace_s), caller)

    async def extend(self, key_id: str, *, by_s: float, caller: Caller) -> KeyChangeResult:
        """Move the end of a retiring key later by this many seconds."""
        return await self._change(
            "extend", key_id, f" by {seconds(by_s)} s", partial(extend, by_s=by_s), caller
        )

    async def undo(self, key_id: str, *, caller: Caller) -> KeyChangeResult:
        """Make a retiring key active again and revoke its replacement; `key_id` names either."""
        return await self._change("undo", key_id, "", undo, caller)

    async def revoke(self, key_id: str, *, cut: bool, caller: Caller) -> KeyChangeResult:
        """End a live key now, for good. `cut` is only noted in the audit: the caller cuts the streams."""
        return await self._change(
            "revoke", key_id, " and cut" if cut else "", partial(revoke, cut=cut), caller
        )

    async def _change(
        self, action: str, subject: str, parameters: str, rule: Rule, caller: Caller
    ) -> KeyChangeResult:
        request = ChangeRequest(action, subject, f"{action} {subject}{parameters}", rule, caller)
        try:
            return await asyncio.wrap_future(self._writer.submit(partial(self._apply, request)))
        except RingError as refusal:
            await self._audit_refusal(request, refusal)
            raise
        except (sqlite3.Error, StateError) as error:
            _log.error("A %s of %s could not be written to disk: %s", action, subject[:64], error)
            unavailable = RingUnavailable(
                f"The change could not be written to disk; the keys are unchanged. {self._explain(error)}"
            )
            await self._audit_refusal(request, unavailable)
            raise unavailable from error

    def _explain(self, error: Exception) -> str:
        return str(explain(error, self._database.path) if isinstance(error, sqlite3.Error) else error)

    def _apply(self, request: ChangeRequest, transaction: Transaction) -> KeyChangeResult:
        result = apply_change(transaction, request, self._clock(), self._find_expired())
        self._adopt_after_commit(transaction)
        return result

    def _adopt_after_commit(self, transaction: Transaction) -> None:
        # On the writer's thread, right after the commit: so memory and disk stay together also when the
        # caller was cancelled meanwhile.
        transaction.after_commit.append(partial(self._adopt, load_ring(transaction.connection)))

    def _adopt(self, ring: StoredRing) -> None:
        self._snapshot = _Snapshot.of(ring)
        self._directory.note_generation(ring.generation)

    async def _audit_refusal(self, request: ChangeRequest, refusal: RingError) -> None:
        """Record the refusal if the disk allows it.

        After a failed commit this also overwrites what it may have left in the WAL, which a crash could
        bring back.
        """
        subject = storable_text(request.subject[:_SUBJECT_CHARS])
        is_client = request.action in {"add", "import"}
        known = self._snapshot.ring.find(subject)
        entry = AuditEntry(
            at=utc_text(self._clock()),
            action=request.action,
            result=refusal.code,
            generation=self.generation,
            client=subject if is_client else None if known is None else known.client,
            key_ids=() if is_client else (subject,),
            detail=str(refusal),
        )
        work = partial(append_audit, peer=request.caller.peer, entry=entry)
        try:
            await asyncio.wrap_future(self._writer.submit(work))
        except (sqlite3.Error, StateError) as error:
            _log.error("A refused %s of %s could not be audited: %s", request.action, subject[:64], error)

    # Tasks of the writer.

    def store_uses(self) -> None:
        """Write the uses of keys since the last call to disk.

        Raises:
            sqlite3.Error: nothing is written; the next call tries again.
        """
        self._uses.store(self._database)

    def store_expired(self) -> None:
        """Store expired keys as expired, so that a clock that is set back cannot revive them.

        Raises:
            sqlite3.Error: nothing is written; the next call tries again.
        """
        expired = self._find_expired()
        if expired:
            with self._database.transaction(durable=True) as transaction:
                mark_expired(transaction.connection, expired)
                self._adopt_after_commit(transaction)
            self._expired -= expired

    def _find_expired(self) -> set[str]:
        """Return the live keys that have expired by now, or had expired before the clock was set back."""
        now_s = self._clock()
        for live in self._snapshot.live:
            if live.expires_s <= now_s:
                self._note_expired(live.owner.key_id)
        return set(self._expired)

    def _note_expired(self, key_id: str) -> None:
        if key_id not in self._expired:
            self._expired.add(key_id)
            self._writer.wake(self.expiry_task)


@dataclass(frozen=True, slots=True)
class _Use:
    at: str
    ip: str


class _KeyUses:
    """First and last use of each key since the start: in memory at once, on disk a little later."""

    def __init__(self) -> None:
        # The event loop records, the writer's thread stores; the lock is held for moments only.
        self._lock = threading.Lock()
        self._uses: dict[str, tuple[_Use, _Use]] = {}
        self._unwritten: set[str] = set()

    def record(self, key_id: str, use: _Use) -> None:
        with self._lock:
            first, _ = self._uses.get(key_id, (use, use))
            self._uses[key_id] = (first, use)
            self._unwritten.add(key_id)

    def shown(self, key: KeyInfo) -> KeyInfo:
        """Return the key with its latest use, also if the disk does not have it yet."""
        with self._lock:
            uses = self._uses.get(key.id)
        if uses is None:
            return key
        first, last = uses
        if key.first_used_at is None:
            key = replace(key, first_used_at=first.at, first_used_ip=first.ip)
        return replace(key, last_used_at=last.at, last_used_ip=last.ip)

    def store(self, database: Database) -> None:
        with self._lock:
            unwritten, self._unwritten = self._unwritten, set()
            rows = [
                (first.at, first.ip, last.at, last.ip, key_id)
                for key_id, (first, last) in self._uses.items()
                if key_id in unwritten
            ]
        if not rows:
            return
        try:
            with database.transaction(durable=False) as transaction:
                store_uses(transaction.connection, rows)
        except BaseException:
            with self._lock:
                self._unwritten |= unwritten
            raise
