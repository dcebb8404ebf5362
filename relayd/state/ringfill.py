"""The first key of an empty ring, and what to say when a given key does not fit a filled one."""

from __future__ import annotations

import os
import pwd
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum

import msgspec

from relayd.state.audit import new_entry
from relayd.state.errors import BadChange
from relayd.state.keys import ID_CHARS, MIN_GIVEN_CHARS, PREFIX, digest, looks_wrong, new_id
from relayd.state.records import KeyInfo, KeyState, Peer, utc_text
from relayd.state.ringrules import make_key
from relayd.state.ringstore import StoredKey, StoredRing, advance, find_key, load_ring, store_key
from relayd.state.transactor import Tx

DEFAULT_CLIENT = "default"
# What a header can carry as one word.
_GIVEN = re.compile(r"[!-~]*")


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


class FillJob:
    """Fills an empty ring in a transaction, with its audit row."""

    def __init__(self, given: str | None, clock: Callable[[], float]) -> None:
        self._given = given
        self._clock = clock

    def __call__(self, tx: Tx) -> tuple[StoredRing, FillResult]:
        """The ring after it, and what was done.

        Raises:
            BadChange: the ring is empty and the given key can't be one.
            sqlite3.Error: nothing is stored.
        """
        ring = load_ring(tx.connection)
        now = utc_text(self._clock())
        if ring.keys:
            return ring, self._compare(tx, now)
        if self._given is None:
            key, secret = make_key(DEFAULT_CLIENT, now)
            result = FillResult(Filled.MADE, key.info(now), secret)
        else:
            key = _given_key(self._given, now)
            result = FillResult(Filled.STORED, key.info(now))
        store_key(tx.connection, key)
        peer = own_peer()
        generation = advance(tx.connection, ring.generation, now, peer, "fill")
        entry = new_entry("fill", "done", peer, now, generation)
        tx.audit(
            msgspec.structs.replace(
                entry,
                client=key.client,
                key_ids=(key.id,),
                detail="the given key" if result.kind is Filled.STORED else "a new key",
            )
        )
        filled = msgspec.structs.replace(
            ring, generation=generation, changed_at=now, changed_by=peer.login, change="fill", keys=[key]
        )
        return filled, result

    def _compare(self, tx: Tx, now: str) -> FillResult:
        if self._given is None:
            return FillResult(Filled.KEPT)
        known = find_key(tx.connection, "digest", digest(self._given.encode()))
        if known is None:
            return FillResult(
                Filled.DIFFERS,
                note="AUTHORIZATION_KEY is not in the key ring and is ignored: the stored ring wins. "
                "Change keys with `relayd keys`.",
            )
        state = known.state_at(now)
        if known.is_live_at(now):
            until = f"; it is retiring and works until {known.expires_at}"
            return FillResult(
                Filled.KEPT,
                known.info(now),
                note=f"AUTHORIZATION_KEY is key {known.id}{until}." if state is KeyState.RETIRING else None,
            )
        when = known.revoked_at if state is KeyState.REVOKED else known.expires_at
        return FillResult(
            Filled.DIFFERS,
            known.info(now),
            note=f"AUTHORIZATION_KEY is key {known.id}, {state} since {when}: it stays dead and is ignored. "
            "Take it out of the environment.",
        )


def own_peer() -> Peer:
    """This process, as one who changes the ring."""
    uid = os.getuid()
    try:
        login = pwd.getpwuid(uid).pw_name
    except KeyError:
        login = str(uid)
    return Peer(uid, os.getpid(), login)


def _given_key(given: str, now: str) -> StoredKey:
    if len(given) < MIN_GIVEN_CHARS:
        raise BadChange(
            f"AUTHORIZATION_KEY has {len(given)} characters; at least {MIN_GIVEN_CHARS} are needed. Without "
            "one, relayd makes a key by itself."
        )
    if not _GIVEN.fullmatch(given):
        raise BadChange("AUTHORIZATION_KEY may only have visible ASCII characters and no spaces.")
    if looks_wrong(given.encode()):
        raise BadChange(
            f"AUTHORIZATION_KEY begins like a relayd key ({PREFIX}…), but its length or checksum is wrong: "
            "it was cut or mistyped."
        )
    ours = given.startswith(PREFIX)
    return StoredKey(
        id=given[len(PREFIX) : len(PREFIX) + ID_CHARS] if ours else new_id(),
        client=DEFAULT_CLIENT,
        digest_hex=digest(given.encode()).hex(),
        state=KeyState.ACTIVE,
        created_at=now,
    )
