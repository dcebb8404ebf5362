"""One change of keys or clients, decided and stored in one transaction with its audit row.

The first change is made without an operator: the key of an empty ring.
"""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial

import msgspec
from msgspec.structs import replace

from relayd.state.audit import append_audit, recall, remember
from relayd.state.columns import storable_text
from relayd.state.database import Transaction
from relayd.state.engine import Connection
from relayd.state.errors import BadChange, GenerationMismatch, WrongState
from relayd.state.key_store import (
    advance,
    cut_client,
    cut_key,
    find_by_digest,
    insert_key,
    load_ring,
    mark_expired,
    store_client,
    update_key,
)
from relayd.state.keys import digest
from relayd.state.records import (
    LIVE_STATES,
    AuditEntry,
    ChangeResult,
    Client,
    KeyInfo,
    KeyState,
    Peer,
    utc_text,
)
from relayd.state.transitions import DEFAULT_CLIENT, Decision, NewKey, Rule, StoredRing, fill


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks for a change, and under which conditions."""

    peer: Peer
    expected_generation: int | None = None
    """The generation of the ring on which the caller decided; None: any."""
    idempotency_key: str | None = None
    """Under the same key nothing happens twice; 1 to 200 visible ASCII characters."""


@dataclass(frozen=True, slots=True)
class ChangeRequest:
    """A change that a caller wants."""

    action: str
    subject: str
    """The name of a client, or the id of a key; text from outside."""
    parameters: str
    """All that makes this change differ from another, as text."""
    rule: Rule
    caller: Caller


class Change(ChangeResult, frozen=True, kw_only=True):
    """A change that is stored. An idempotency key remembers all of it but the secret."""

    generation: int
    key: KeyInfo | None
    old: KeyInfo | None
    client: Client | None = None
    revoked: tuple[str, ...] = ()
    secret: str | None = None
    already_done: bool = False


_change = msgspec.json.Decoder(Change)


def apply_change(
    transaction: Transaction, request: ChangeRequest, now_s: float, expired: Mapping[str, str]
) -> Change:
    """Decide and store a change.

    Args:
        transaction: stores the change whole or not at all.
        request: the change.
        now_s: the Unix time.
        expired: the ends of retiring keys that have expired, by id, also if the clock was set back since.

    Raises:
        RingError: the change is refused; roll back.
        EngineError: the disk refused; roll back.
    """
    connection, subject = transaction.connection, storable_text(request.subject)
    transaction.lock()
    done = _done_before(connection, request)
    if done is not None:
        return done
    mark_expired(connection, expired)
    ring = load_ring(connection, [subject])
    _check_generation(ring, request.caller.expected_generation)
    return _store(transaction, request, request.rule(ring, subject, now_s), ring.generation, utc_text(now_s))


def _done_before(connection: Connection, request: ChangeRequest) -> Change | None:
    key = request.caller.idempotency_key
    reply = None if key is None else recall(connection, key, request.parameters)
    return None if reply is None else replace(_change.decode(reply), already_done=True)


def _check_generation(ring: StoredRing, expected: int | None) -> None:
    if expected is None or expected == ring.generation:
        return
    change = f" ({ring.change} by {ring.changed_by} at {ring.changed_at})" if ring.changed_by else ""
    raise GenerationMismatch(
        f"The keys have changed: you saw generation {expected}, and it is {ring.generation} "
        f"now{change}. Look at the keys again before you repeat the change.",
        expected=expected,
        actual=ring.generation,
    )


def _require_unknown(connection: Connection, made: NewKey, now: str) -> None:
    """Refuse a given key that the ring has, or ever had: a dead key never comes back."""
    known = find_by_digest(connection, digest(made.secret.encode()))
    if known is not None:
        raise WrongState(
            f"This key is known already: it is {known.id} of client '{known.client}' and "
            f"{known.as_of(now).state}."
        )


def _store(
    transaction: Transaction, request: ChangeRequest, decision: Decision, generation: int, now: str
) -> Change:
    connection, caller = transaction.connection, request.caller
    generation = advance(connection, generation, now, caller.peer, request.action)
    for key in decision.changed:
        update_key(connection, key, generation)
    if decision.cut and decision.key is not None:
        cut_key(connection, decision.key.id, generation)
    if decision.client is not None:
        store_client(connection, decision.client, generation)
        if decision.cut:
            cut_client(connection, decision.client.name, generation)
        if decision.client.removed_at is not None:
            connection.execute("DELETE FROM stored_objects WHERE client = ?", (decision.client.name,))
    if decision.made is not None:
        _require_unknown(connection, decision.made, now)
        insert_key(connection, decision.made, generation)
    change = Change(
        generation=generation,
        key=_as_of(decision.key, now),
        old=_as_of(decision.old, now),
        client=decision.client,
        revoked=tuple(key.id for key in decision.changed if key.state is KeyState.REVOKED),
    )
    if caller.idempotency_key is not None:
        reply = msgspec.json.encode(change).decode()
        remember(connection, caller.idempotency_key, request.parameters, reply, now)
    entry = AuditEntry(
        at=now,
        action=request.action,
        result="done",
        generation=change.generation,
        client=decision.client_name,
        key_ids=tuple(key.id for key in (change.key, change.old) if key is not None) or change.revoked,
        detail=decision.detail,
    )
    append_audit(transaction, caller.peer, entry)
    return change if decision.made is None else replace(change, secret=decision.made.secret)


def _as_of(key: KeyInfo | None, now: str) -> KeyInfo | None:
    return None if key is None else key.as_of(now)


class InitialKeyOutcome(StrEnum):
    """What the start found and did."""

    STORED = "stored"
    """The ring was empty and took the given key."""
    MADE = "made"
    """The ring was empty and no key was given: a first one was made; show its secret once."""
    KEPT = "kept"
    """The ring had keys, and none was given or the given one is among the live ones."""
    LOST = "lost"
    """The ring once had keys and is empty: it stays so, the note says how to get a key."""
    IGNORED = "ignored"
    """The ring had keys, and the given one is not live: it is ignored, the note says why."""


@dataclass(frozen=True, slots=True)
class InitialKey:
    """The result of `KeyRing.ensure_initial_key`."""

    outcome: InitialKeyOutcome
    key: KeyInfo | None = None
    secret: str | None = field(default=None, repr=False)
    note: str | None = None
    """A sentence for the log."""
    unused: KeyInfo | None = None
    """An active key, if no key was ever used: its secret may have been lost."""


def ensure_initial_key(
    transaction: Transaction, given: str | None, now_s: float, *, had_keys: bool
) -> InitialKey:
    """Put a first key into an empty ring, with its audit row; compare the given key with a filled one.

    Args:
        transaction: a durable one.
        given: a key that the operator brought along.
        now_s: the Unix time.
        had_keys: whether the ring was filled before, although it may be empty now.

    Raises:
        BadChange: the ring is empty and the given key can't be one.
        EngineError: the disk refused; roll back.
    """
    connection, now = transaction.connection, utc_text(now_s)
    transaction.lock()
    ring = load_ring(connection)
    if ring.keys:
        return _compare(transaction, ring, given, now)
    if had_keys or ring.generation:
        return InitialKey(
            InitialKeyOutcome.LOST,
            note="The key ring had keys and is empty now: no key works, and AUTHORIZATION_KEY is not taken "
            f"again. Put a backup in its place, or make a key: relayd keys add {DEFAULT_CLIENT}",
        )
    request = ChangeRequest("fill", DEFAULT_CLIENT, "fill", partial(fill, given=given), Caller(own_peer()))
    try:
        change = apply_change(transaction, request, now_s, {})
    except BadChange as error:
        raise BadChange(f"AUTHORIZATION_KEY can't be used: {error}") from error
    if given is None:
        return InitialKey(InitialKeyOutcome.MADE, change.key, change.secret)
    return InitialKey(InitialKeyOutcome.STORED, change.key)


def own_peer() -> Peer:
    """Return this process, as the author of what the daemon does without an operator."""
    uid = os.getuid()
    try:
        login = pwd.getpwuid(uid).pw_name
    except KeyError:
        login = str(uid)
    return Peer(uid, os.getpid(), login)


def _compare(transaction: Transaction, ring: StoredRing, given: str | None, now: str) -> InitialKey:
    unused = None
    if all(key.first_used_at is None for key in ring.keys):
        unused = next((key for key in ring.keys if key.state is KeyState.ACTIVE), None)
    if given is None:
        return InitialKey(InitialKeyOutcome.KEPT, unused=unused)
    known = find_by_digest(transaction.connection, digest(given.encode()))
    if known is None:
        return InitialKey(
            InitialKeyOutcome.IGNORED,
            note="AUTHORIZATION_KEY is not in the key ring and is ignored: the stored keys take precedence. "
            "Change keys with `relayd keys`.",
            unused=unused,
        )
    key = known.as_of(now)
    if key.state in LIVE_STATES:
        until = f"AUTHORIZATION_KEY is key {key.id}; it is retiring and works until {key.expires_at}."
        return InitialKey(InitialKeyOutcome.KEPT, key, note=until if key.state is KeyState.RETIRING else None)
    return InitialKey(
        InitialKeyOutcome.IGNORED,
        key,
        note=f"AUTHORIZATION_KEY is key {key.id}, {key.state} since {key.revoked_at or key.expires_at}: it "
        "no longer works and is ignored. Remove it from the environment.",
    )
