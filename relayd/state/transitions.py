"""The rules for changes of keys and clients. Pure functions: a ring and a time in, what changes out.

    (none) --add--> active --rotate--> retiring --end of grace--> expired
                      ^                 |  |  ^
                      +------undo-------+  |  +-- extend
                    active or retiring --revoke--> revoked

A client has at most one active key and any number of retiring ones. Expired and revoked are final.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec
from msgspec.structs import replace

from relayd.state.bounds import describe, with_changes
from relayd.state.errors import BadChange, NoSuchClient, NoSuchKey, WrongState
from relayd.state.keys import (
    ID_CHARS,
    MAX_GIVEN_CHARS,
    MIN_GIVEN_CHARS,
    PREFIX,
    digest,
    fingerprint,
    looks_wrong,
    new_id,
    new_key,
)
from relayd.state.records import LIVE_STATES, Client, KeyInfo, KeyState, epoch_s, utc_text

DEFAULT_CLIENT = "default"
"""Exists from the start, for the first key."""
MAX_SPAN_S = 366 * 86_400
"""A grace or an extension beyond a year is a mistake."""
# Else it would be an option of a command, or a path that points elsewhere.
_CLIENT = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,63}")
# What a header can carry. The configuration takes the same keys, so that the start refuses none of them.
_GIVEN = re.compile(r"(?!(?i:bearer) )(?! )[ -~]*(?<! )")


class RingMark(NamedTuple):
    """The last change of a ring: two rings with the same one are the same."""

    generation: int
    changed_at: str | None
    changed_by: str | None
    change: str | None


class StoredRing(msgspec.Struct, frozen=True, kw_only=True):
    """The ring as it is on disk: every live key and client, and the ones that ended last; or what changed."""

    generation: int
    changed_at: str | None
    changed_by: str | None
    change: str | None
    keys: list[KeyInfo]
    digests: dict[str, str]
    """The SHA-256 of each key in hex, by key id."""
    clients: list[Client]
    cut: dict[str, int] = {}
    """The keys whose open streams end, and the generation of that; only of what changed."""

    @property
    def mark(self) -> RingMark:
        """The last change."""
        return RingMark(self.generation, self.changed_at, self.changed_by, self.change)

    def find(self, key_id: str | None) -> KeyInfo | None:
        """Return the key with this id."""
        return next((key for key in self.keys if key.id == key_id), None)

    def client(self, name: str) -> Client | None:
        """Return the client with this name, unless it was removed."""
        return next((one for one in self.clients if one.name == name and one.removed_at is None), None)

    def active(self, client: str) -> KeyInfo | None:
        """Return the active key of a client."""
        return next((key for key in self.keys if key.client == client and key.state is KeyState.ACTIVE), None)


@dataclass(frozen=True, slots=True)
class NewKey:
    """A key that is not stored yet, and its secret."""

    info: KeyInfo
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Decision:
    """What a rule decided: which keys change (stored in this order), which is made after that."""

    key: KeyInfo | None
    """The key that the change is about; None if it is about a client alone."""
    changed: tuple[KeyInfo, ...] = ()
    made: NewKey | None = None
    client: Client | None = None
    """The client that changes, is made or is removed."""
    old: KeyInfo | None = None
    detail: str | None = None
    """For people who read the audit."""
    cut: bool = False
    """Whether the open streams of the revoked key, or of the removed client, end."""

    @property
    def client_name(self) -> str | None:
        """The client whose keys or bounds change."""
        if self.key is not None:
            return self.key.client
        return None if self.client is None else self.client.name


Rule = Callable[[StoredRing, str, float], Decision]
"""A rule takes the ring, the id of a key or the name of a client, and the Unix time."""


def fill(ring: StoredRing, client: str, now_s: float, *, given: str | None) -> Decision:
    """Give an empty ring its first key: a new one, or the operator's own."""
    del ring
    made = make_key(client, now_s) if given is None else given_key(client, given, now_s)
    return Decision(made.info, made=made, detail="a new key" if given is None else "the given key")


def add(ring: StoredRing, client: str, now_s: float, *, given: str | None = None) -> Decision:
    """Give a client without an active key a new one, or the operator's own key; make an unknown client."""
    if (active := ring.active(client)) is not None:
        raise WrongState(f"Client '{client}' already has the active key {active.id}; rotate that one.")
    new = new_client(client, now_s) if ring.client(client) is None else None
    made = make_key(client, now_s) if given is None else given_key(client, given, now_s)
    return Decision(made.info, made=made, client=new, detail=None if given is None else "a given key")


