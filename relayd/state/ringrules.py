"""What may happen to a key, and what comes of it. Pure: a ring and a time in, changed keys out.

    (none) --add--> active --rotate--> retiring --end of grace--> expired
                      ^                 |  |  ^
                      +------undo-------+  |  +-- extend
                    active or retiring --revoke--> revoked

A client has at most one active key and any number of retiring ones. Expired and revoked are final.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field

from msgspec.structs import replace

from relayd.state.errors import BadChange, NoSuchKey, WrongState
from relayd.state.keys import digest, new_key
from relayd.state.records import KeyState, epoch_s, utc_text
from relayd.state.ringstore import StoredKey, StoredRing

MAX_SPAN_S = 366 * 86_400
"""A grace or an extension beyond a year is a mistake."""
_CLIENT = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class Moment:
    """The ring that a change starts from, and when."""

    ring: StoredRing
    now_s: float
    elsewhere: Callable[[str], StoredKey | None]
    """Looks for a long dead key that is no longer in `ring`."""

    @property
    def now(self) -> str:
        """As UTC text."""
        return utc_text(self.now_s)

    def key(self, key_id: str) -> StoredKey:
        """The key with this id.

        Raises:
            NoSuchKey: there is none.
        """
        key = self.ring.key(key_id) or self.elsewhere(key_id)
        if key is None:
            raise NoSuchKey(
                f"There is no key '{key_id[:40]}'. The ring may have changed: list the keys again."
            )
        return key

    def live(self, key_id: str) -> StoredKey:
        """The key with this id, active or retiring.

        Raises:
            NoSuchKey, WrongState: there is none, or it is dead.
        """
        key = self.key(key_id)
        if not key.is_live_at(self.now):
            state = key.state_at(self.now)
            when = key.expires_at if state is KeyState.EXPIRED else key.revoked_at
            raise WrongState(f"Key {key.id} of client '{key.client}' is {state} since {when}; that is final.")
        return key


@dataclass(frozen=True, slots=True)
class Decision:
    """What a rule decided: the keys to store, in this order, and which to show."""

    store: tuple[StoredKey, ...]
    key: StoredKey
    old: StoredKey | None = None
    secret: str | None = field(default=None, repr=False)
    detail: str | None = None
    """For the audit, in words."""


Rule = Callable[[Moment, str], Decision]
"""A rule takes the moment and the id of a key, or the name of a client."""


def add(moment: Moment, client: str) -> Decision:
    """A new active key for a client without one."""
    if not _CLIENT.fullmatch(client):
        raise BadChange("A client's name has 1 to 64 letters, digits, dots, dashes or underscores.")
    if (active := moment.ring.active(client)) is not None:
        raise WrongState(f"Client '{client}' has the active key {active.id} already; rotate that one.")
    made, secret = make_key(client, moment.now)
    return Decision((made,), made, secret=secret)


def rotate(moment: Moment, key_id: str, grace_s: float) -> Decision:
    """A new active key; the old one retires after the grace."""
    if not 0 <= grace_s <= MAX_SPAN_S:
        raise BadChange("The grace is between 0 seconds and 366 days.")
    old = moment.live(key_id)
    if old.state is not KeyState.ACTIVE:
        active = moment.ring.active(old.client)
        hint = "add a key for it" if active is None else f"rotate its active key {active.id}"
        raise WrongState(f"Key {old.id} of client '{old.client}' is already retiring; {hint}.")
    made, secret = make_key(old.client, moment.now)
    retiring = replace(
        old, state=KeyState.RETIRING, expires_at=_end(moment.now_s, grace_s), replaced_by=made.id
    )
    detail = f"grace {seconds(grace_s)} s, {old.id} works until {retiring.expires_at}"
    # The old one first: the client must not have two active keys at any point.
    return Decision((retiring, made), made, old=retiring, secret=secret, detail=detail)


def extend(moment: Moment, key_id: str, by_s: float) -> Decision:
    """A later end for a retiring key."""
    if not 0 < by_s <= MAX_SPAN_S:
        raise BadChange("An extension is more than 0 seconds and at most 366 days.")
    key = moment.live(key_id)
    if key.state is not KeyState.RETIRING or key.expires_at is None:
        raise WrongState(f"Key {key.id} is active and has no end to extend.")
    end_s = epoch_s(key.expires_at) + by_s
    if end_s > moment.now_s + MAX_SPAN_S:
        raise BadChange("A retiring key ends within 366 days.")
    longer = replace(key, expires_at=utc_text(end_s))
    return Decision((longer,), longer, detail=f"by {seconds(by_s)} s, until {longer.expires_at}")


def undo(moment: Moment, key_id: str) -> Decision:
    """The retiring key active again, the one that replaced it revoked."""
    old = _to_restore(moment, key_id)
    active = moment.ring.active(old.client)
    if active is not None and active.id != old.replaced_by:
        raise WrongState(
            f"Key {old.id} was replaced by {old.replaced_by}, but client '{old.client}' has the active key "
            f"{active.id} now. Undo or revoke that one first."
        )
    back = replace(old, state=KeyState.ACTIVE, expires_at=None, replaced_by=None)
    detail = f"{back.id} is active again"
    if active is None:
        gone = None if old.replaced_by is None else moment.key(old.replaced_by)
        return Decision((back,), back, old=gone, detail=detail)
    revoked = _revoked(active, moment.now)
    return Decision((revoked, back), back, old=revoked, detail=detail)


def revoke(moment: Moment, key_id: str, *, cut: bool) -> Decision:
    """The end of a live key, now and for good."""
    key = _revoked(moment.live(key_id), moment.now)
    return Decision((key,), key, detail="its open streams are cut" if cut else "its open streams go on")


def seconds(span_s: float) -> str:
    """A span as digits, exact to the millisecond."""
    return f"{span_s:.3f}".rstrip("0").rstrip(".")


def make_key(client: str, now: str) -> tuple[StoredKey, str]:
    """A new active key and its secret."""
    key_id, secret = new_key()
    key = StoredKey(
        id=key_id,
        client=client,
        digest_hex=digest(secret.encode()).hex(),
        state=KeyState.ACTIVE,
        created_at=now,
    )
    return key, secret


def _to_restore(moment: Moment, key_id: str) -> StoredKey:
    """The retiring key that is meant by its own id, or by that of its replacement."""
    named = moment.key(key_id)
    if named.state is not KeyState.RETIRING:
        replaced = [key for key in moment.ring.keys if key.replaced_by == key_id]
        if named.state is not KeyState.ACTIVE or not replaced:
            named = moment.live(key_id)
            raise WrongState(f"Key {named.id} has replaced no key that could come back.")
        named = max(replaced, key=lambda key: (key.expires_at or "", key.id))
    if not named.is_live_at(moment.now):
        since = named.revoked_at or named.expires_at
        raise WrongState(
            f"Key {named.id} is {named.state_at(moment.now)} since {since} and can't come back. "
            "Rotate or add a key instead."
        )
    return named


def _revoked(key: StoredKey, now: str) -> StoredKey:
    return replace(key, state=KeyState.REVOKED, revoked_at=now, expires_at=None)


def _end(now_s: float, span_s: float) -> str:
    # Rounded up to the millisecond that the text can hold, never down.
    return utc_text(math.ceil((now_s + span_s) * 1000) / 1000)
