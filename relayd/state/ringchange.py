"""One change of the ring, decided and stored in one transaction with its audit row."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import msgspec

from relayd.state.audit import new_entry
from relayd.state.errors import BadChange, GenerationMismatch, IdempotencyMismatch, RingError
from relayd.state.records import KeyInfo, KeyState, Peer, utc_text
from relayd.state.ringrules import Decision, Moment, Rule
from relayd.state.ringstore import (
    DEAD_KEYS_SHOWN,
    StoredKey,
    StoredRing,
    advance,
    find_key,
    load_ring,
    store_key,
)
from relayd.state.stored import storable_text
from relayd.state.transactor import Tx

_IDEMPOTENCY_KEY = re.compile(r"[!-~]{1,200}")
_SUBJECT_CHARS = 200


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


@dataclass(frozen=True, slots=True)
class Ask:
    """A change that someone wants."""

    action: str
    subject: str
    """The client of an `add`, the key id of all others."""
    parameters: str
    """All that makes this change differ from another, as text."""
    rule: Rule
    peer: Peer
    expected_generation: int | None
    idempotency_key: str | None


@dataclass(frozen=True, slots=True)
class Settled:
    """How it ended: the ring that is on disk now, and the change or the refusal."""

    ring: StoredRing
    change: RingChange | None = None
    refusal: RingError | None = None


class _Reply(msgspec.Struct, frozen=True):
    """What an idempotency key remembers: never a secret."""

    generation: int
    key: KeyInfo
    old: KeyInfo | None


_reply = msgspec.json.Decoder(_Reply)


class RingJob:
    """Does one `Ask` in a transaction; `refusal` is known even when its audit row can't be stored."""

    def __init__(
        self,
        ask: Ask,
        clock: Callable[[], float],
        known: Callable[[], StoredRing],
        expired: AbstractSet[str],
    ) -> None:
        self._ask = ask
        self._known = known
        # From outside: what SQLite could not take must not break the transaction.
        self._subject = storable_text(ask.subject[:_SUBJECT_CHARS])
        self._parameters = storable_text(ask.parameters)
        self._clock = clock
        self._expired = expired
        self.refusal: RingError | None = None

    def __call__(self, tx: Tx) -> Settled:
        """Decide and store.

        Raises:
            sqlite3.Error: nothing is stored.
        """
        ring = with_expired(self._current(tx.connection), self._expired)
        now_s = self._clock()
        try:
            done = self._done_before(tx.connection)
            if done is not None:
                return Settled(ring, change=done)
            self._check_generation(ring)
            moment = Moment(ring, now_s, lambda key_id: find_key(tx.connection, "id", key_id))
            decision = self._ask.rule(moment, self._subject)
        except RingError as refusal:
            self.refusal = refusal
            self._audit_refusal(tx, ring, refusal, now_s)
            return Settled(ring, refusal=refusal)
        return self._store(tx, ring, decision, utc_text(now_s))

    def _current(self, connection: sqlite3.Connection) -> StoredRing:
        """The ring on disk: the known one, unless another process has changed it."""
        known = self._known()
        row = connection.execute("SELECT generation FROM ring").fetchone()
        return known if row == (known.generation,) else load_ring(connection)

    def _done_before(self, connection: sqlite3.Connection) -> RingChange | None:
        key = self._ask.idempotency_key
        if key is None:
            return None
        if not _IDEMPOTENCY_KEY.fullmatch(key):
            raise BadChange("An Idempotency-Key has 1 to 200 visible ASCII characters.")
        row = connection.execute("SELECT change, reply FROM idempotency WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        if row[0] != self._parameters:
            raise IdempotencyMismatch(
                f"This Idempotency-Key was used for another change ({row[0]}); each change needs a new one."
            )
        reply = _reply.decode(row[1])
        return RingChange(reply.generation, reply.key, reply.old, already_done=True)

    def _check_generation(self, ring: StoredRing) -> None:
        expected = self._ask.expected_generation
        if expected is None or expected == ring.generation:
            return
        who = f" ({ring.change} by {ring.changed_by} at {ring.changed_at})" if ring.changed_by else ""
        raise GenerationMismatch(
            f"The ring has moved on: you decided on generation {expected}, it is at {ring.generation} "
            f"now{who}. Look at the keys again, then repeat what is still right.",
            expected=expected,
            actual=ring.generation,
        )

    def _store(self, tx: Tx, ring: StoredRing, decision: Decision, now: str) -> Settled:
        ask = self._ask
        for key in decision.store:
            store_key(tx.connection, key)
        generation = advance(tx.connection, ring.generation, now, ask.peer, ask.action)
        shown, old = decision.key.info(now), None if decision.old is None else decision.old.info(now)
        if ask.idempotency_key is not None:
            reply = msgspec.json.encode(_Reply(generation, shown, old)).decode()
            tx.connection.execute(
                "INSERT INTO idempotency (key, change, reply, created_at) VALUES (?, ?, ?, ?)",
                (ask.idempotency_key, self._parameters, reply, now),
            )
        key_ids = (shown.id,) if old is None else (shown.id, old.id)
        entry = new_entry(ask.action, "done", ask.peer, now, generation)
        tx.audit(msgspec.structs.replace(entry, client=shown.client, key_ids=key_ids, detail=decision.detail))
        after = with_changes(ring, decision.store, generation, now, ask)
        return Settled(after, change=RingChange(generation, shown, old, secret=decision.secret))

    def _audit_refusal(self, tx: Tx, ring: StoredRing, refusal: RingError, now_s: float) -> None:
        named = self._subject
        known = ring.key(named)
        is_client = self._ask.action == "add"
        entry = new_entry(self._ask.action, refusal.code, self._ask.peer, utc_text(now_s), ring.generation)
        tx.audit(
            msgspec.structs.replace(
                entry,
                client=named if is_client else None if known is None else known.client,
                key_ids=() if is_client else (named,),
                detail=str(refusal),
            )
        )


def with_expired(ring: StoredRing, expired: AbstractSet[str]) -> StoredRing:
    """The ring in which keys once seen expired stay so, even if the clock was set back since."""
    if not expired:
        return ring
    keys = [
        msgspec.structs.replace(key, state=KeyState.EXPIRED)
        if key.id in expired and key.state is KeyState.RETIRING
        else key
        for key in ring.keys
    ]
    return msgspec.structs.replace(ring, keys=keys)


def with_changes(
    ring: StoredRing, changed: tuple[StoredKey, ...], generation: int, now: str, ask: Ask
) -> StoredRing:
    """The ring after these keys were stored."""
    keys = {key.id: key for key in (*ring.keys, *changed)}
    dead = sorted((key for key in keys.values() if key.is_dead()), key=StoredKey.ended_at)
    for key in dead[:-DEAD_KEYS_SHOWN]:
        del keys[key.id]
    return StoredRing(
        generation=generation,
        changed_at=now,
        changed_by=ask.peer.login,
        change=ask.action,
        keys=list(keys.values()),
    )