def rotate(ring: StoredRing, key_id: str, now_s: float, *, grace_s: float) -> Decision:
    """Make a new active key; the old one retires after the grace."""
    if not 0 <= grace_s <= MAX_SPAN_S:
        raise BadChange("The grace is between 0 seconds and 366 days.")
    old = _live_key(ring, key_id, now_s)
    if old.state is not KeyState.ACTIVE:
        active = ring.active(old.client)
        hint = "add a key for it" if active is None else f"rotate its active key {active.id}"
        raise WrongState(f"Key {old.id} of client '{old.client}' is already retiring; {hint}.")
    made = make_key(old.client, now_s)
    # Rounded up to the millisecond that the text can hold, never down.
    end = utc_text(math.ceil((now_s + grace_s) * 1000) / 1000)
    retiring = replace(old, state=KeyState.RETIRING, expires_at=end, replaced_by=made.info.id)
    detail = f"grace {seconds(grace_s)} s, {old.id} works until {end}"
    return Decision(made.info, changed=(retiring,), made=made, old=retiring, detail=detail)


def extend(ring: StoredRing, key_id: str, now_s: float, *, by_s: float) -> Decision:
    """Move the end of a retiring key."""
    if not 0 < by_s <= MAX_SPAN_S:
        raise BadChange("An extension is more than 0 seconds and at most 366 days.")
    key = _live_key(ring, key_id, now_s)
    if key.state is not KeyState.RETIRING or key.expires_at is None:
        raise WrongState(f"Key {key.id} is active and has no end to extend.")
    end_s = epoch_s(key.expires_at) + by_s
    if end_s > now_s + MAX_SPAN_S:
        raise BadChange("A retiring key ends within 366 days.")
    longer = replace(key, expires_at=utc_text(end_s))
    return Decision(longer, changed=(longer,), detail=f"by {seconds(by_s)} s, until {longer.expires_at}")


def undo(ring: StoredRing, key_id: str, now_s: float) -> Decision:
    """Make the retiring key active again and revoke its replacement."""
    old = _key_to_restore(ring, key_id, now_s)
    active = ring.active(old.client)
    if active is not None and active.id != old.replaced_by:
        raise WrongState(
            f"Key {old.id} was replaced by {old.replaced_by}, but client '{old.client}' has the active key "
            f"{active.id} now. Undo or revoke that one first."
        )
    back = replace(old, state=KeyState.ACTIVE, expires_at=None, replaced_by=None)
    detail = f"{back.id} is active again"
    if active is None:
        return Decision(back, changed=(back,), old=ring.find(old.replaced_by), detail=detail)
    revoked = as_revoked(active, now_s)
    # The revoked one first: the client must not have two active keys at any point.
    return Decision(back, changed=(revoked, back), old=revoked, detail=detail)


def revoke(ring: StoredRing, key_id: str, now_s: float, *, cut: bool) -> Decision:
    """End a live key, now and for good."""
    key = as_revoked(_live_key(ring, key_id, now_s), now_s)
    detail = "its open streams are cut" if cut else "its open streams continue"
    return Decision(key, changed=(key,), detail=detail, cut=cut)


def add_client(ring: StoredRing, name: str, now_s: float, *, bounds: Mapping[str, object]) -> Decision:
    """Make a client with its bounds and its first key."""
    if ring.client(name) is not None:
        has_key = ring.active(name) is not None
        hint = (
            f"rotate its key: relayd keys rotate {name}" if has_key else f"add a key: relayd keys add {name}"
        )
        raise WrongState(
            f"There is a client '{name}' already. Change its bounds: relayd clients set {name}; or {hint}"
        )
    client = with_changes(new_client(name, now_s), bounds, now_s)
    made = make_key(name, now_s)
    return Decision(made.info, made=made, client=client, detail=describe(client, bounds) or None)


def set_client(ring: StoredRing, name: str, now_s: float, *, changes: Mapping[str, object]) -> Decision:
    """Change the note or bounds of a client; the next request already sees them."""
    client = _client(ring, name)
    if not changes:
        raise BadChange(f"Nothing to change: name at least one bound of client '{name}', or its note.")
    changed = with_changes(client, changes, now_s)
    return Decision(None, client=changed, detail=describe(changed, changes))


def remove_client(ring: StoredRing, name: str, now_s: float, *, cut: bool) -> Decision:
    """Remove a client and revoke all its keys, for good. Its name may be used again."""
    client = _client(ring, name)
    if name == DEFAULT_CLIENT:
        raise WrongState(
            f"The client '{name}' always exists. Revoke its keys (relayd keys revoke ID), or bound it: "
            f"relayd clients set {name}"
        )
    now = utc_text(now_s)
    keys = (key for key in ring.keys if key.client == name and key.as_of(now).state in LIVE_STATES)
    revoked = tuple(as_revoked(key, now_s) for key in keys)
    detail = "its open streams are cut" if cut else "its open streams continue"
    return Decision(None, changed=revoked, client=replace(client, removed_at=now), detail=detail, cut=cut)


