"""The key ring: in memory to verify every request, on disk before a change is in force."""

from __future__ import annotations

import asyncio
import hmac
import logging
import math
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import NamedTuple

import msgspec
from msgspec.structs import asdict, replace

from relayd.state.audit import append_audit
from relayd.state.columns import storable_text
from relayd.state.database import Database, Transaction
from relayd.state.directory import StateDirectory
from relayd.state.engine import Connection, EngineError, Fault
from relayd.state.errors import (
    OutcomeUnknown,
    RingError,
    RingStale,
    RingUnavailable,
    StateError,
    StateReplaced,
)
from relayd.state.key_operations import (
    Caller,
    Change,
    ChangeRequest,
    InitialKey,
    InitialKeyOutcome,
    apply_change,
    ensure_initial_key,
)
from relayd.state.key_store import (
    DEAD_KEYS_SHOWN,
    REMOVED_CLIENTS_SHOWN,
    has_change,
    load_ring,
    load_uses,
    mark_expired,
    ring_mark,
    store_uses,
)
from relayd.state.keys import digest, fingerprint
from relayd.state.records import (
    LIVE_STATES,
    AuditEntry,
    Client,
    ClientChangeResult,
    KeyChangeResult,
    KeyInfo,
    KeyState,
    KeyUse,
    epoch_s,
    utc_text,
)
from relayd.state.retention import AUDIT_DAYS
from relayd.state.transitions import (
    DEFAULT_CLIENT,
    RingMark,
    Rule,
    StoredRing,
    add,
    add_client,
    extend,
    remove_client,
    revoke,
    rotate,
    seconds,
    set_client,
    undo,
)
from relayd.state.writer import Task, Writer

__all__ = ["Caller", "InitialKey", "InitialKeyOutcome", "KeyOwner", "KeyRing"]

