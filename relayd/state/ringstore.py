"""The key ring as rows: what is stored of a key, loaded and written in SQL."""

from __future__ import annotations

import math
import sqlite3

import msgspec

from relayd.state.errors import StateDamaged
from relayd.state.keys import fingerprint
from relayd.state.records import KeyInfo, KeyState, Peer, epoch_s

DEAD_KEYS_SHOWN = 100


class StoredKey(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `keys`. A retiring key past its end is expired, whether or not the row says so yet."""

    id: str
    client: str
    digest_hex: str
    state: KeyState
    created_at: str
    expires_at: str | None = None
    revoked_at: str | None = None
    replaced_by: str | None = None
    first_used_at: str | None = None
    first_used_ip: str | None = None
    last_used_at: str | None = None
    last_used_ip: str | None = None

    def state_at(self, now: str) -> KeyState:
        """The state at a UTC time."""
        if self.state is KeyState.RETIRING and (self.expires_at is None or self.expires_at <= now):
            return KeyState.EXPIRED
        return self.state

    def is_live_at(self, now: str) -> bool:
        """Whether the key works at a UTC time."""
        return self.state_at(now) in (KeyState.ACTIVE, KeyState.RETIRING)

    def expires_s(self) -> float:
        """When it stops, as a Unix time; infinite for an active key."""
        if self.state is KeyState.ACTIVE:
            return math.inf
        return -math.inf if self.expires_at is None else epoch_s(self.expires_at)

    def is_dead(self) -> bool:
        """Whether the row says that the key is expired or revoked."""
        return self.state in (KeyState.EXPIRED, KeyState.REVOKED)

    def ended_at(self) -> str:
        """When a dead key died."""
        return max(self.expires_at or "", self.revoked_at or "")

    def info(self, now: str) -> KeyInfo:
        """What may be shown of it."""
        return KeyInfo(
            id=self.id,
            client=self.client,
            state=self.state_at(now),
            fingerprint=fingerprint(bytes.fromhex(self.digest_hex)),
            created_at=self.created_at,
            expires_at=self.expires_at,
            revoked_at=self.revoked_at,
            replaced_by=self.replaced_by,
            first_used_at=self.first_used_at,
            first_used_ip=self.first_used_ip,
            last_used_at=self.last_used_at,
            last_used_ip=self.last_used_ip,
        )


class StoredRing(msgspec.Struct, frozen=True, kw_only=True):
    """The generation, who made it, and the keys: all that are not dead, and those that died last."""

    generation: int
    changed_at: str | None
    changed_by: str | None
    change: str | None
    keys: list[StoredKey]

    def key(self, key_id: str | None) -> StoredKey | None:
        """The key with this id, if it is among them."""
        return next((key for key in self.keys if key.id == key_id), None)

    def active(self, client: str) -> StoredKey | None:
        """The active key of a client."""
        return next((key for key in self.keys if key.client == client and key.state is KeyState.ACTIVE), None)


_COLUMNS = tuple(field for field in StoredKey.__struct_fields__ if field != "digest_hex")
_KEY_JSON = (
    "json_object('digest_hex', lower(hex(digest)), "
    + ", ".join(f"'{column}', {column}" for column in _COLUMNS)
    + ")"
)
_DEAD = "state IN ('expired', 'revoked')"
_LOAD = f"""SELECT json_object(
    'generation', generation, 'changed_at', changed_at, 'changed_by', changed_by, 'change', change,
    'keys', json('[' || (SELECT coalesce(group_concat({_KEY_JSON}, ','), '') FROM (
        SELECT * FROM keys WHERE NOT {_DEAD}
        UNION ALL SELECT * FROM (
            SELECT * FROM keys WHERE {_DEAD}
            ORDER BY max(coalesce(expires_at, ''), coalesce(revoked_at, '')) DESC LIMIT {DEAD_KEYS_SHOWN}
        )
    )) || ']')
) FROM ring"""  # noqa: S608 - own columns
_ring = msgspec.json.Decoder(StoredRing)
_key = msgspec.json.Decoder(StoredKey)


def load_ring(connection: sqlite3.Connection) -> StoredRing:
    """The ring as it is on disk, oldest key first.

    Raises:
        sqlite3.Error: it can't be read.
        StateDamaged: what was read is not a ring.
    """
    row = connection.execute(_LOAD).fetchone()
    try:
        ring = _ring.decode("null" if row is None else row[0])
    except msgspec.MsgspecError as error:
        path = connection.execute("PRAGMA database_list").fetchone()[2]
        raise StateDamaged(
            f"The key ring in {path} makes no sense ({error}). Put a backup in its place: relayd does not "
            "start without knowing which keys are good."
        ) from error
    return msgspec.structs.replace(ring, keys=sorted(ring.keys, key=lambda key: (key.created_at, key.id)))


def find_key(connection: sqlite3.Connection, column: str, value: object) -> StoredKey | None:
    """Any key, however long dead, by `id` or `digest`."""
    row = connection.execute(f"SELECT {_KEY_JSON} FROM keys WHERE {column} = ?", (value,)).fetchone()  # noqa: S608 - own columns
    return None if row is None else _key.decode(row[0])


def store_key(connection: sqlite3.Connection, key: StoredKey) -> None:
    """Insert the key, or bring what is stored of it to its new state; its uses are not touched."""
    connection.execute(
        "INSERT INTO keys (id, client, digest, state, created_at, expires_at, revoked_at, replaced_by)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET state = excluded.state,"
        " expires_at = excluded.expires_at, revoked_at = excluded.revoked_at,"
        " replaced_by = excluded.replaced_by",
        (
            *(key.id, key.client, bytes.fromhex(key.digest_hex), key.state.value, key.created_at),
            *(key.expires_at, key.revoked_at, key.replaced_by),
        ),
    )


def advance(connection: sqlite3.Connection, generation: int, at: str, peer: Peer, action: str) -> int:
    """Move the ring from this generation to the next; the new one.

    Raises:
        sqlite3.IntegrityError: the ring is at another generation; the transaction must end.
    """
    cursor = connection.execute(
        "UPDATE ring SET generation = generation + 1, changed_at = ?, changed_by = ?, change = ?"
        " WHERE generation = ?",
        (at, peer.login, action, generation),
    )
    if cursor.rowcount != 1:
        raise sqlite3.IntegrityError(f"the ring has left generation {generation}")
    return generation + 1