def new_client(name: str, now_s: float) -> Client:
    """Return a client without bounds.

    Raises:
        BadChange: the name can't be one.
    """
    if not _CLIENT.fullmatch(name):
        raise BadChange(
            "A client's name has 1 to 64 letters, digits, dots, dashes or underscores, "
            "and begins with no dot or dash."
        )
    return Client(name=name, created_at=utc_text(now_s))


def make_key(client: str, now_s: float) -> NewKey:
    """Return a new active key."""
    key_id, secret = new_key()
    return _active_key(key_id, client, secret, now_s)


def given_key(client: str, given: str, now_s: float) -> NewKey:
    """Return an operator's own key as an active one; a key that relayd made elsewhere keeps its id.

    Raises:
        BadChange: it is too short or too long, can't be sent in a header, or was cut or mistyped.
    """
    if len(given) < MIN_GIVEN_CHARS:
        raise BadChange(
            f"The given key has {len(given)} characters; at least {MIN_GIVEN_CHARS} are needed. Use a longer "
            "one, or let relayd make one."
        )
    if len(given) > MAX_GIVEN_CHARS:
        raise BadChange(f"The given key has {len(given)} characters; at most {MAX_GIVEN_CHARS} are possible.")
    if not _GIVEN.fullmatch(given):
        raise BadChange(
            'The given key may only have printable ASCII characters, no space at either end, and no "Bearer" '
            "before it."
        )
    if looks_wrong(given.encode()):
        raise BadChange(
            f"The given key begins like a relayd key ({PREFIX}…), but its length or checksum is wrong: "
            "it was cut off or mistyped."
        )
    key_id = given[len(PREFIX) : len(PREFIX) + ID_CHARS] if given.startswith(PREFIX) else new_id()
    return _active_key(key_id, client, given, now_s)


def _active_key(key_id: str, client: str, secret: str, now_s: float) -> NewKey:
    """Return an active key with this secret."""
    info = KeyInfo(
        id=key_id,
        client=client,
        state=KeyState.ACTIVE,
        fingerprint=fingerprint(digest(secret.encode())),
        created_at=utc_text(now_s),
    )
    return NewKey(info, secret)


def seconds(span_s: float) -> str:
    """Return a span as digits, exact to the millisecond."""
    return f"{span_s:.3f}".rstrip("0").rstrip(".")


def _key(ring: StoredRing, key_id: str, now_s: float) -> KeyInfo:
    key = ring.find(key_id)
    if key is None:
        raise NoSuchKey(f"There is no key '{key_id[:40]}'. The ring may have changed: list the keys again.")
    return key.as_of(utc_text(now_s))


def _live_key(ring: StoredRing, key_id: str, now_s: float) -> KeyInfo:
    key = _key(ring, key_id, now_s)
    if key.state not in LIVE_STATES:
        raise WrongState(f"Key {key.id} of client '{key.client}' is {_ended(key)}; that is final.")
    return key


def _key_to_restore(ring: StoredRing, key_id: str, now_s: float) -> KeyInfo:
    """Return the retiring key that is meant by its own id, or by that of its replacement."""
    named = _key(ring, key_id, now_s)
    if named.state is KeyState.ACTIVE:
        replaced = [key for key in ring.keys if key.replaced_by == key_id]
        if not replaced:
            raise WrongState(f"Key {named.id} did not replace a key that could become active again.")
        newest = max(replaced, key=lambda key: (key.expires_at or "", key.id))
        named = newest.as_of(utc_text(now_s))
    if named.state is not KeyState.RETIRING:
        raise WrongState(
            f"Key {named.id} is {_ended(named)} and can't come back. Rotate or add a key instead."
        )
    return named


def as_revoked(key: KeyInfo, now_s: float) -> KeyInfo:
    """Return the key, revoked now."""
    return replace(key, state=KeyState.REVOKED, revoked_at=utc_text(now_s), expires_at=None)


def _client(ring: StoredRing, name: str) -> Client:
    client = ring.client(name)
    if client is None:
        raise NoSuchClient(f"There is no client '{name[:64]}'. List them: relayd clients list")
    return client


def _ended(key: KeyInfo) -> str:
    return f"{key.state} since {key.revoked_at or key.expires_at}"