_START_TIMEOUT_S = 30.0
_OUTCOME_TIMEOUT_S = 5.0
_OUTCOME_CHECK_S = 0.1
_SUBJECT_CHARS = 200
_UNCONFIRMED_S = 1.0
"""A shared database that was not asked for longer may have a key that is not known here yet."""
_CLOCKS_DIFFER_S = 60.0
"""How far the clocks of two machines may be apart for each to see what the other stored."""
_ABOUT_CLIENTS = frozenset({"add", "import", "add_client", "set_client", "remove_client"})
"""The changes whose subject is the name of a client; that of all others is the id of a key."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class KeyOwner:
    """The id of a key, and the client it belongs to."""

    key_id: str
    client: str


class KeyCounts(NamedTuple):
    """How many keys live."""

    active: int
    retiring: int
    next_end_s: float | None
    """The Unix time at which the first of the retiring ones ends."""


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """The ring at one generation; replaced as a whole, by one assignment."""

    mark: RingMark
    keys: dict[str, KeyInfo]
    """By id."""
    digests: dict[str, bytes]
    """By the id of the key."""
    live: set[bytes]
    """The digests of the live keys."""
    ends_s: dict[str, float]
    """When each retiring key ends, by its id."""
    owners: dict[bytes, KeyOwner]
    """The owner of every key by its digest, the dead ones too."""
    clients: dict[str, Client]
    """By name; also those that were removed."""

    @classmethod
    def of(cls, ring: StoredRing) -> _Snapshot:
        return cls(ring.mark, {}, {}, set(), {}, {}, {}).updated(ring)

    def updated(self, ring: StoredRing) -> _Snapshot:
        """Return the ring with these clients and keys as they are now.

        A change copies tables, which takes well under a millisecond; to decode and build all of a large
        ring anew would hold up the event loop.
        """
        new = _Snapshot(
            ring.mark,
            self.keys | {key.id: key for key in ring.keys},
            self.digests | {key_id: bytes.fromhex(digest_hex) for key_id, digest_hex in ring.digests.items()},
            self.live.copy(),
            self.ends_s.copy(),
            self.owners.copy(),
            self.clients | {client.name: client for client in ring.clients},
        )
        for key in ring.keys:
            key_digest = new.digests[key.id]
            new.owners[key_digest] = KeyOwner(key.id, key.client)
            new.live.discard(key_digest)
            new.ends_s.pop(key.id, None)
            if key.state in LIVE_STATES:
                new.live.add(key_digest)
                if key.expires_at is not None:
                    new.ends_s[key.id] = epoch_s(key.expires_at)
        new._forget_oldest()
        return new

    def _forget_oldest(self) -> None:
        """Keep as many dead keys and removed clients as are loaded at the start."""
        if len(self.keys) - len(self.live) > DEAD_KEYS_SHOWN:
            dead = [key for key in self.keys.values() if key.state not in LIVE_STATES]
            for key in sorted(dead, key=_ended_at)[:-DEAD_KEYS_SHOWN]:
                del self.keys[key.id], self.owners[self.digests.pop(key.id)]
        removed = [client for client in self.clients.values() if client.removed_at is not None]
        for client in sorted(removed, key=lambda client: client.removed_at or "")[:-REMOVED_CLIENTS_SHOWN]:
            del self.clients[client.name]


def _ended_at(key: KeyInfo) -> str:
    return max(key.expires_at or "", key.revoked_at or "")


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
            EngineError, StateDamaged: it can't be read.
        """
        self._writer = writer
        self._database = database
        self._directory = directory
        self._clock = clock
        self._uses = _KeyUses()
        self._ended: dict[str, str] = {}
        """The ends of keys that were seen to pass, until the disk has it: a clock set back must not revive
        them. Another instance may have moved such an end without this one knowing yet."""
        self.expiry_task = Task("expired keys", 1.0, self.store_expired)
        self.on_change: Callable[[], None] = lambda: None
        """Called when `agreed_generation` has changed, on the writer's or the follower's thread; quick."""
        self.on_cut: Callable[[Sequence[str]], None] = lambda _: None
        """Called with the ids of keys whose open streams end, on the same threads; must be quick."""
        self._adopting = threading.Lock()
        """Held for moments, by the writer's thread and the follower's."""
        self._refused: str | None = None
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
        self.stale_after_s = math.inf
        """How long keys are verified from memory while a shared database can't be asked."""
        self._confirmed_at = time.monotonic()
        self._is_in_doubt = False

    def confirm(self, seen_at: float) -> None:
        """Note that a shared database had no newer ring than this one, at a monotonic time."""
        self._confirmed_at = seen_at
        self._is_in_doubt = False

    def doubt(self) -> None:
        """Note that a shared database can't be asked: a key unknown here may have been made elsewhere."""
        self._is_in_doubt = True

    @property
    def is_stale(self) -> bool:
        """Whether a shared database has not been asked for too long to go on."""
        return time.monotonic() - self._confirmed_at > self.stale_after_s

    @property
    def _may_be_elsewhere(self) -> bool:
        """Whether the database may have a key that is unknown here."""
        if self._is_in_doubt:
            return True
        return self._database.is_shared and time.monotonic() - self._confirmed_at > _UNCONFIRMED_S

    def verify(self, presented: bytes) -> KeyOwner | None:
        """Return the owner of a valid key, else None. Takes equally long for every wrong key.

        Raises:
            RingStale: what is in memory does not tell, and a shared database can't be asked.
        """
        if self.is_stale:
            raise RingStale(
                f"The database could not be asked for more than {self.stale_after_s:g} s "
                "(state.stale_after_s), so no key is accepted."
            )
        theirs, snapshot = digest(presented), self._snapshot
        # Every live digest is compared, in constant time, whether or not one has matched already.
        is_known = sum(map(hmac.compare_digest, snapshot.live, repeat(theirs))) > 0
        self._note_expired()
        if not is_known:
            if presented and theirs not in snapshot.owners and self._may_be_elsewhere:
                raise RingStale("The database cannot be asked, and the key is not one that is known here.")
            return None
        owner = snapshot.owners[theirs]
        return None if self._has_expired(owner.key_id) else owner

    def former_owner(self, presented: bytes) -> KeyOwner | None:
        """Return the owner of a key that `verify` refused: for the record, never for the answer."""
        return self._snapshot.owners.get(digest(presented))

    def find(self, key_digest: bytes) -> KeyInfo | None:
        """Return the key with this digest, if it is one of `keys`."""
        owner = self._snapshot.owners.get(key_digest)
        return None if owner is None else next((key for key in self.keys() if key.id == owner.key_id), None)

    def record_use(self, key_id: str, ip: str) -> None:
        """Record that a key admitted a request from this address; it is on disk within 5 s."""
        self._uses.record(key_id, utc_text(self._clock()), storable_text(ip))

    def keys(self) -> list[KeyInfo]:
        """Return all live keys and the last 100 dead ones, oldest first, with their latest use."""
        expired = self._find_expired()
        keys = sorted(self._snapshot.keys.values(), key=lambda key: (key.created_at, key.id))
        return [
            replace(key, state=KeyState.EXPIRED) if key.id in expired else key
            for key in self._uses.shown(keys)
        ]

    def counts(self) -> KeyCounts:
        """Count the live keys, without a look at each."""
        expired, snapshot = self._find_expired(), self._snapshot
        ends_s = [end_s for key_id, end_s in snapshot.ends_s.items() if key_id not in expired]
        return KeyCounts(len(snapshot.live) - len(snapshot.ends_s), len(ends_s), min(ends_s, default=None))

    def client(self, name: str) -> Client | None:
        """Return a client with its bounds, unless there is none with this name."""
        client = self._snapshot.clients.get(name)
        return None if client is None or client.removed_at is not None else client

    def clients(self) -> list[Client]:
        """Return all clients, and the last 100 removed ones, by name."""
        return sorted(self._snapshot.clients.values(), key=lambda client: client.name)

    @property
    def generation(self) -> int:
        """Return how often the ring has changed."""
        return self._snapshot.mark.generation

    @property
    def agreed_generation(self) -> int:
        """Return the same, if the ring in force here is one that the database has or had; else -1."""
        return self.generation if self._refused is None else -1

    @property
    def mark(self) -> RingMark:
        """Return the last change of the ring that is in force here."""
        return self._snapshot.mark

    @property
    def error(self) -> str | None:
        """Return why the ring in the database is not taken, as a sentence; None if it is."""
        return self._refused

    def ensure_initial_key(self, authorization_key: str | None) -> InitialKey:
        """Give an empty ring its first key: the given one, or a new one. Blocks; call it at start.

        Raises:
            BadChange: the given key is too short, or mistyped.
            RingUnavailable: the disk refuses.
        """

        def work(transaction: Transaction) -> InitialKey:
            had_keys = self._directory.generation > 0
            self._check_successor(transaction)
            initial = ensure_initial_key(transaction, authorization_key, self._clock(), had_keys=had_keys)
            self._adopt_after_commit(transaction, [DEFAULT_CLIENT])
            return initial

        try:
            return self._writer.submit(work).result(_START_TIMEOUT_S)
        except (EngineError, StateError, TimeoutError) as error:
            raise RingUnavailable(f"The first key could not be written to disk. {_told(error)}") from error

    async def add(self, client: str, *, caller: Caller) -> KeyChangeResult:
        """Make a key for a client that has no active one (1 to 64 of A-Z a-z 0-9 . _ -)."""
        return await self._change_key("add", client, "", add, caller)

    async def import_key(self, client: str, given: str, *, caller: Caller) -> KeyChangeResult:
        """Let a client that has no active key use a key of the operator's own; the result has no secret."""
        parameters = f" {fingerprint(digest(given.encode()))}"
        change = await self._change_key("import", client, parameters, partial(add, given=given), caller)
        return replace(change, secret=None)

    async def rotate(self, key_id: str, *, grace_s: float, caller: Caller) -> KeyChangeResult:
        """Make a new active key for the client of this active one, which works on until its grace ends."""
        parameters = f" grace {seconds(grace_s)} s"
        return await self._change_key("rotate", key_id, parameters, partial(rotate, grace_s=grace_s), caller)

    async def extend(self, key_id: str, *, by_s: float, caller: Caller) -> KeyChangeResult:
        """Move the end of a retiring key later by this many seconds."""
        return await self._change_key(
            "extend", key_id, f" by {seconds(by_s)} s", partial(extend, by_s=by_s), caller
        )

    async def undo(self, key_id: str, *, caller: Caller) -> KeyChangeResult:
        """Make a retiring key active again and revoke its replacement; `key_id` names either."""
        return await self._change_key("undo", key_id, "", undo, caller)

    async def revoke(self, key_id: str, *, cut: bool, caller: Caller) -> KeyChangeResult:
        """End a live key now, for good; with `cut`, `on_cut` ends its streams in every instance."""
        return await self._change_key(
            "revoke", key_id, " and cut" if cut else "", partial(revoke, cut=cut), caller
        )

    async def add_client(
        self, name: str, bounds: Mapping[str, object], *, caller: Caller
    ) -> ClientChangeResult:
        """Make a client with these bounds (fields of `Client` by name) and its first key."""
        rule = partial(add_client, bounds=bounds)
        return await self._change_client("add_client", name, _canonical(bounds), rule, caller)

    async def set_client(
        self, name: str, changes: Mapping[str, object], *, caller: Caller
    ) -> ClientChangeResult:
        """Change the note or bounds of a client; None removes a bound."""
        rule = partial(set_client, changes=changes)
        return await self._change_client("set_client", name, _canonical(changes), rule, caller)

    async def remove_client(self, name: str, *, cut: bool, caller: Caller) -> ClientChangeResult:
        """Remove a client and revoke its keys; `cut` as for `revoke`, also for keys that ended before."""
        rule = partial(remove_client, cut=cut)
        return await self._change_client("remove_client", name, " and cut" if cut else "", rule, caller)

    async def _change_key(
        self, action: str, subject: str, parameters: str, rule: Rule, caller: Caller
    ) -> KeyChangeResult:
        change = await self._change(action, subject, parameters, rule, caller)
        return msgspec.convert(change, KeyChangeResult, from_attributes=True)

    async def _change_client(
        self, action: str, name: str, parameters: str, rule: Rule, caller: Caller
    ) -> ClientChangeResult:
        change = await self._change(action, name, parameters, rule, caller)
        return msgspec.convert(change, ClientChangeResult, from_attributes=True)

    async def _change(self, action: str, subject: str, parameters: str, rule: Rule, caller: Caller) -> Change:
        request = ChangeRequest(action, subject, f"{action} {subject}{parameters}", rule, caller)
        tried: list[tuple[Transaction, Change]] = []

        def apply(transaction: Transaction) -> Change:
            tried.append((transaction, self._apply(request, transaction)))
            return tried[-1][1]

        try:
            return await asyncio.wrap_future(self._writer.submit(apply))
        except RingError as refusal:
            await self._audit_refusal(request, refusal)
            raise
        except (EngineError, StateError) as error:
            if isinstance(error, EngineError) and error.fault is Fault.UNKNOWN:
                transaction, change = tried[-1]
                if await self._is_committed(transaction, error):
                    return change
            _log.error("A %s of %s could not be written to disk: %s", action, subject[:64], error)
            unavailable = RingUnavailable(
                f"The change could not be written to disk; nothing is changed. {_told(error)}"
            )
            await self._audit_refusal(request, unavailable)
            raise unavailable from error

    async def _is_committed(self, transaction: Transaction, error: EngineError) -> bool:
        """Wait until it is known what became of a change whose commit got no answer.

        Raises:
            OutcomeUnknown: it is not known in time.
        """
        end_s = time.monotonic() + _OUTCOME_TIMEOUT_S
        while transaction.is_committed is None:
            if time.monotonic() > end_s:
                raise OutcomeUnknown(str(error.told)) from error
            with suppress(EngineError):
                await asyncio.wrap_future(self._writer.call(partial(self._database.resolve, transaction)))
            await asyncio.sleep(_OUTCOME_CHECK_S)
        return transaction.is_committed

    def _apply(self, request: ChangeRequest, transaction: Transaction) -> Change:
        self._check_successor(transaction)
        change = apply_change(transaction, request, self._clock(), self._find_expired())
        self._adopt_after_commit(transaction, [storable_text(request.subject)])
        return change

    def _adopt_after_commit(self, transaction: Transaction, subjects: Collection[str]) -> None:
        # On the writer's thread, right after the commit: so memory and disk stay together also when the
        # caller was cancelled meanwhile.
        ring = load_ring(transaction.connection, subjects, since=self.generation)
        transaction.after_commit.append(partial(self._adopt, ring))
        transaction.connection.notify()

    def _adopt(self, ring: StoredRing) -> None:
        """Take what was loaded since a generation in force here; do nothing if that is older by now."""
        with self._adopting:
            before = self._snapshot.mark
            if ring.generation <= before.generation and ring.mark != before:
                return
            self._snapshot = self._snapshot.updated(ring)
            self._directory.note_generation(ring.generation)
        # The other thread may have been told of some of them.
        cut = [key_id for key_id, generation in ring.cut.items() if generation > before.generation]
        if cut:
            self.on_cut(cut)
        if ring.mark != before:
            self.on_change()

    def _check_successor(self, transaction: Transaction) -> None:
        """Do nothing if the ring in the database is the one in force here, or a later one.

        A standby that lost commits, or a backup that was restored, would make revoked keys valid again.

        Raises:
            StateReplaced: it is not.
        """
        transaction.lock()
        # In this order: it may become newer meanwhile.
        known = self.mark
        found = ring_mark(transaction.connection)
        if not self._is_successor(transaction.connection, found, known):
            raise _replaced(found, known)

    def _is_successor(self, connection: Connection, found: RingMark, known: RingMark) -> bool:
        if found.generation <= known.generation or known.changed_at is None:
            return found == known or found.generation > known.generation
        # Others may have gone on from an older ring. The audit tells, as far back as it goes.
        is_forgotten = known.changed_at < utc_text(self._clock() - (AUDIT_DAYS - 1) * 86_400)
        return is_forgotten or has_change(connection, known)

    def follow(self, connection: Connection, known: RingMark, found: RingMark) -> None:
        """Adopt what other instances changed; on the follower's thread.

        Args:
            connection: the follower's.
            known: the ring that was in force here before the disk was looked at.
            found: the ring on disk.

        Raises:
            EngineError, StateDamaged: it can't be read.
        """
        seen_at = time.monotonic()
        if not self._is_successor(connection, found, known):
            # It was asked; but others may have taken its ring, and made keys since.
            self._is_in_doubt = True
            self._confirmed_at = seen_at
            was_refused = self._refused is not None
            self._refused = str(_replaced(found, known))
            if not was_refused:
                _log.error("%s", self._refused)
                self.on_change()
            return
        if found.generation > self.generation:
            self._adopt(load_ring(connection, (), since=known.generation))
        if self._refused is not None:
            _log.warning("The database has the key ring that is in force here again, or a later one")
            self._refused = None
            self.on_change()
        self.confirm(seen_at)

    async def _audit_refusal(self, request: ChangeRequest, refusal: RingError) -> None:
        """Record the refusal if the disk allows it.

        After a failed commit this also overwrites what it may have left in the WAL, which a crash could
        bring back.
        """
        subject = storable_text(request.subject[:_SUBJECT_CHARS])
        is_client = request.action in _ABOUT_CLIENTS
        known = self._snapshot.keys.get(subject)
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
        except (EngineError, StateError) as error:
            _log.error("A refused %s of %s could not be audited: %s", request.action, subject[:64], error)

    # Tasks of the writer.

    def store_uses(self) -> None:
        """Write the uses of keys since the last call to disk.

        Raises:
            EngineError: nothing is written; the next call tries again.
        """
        self._uses.store(self._database)

    def load_uses(self, connection: Connection) -> None:
        """Read how keys were used through other instances; on the follower's thread.

        Raises:
            EngineError: it can't be read.
        """
        self._uses.join(load_uses(connection, self._uses.newest_at(_CLOCKS_DIFFER_S)))

    def store_expired(self) -> None:
        """Store expired keys as expired, so that a clock that is set back cannot revive them.

        Raises:
            EngineError: nothing is written; the next call tries again.
        """
        self._note_expired()
        ended = self._ended.copy()
        if ended:
            with self._database.transaction(durable=True) as transaction:
                transaction.lock()
                mark_expired(transaction.connection, ended)
                self._adopt_after_commit(transaction, ended)
            for key_id in ended:
                self._ended.pop(key_id, None)

    def _find_expired(self) -> dict[str, str]:
        """Return the ends of the live keys that have expired by now, or had before the clock was set back."""
        self._note_expired()
        return {key_id: end for key_id, end in self._ended.copy().items() if self._has_expired(key_id)}

    def _has_expired(self, key_id: str) -> bool:
        """Return whether the end that a key has now was seen to pass."""
        key, seen = self._snapshot.keys.get(key_id), self._ended.get(key_id)
        return bool(key and key.expires_at and seen and key.expires_at <= seen)

    def _note_expired(self) -> None:
        now_s, snapshot = self._clock(), self._snapshot
        for key_id, end_s in snapshot.ends_s.items():
            if end_s <= now_s and not self._has_expired(key_id):
                self._ended[key_id] = snapshot.keys[key_id].expires_at or ""
                self._writer.wake(self.expiry_task)


