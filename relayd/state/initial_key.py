"""The first key of an empty ring, and what to say when a given key does not fit a filled one."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial

from relayd.state.database import Transaction
from relayd.state.errors import BadChange
from relayd.state.key_operations import Caller, ChangeRequest, apply_change
from relayd.state.key_store import find_by_digest, load_ring
from relayd.state.keys import digest
from relayd.state.records import LIVE_STATES, KeyInfo, KeyState, Peer, utc_text
from relayd.state.transitions import DEFAULT_CLIENT, StoredRing, fill


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
