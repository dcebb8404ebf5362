"""The simulated key ring, with one rotation under way."""

from __future__ import annotations

import hashlib
import random
import string
from typing import NamedTuple

import msgspec

from relayd.admin.client import Refused
from relayd.admin.schema import KeyInfo, KeyState, Ring, epoch_s, utc_text
from tui.model.units import utc_from_ms

_BASE62 = string.digits + string.ascii_letters


class Deed(NamedTuple):
    """What an operator did before the app was opened."""

    at_s: float
    action: str
    client: str | None
    key_ids: tuple[str, ...]
    detail: str | None = None


class DemoRing:
    """Keys and their rules, as the daemon keeps them; times are Unix seconds."""

    def __init__(self, rng: random.Random, now_s: float) -> None:
        self._random = rng
        self.generation = 12
        self.keys: dict[str, KeyInfo] = {}
        self.deeds: list[Deed] = []
        """How the keys came to be what they are, in order."""
        day = 86_400
        self._seed("web", now_s - 90 * day, KeyState.EXPIRED, ended_s=now_s - 31 * day)
        self._seed("web", now_s - 32 * day, KeyState.RETIRING, ended_s=now_s + 870)
        self._seed("web", now_s - 45.5 * 60)
        self._seed("laptop", now_s - 60 * day)
        self._seed("ci", now_s - 200 * day, KeyState.REVOKED, ended_s=now_s - 11 * day)
        self._seed("ci", now_s - 11 * day)
        self._seed("support-bot", now_s - 4 * day)
        self._seed("phone", now_s - 19 * day)
        self.deeds.sort(key=lambda deed: deed.at_s)

    def _seed(
        self, client: str, made_s: float, state: KeyState = KeyState.ACTIVE, ended_s: float | None = None
    ) -> None:
        before = self.current(client)
        key, _ = self._make(client, made_s)
        ended = None if ended_s is None else utc_text(ended_s)
        revoked = ended if state is KeyState.REVOKED else None
        self.keys[key.id] = msgspec.structs.replace(
            key, state=state, expires_at=None if revoked else ended, revoked_at=revoked
        )
        if before is not None:
            self._set(before, replaced_by=key.id)
        if before is None or before.revoked_at is not None:
            self.deeds.append(Deed(made_s, "add", client, (key.id,)))
        else:
            grace = f"grace {epoch_s(before.expires_at or '') - made_s:.0f} s"
            self.deeds.append(Deed(made_s, "rotate", client, (before.id, key.id), grace))
        if revoked is not None and ended_s is not None:
            self.deeds.append(Deed(ended_s, "revoke", client, (key.id,), "2 streams cut"))

    def _make(self, client: str, at_s: float) -> tuple[KeyInfo, str]:
        letters = self._random.choices(_BASE62, k=57)
        key_id, tail = "".join(letters[:8]), "".join(letters[8:])
        secret = f"rly_{key_id}_{tail}"
        fingerprint = hashlib.sha256(secret.encode()).hexdigest()[:8]
        key = KeyInfo(
            id=key_id,
            client=client,
            state=KeyState.ACTIVE,
            fingerprint=fingerprint,
            created_at=utc_text(at_s),
        )
        self.keys[key_id] = key
        return key, secret

    def current(self, client: str) -> KeyInfo | None:
        """The newest key of a client, whatever its state."""
        found = [key for key in self.keys.values() if key.client == client]
        return found[-1] if found else None

    def _set(self, key: KeyInfo, **changes: object) -> KeyInfo:
        changed = msgspec.structs.replace(key, **changes)
        self.keys[key.id] = changed
        return changed

    def expire(self, now_s: float) -> None:
        """End every grace that is over."""
        for key in list(self.keys.values()):
            if (
                key.state is KeyState.RETIRING
                and key.expires_at is not None
                and epoch_s(key.expires_at) <= now_s
            ):
                self._set(key, state=KeyState.EXPIRED)
                self.generation += 1

    def used(self, key_id: str, ip: str, at_s: float) -> None:
        """A key was accepted."""
        key = self.keys[key_id]
        at = utc_from_ms(round(at_s * 1000))
        changes: dict[str, object] = {"last_used_at": at, "last_used_ip": ip}
        if key.first_used_at is None:
            changes |= {"first_used_at": at, "first_used_ip": ip}
        self._set(key, **changes)

    def works(self, key_id: str) -> bool:
        """Whether a request with this key is let in."""
        return self.keys[key_id].state in {KeyState.ACTIVE, KeyState.RETIRING}

    def ring(self) -> Ring:
        """What `GET /keys` says."""
        return Ring(self.generation, list(self.keys.values()))

    def _get(self, key_id: str, generation: int) -> KeyInfo:
        if generation != self.generation:
            raise Refused(412, "generation", "The ring has changed since; look again and decide anew.")
        if key_id not in self.keys:
            raise Refused(404, "not_found", f"There is no key {key_id}.")
        return self.keys[key_id]

    def add(self, client: str, generation: int, now_s: float) -> tuple[KeyInfo, str]:
        """A first key for a new client."""
        if generation != self.generation:
            raise Refused(412, "generation", "The ring has changed since; look again and decide anew.")
        if any(key.client == client and self.works(key.id) for key in self.keys.values()):
            raise Refused(409, "exists", f"The client '{client}' has a key already; rotate it instead.")
        self.generation += 1
        return self._make(client, now_s)

    def rotate(
        self, key_id: str, grace_s: float, generation: int, now_s: float
    ) -> tuple[KeyInfo, KeyInfo, str]:
        """The new key, the retiring one and the secret."""
        old = self._get(key_id, generation)
        if old.state is not KeyState.ACTIVE:
            raise Refused(409, "not_active", f"Key {key_id} is {old.state}; only an active key is rotated.")
        new, secret = self._make(old.client, now_s)
        self.generation += 1
        retired = self._set(
            old, state=KeyState.RETIRING, expires_at=utc_text(now_s + grace_s), replaced_by=new.id
        )
        return new, retired, secret

    def extend(self, key_id: str, by_s: float, generation: int) -> KeyInfo:
        """Move the end of a retiring key."""
        key = self._get(key_id, generation)
        if key.state is not KeyState.RETIRING or key.expires_at is None:
            raise Refused(409, "not_retiring", f"Key {key_id} is {key.state}; only a grace can be extended.")
        self.generation += 1
        return self._set(key, expires_at=utc_text(epoch_s(key.expires_at) + by_s))

    def undo(self, key_id: str, generation: int, now_s: float) -> tuple[KeyInfo, KeyInfo]:
        """The key that is active again, and the one that is revoked."""
        key = self._get(key_id, generation)
        if key.state is not KeyState.RETIRING or key.replaced_by is None:
            raise Refused(409, "not_retiring", f"Key {key_id} is {key.state}; there is nothing to undo.")
        self.generation += 1
        new = self._set(self.keys[key.replaced_by], state=KeyState.REVOKED, revoked_at=utc_text(now_s))
        return self._set(key, state=KeyState.ACTIVE, expires_at=None, replaced_by=None), new

    def revoke(self, key_id: str, generation: int, now_s: float) -> KeyInfo:
        """End a key now."""
        key = self._get(key_id, generation)
        if not self.works(key_id):
            raise Refused(409, "ended", f"Key {key_id} has ended already: it is {key.state}.")
        self.generation += 1
        return self._set(key, state=KeyState.REVOKED, revoked_at=utc_text(now_s))