def _replaced(found: RingMark, known: RingMark) -> StateReplaced:
    return StateReplaced(
        f"The database came back with another key ring (generation {found.generation}, "
        f"{found.changed_at or 'no change'}) than the one in force here (generation {known.generation}, "
        f"{known.changed_at or 'no change'}): it lost changes, or a backup was restored. The keys in force "
        "here stay so, and can't be changed, until the lost changes are back; to accept the ring of the "
        "database as it is, restart all instances and look at `relayd keys list`."
    )


def _told(error: Exception) -> str:
    return str(error.told if isinstance(error, EngineError) else error)


def _canonical(changes: Mapping[str, object]) -> str:
    """Return the same text for the same changes."""
    return f" {msgspec.json.encode(changes, order='sorted').decode()}"


class _KeyUses:
    """First and last use of each key since the start: in memory at once, on disk a little later."""

    def __init__(self) -> None:
        # The event loop records, the writer's thread stores, the follower's joins; the lock is held for
        # moments only.
        self._lock = threading.Lock()
        self._uses: dict[str, KeyUse] = {}
        self._unwritten: dict[str, KeyUse] = {}

    def record(self, key_id: str, at: str, ip: str) -> None:
        use = KeyUse(at, ip, at, ip)
        with self._lock:
            for uses in (self._uses, self._unwritten):
                first = uses.get(key_id, use)
                uses[key_id] = KeyUse(first.first_used_at, first.first_used_ip, at, ip)

    def join(self, others: Mapping[str, KeyUse]) -> None:
        """Take what is on disk."""
        with self._lock:
            for key_id, use in others.items():
                self._uses[key_id] = self._uses.get(key_id, use).joined(use)

    def newest_at(self, before_s: float) -> str:
        """Return the UTC time so many seconds before the newest use; empty if there is none."""
        with self._lock:
            newest = max((use.last_used_at for use in self._uses.values()), default="")
        return utc_text(epoch_s(newest) - before_s) if newest else ""

    def shown(self, keys: Iterable[KeyInfo]) -> Iterator[KeyInfo]:
        """Yield the keys with their latest use, also if the disk does not have it yet."""
        with self._lock:
            uses = self._uses.copy()
        for key in keys:
            use = uses.get(key.id)
            if use is None:
                yield key
                continue
            if key.first_used_at is not None and key.last_used_at is not None:
                stored = KeyUse(
                    key.first_used_at, key.first_used_ip or "", key.last_used_at, key.last_used_ip or ""
                )
                use = stored.joined(use)
            yield replace(key, **asdict(use))

    def store(self, database: Database) -> None:
        with self._lock:
            unwritten, self._unwritten = self._unwritten, {}
        if not unwritten:
            return
        try:
            with database.transaction(durable=False) as transaction:
                # Before the rows of keys, which a change of keys locks too.
                transaction.lock()
                store_uses(transaction.connection, unwritten)
        except BaseException:
            with self._lock:
                for key_id, use in unwritten.items():
                    self._unwritten[key_id] = use.joined(self._unwritten.get(key_id, use))
            raise
