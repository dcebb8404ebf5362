"""The key ring in SQL: loaded as a whole or for some clients, written key by key."""

from __future__ import annotations

import sqlite3
from collections.abc import Collection

import msgspec

from relayd.state.columns import json_object
from relayd.state.errors import StateDamaged
from relayd.state.key_transitions import NewKey, StoredRing
from relayd.state.keys import digest
from relayd.state.records import Client, KeyInfo, Peer, epoch_s

DEAD_KEYS_SHOWN = 100
REMOVED_CLIENTS_SHOWN = 100

_KEY_JSON = json_object(KeyInfo.__struct_fields__, fingerprint="lower(hex(substr(digest, 1, 4)))")
_LISTS = ("models", "endpoints", "origins")
_CLIENT_JSON = json_object(Client.__struct_fields__, **{name: f"json({name})" for name in _LISTS})
_RING_JSON = json_object(
    StoredRing.__struct_fields__,
    keys=f"(SELECT json_group_array({_KEY_JSON}) FROM chosen_keys)",  # noqa: S608 - own columns
    digests="(SELECT json_group_object(id, hex(digest)) FROM chosen_keys)",
    clients=f"(SELECT json_group_array({_CLIENT_JSON}) FROM chosen_clients)",  # noqa: S608 - own columns
)


def _load(keys: str, clients: str, others: str = "") -> str:
    """Return the query for a ring of these keys and clients, which may name other subqueries."""
    return (
        f"WITH {others} chosen_keys AS ({keys}), chosen_clients AS ({clients}) SELECT {_RING_JSON} FROM ring"  # noqa: S608 - own SQL
    )


def _live_and_last(table: str, dead: str, ended_at: str, shown: int) -> str:
    return (
        f"SELECT * FROM {table} WHERE NOT {dead} UNION ALL"  # noqa: S608 - own columns
        f" SELECT * FROM (SELECT * FROM {table} WHERE {dead} ORDER BY {ended_at} DESC LIMIT {shown})"
    )


_LOAD_ALL = _load(
    _live_and_last(
        "keys",
        "state IN ('expired', 'revoked')",
        "max(coalesce(expires_at, ''), coalesce(revoked_at, ''))",
        DEAD_KEYS_SHOWN,
    ),
    _live_and_last("clients", "(removed_at IS NOT NULL)", "removed_at", REMOVED_CLIENTS_SHOWN),
)
_LOAD_SOME = _load(
    "SELECT * FROM keys WHERE client IN names",
    "SELECT * FROM clients WHERE name IN names",
    "subjects AS (SELECT value FROM json_each(?)),"
    " names AS (SELECT value FROM subjects UNION SELECT client FROM keys WHERE id IN subjects),",
)
_COLUMNS = Client.__struct_fields__
_STORE_CLIENT = f"INSERT OR REPLACE INTO clients ({', '.join(_COLUMNS)}) VALUES (:{', :'.join(_COLUMNS)})"  # noqa: S608 - own columns
_ring = msgspec.json.Decoder(StoredRing)
_key = msgspec.json.Decoder(KeyInfo)


def load_ring(connection: sqlite3.Connection, subjects: Collection[str] | None = None) -> StoredRing:
    """Return the ring as it is on disk, oldest key first.

    Args:
        connection: any connection to the database.
        subjects: names of clients and ids of keys: load only these clients and their keys, however long
            dead. None: load all that is live, and what ended last.

    Raises:
        sqlite3.Error: it can't be read.
        StateDamaged: what was read is not a ring.
    """
    if subjects is None:
        row = connection.execute(_LOAD_ALL).fetchone()
    else:
        row = connection.execute(_LOAD_SOME, (msgspec.json.encode(list(subjects)).decode(),)).fetchone()
    try:
        ring = _ring.decode("null" if row is None else row[0])
        for key in ring.keys:
            epoch_s(key.expires_at or key.created_at)
    except (msgspec.MsgspecError, ValueError) as error:
        path = connection.execute("PRAGMA database_list").fetchone()[2]
        raise StateDamaged(
            f"The key ring in {path} is inconsistent ({error}). Put a backup in its place: relayd does not "
            "start without knowing which keys are valid."
        ) from error
    return msgspec.structs.replace(ring, keys=sorted(ring.keys, key=lambda key: (key.created_at, key.id)))


def find_by_digest(connection: sqlite3.Connection, key_digest: bytes) -> KeyInfo | None:
    """Return the key with this digest, however long dead."""
    row = connection.execute(f"SELECT {_KEY_JSON} FROM keys WHERE digest = ?", (key_digest,)).fetchone()  # noqa: S608 - own columns
    return None if row is None else _key.decode(row[0])


def insert_key(connection: sqlite3.Connection, key: NewKey) -> None:
    """Store a new key: its digest, never its secret."""
    info = key.info
    connection.execute(
        "INSERT INTO keys (id, client, digest, state, created_at) VALUES (?, ?, ?, ?, ?)",
        (info.id, info.client, digest(key.secret.encode()), info.state.value, info.created_at),
    )


def update_key(connection: sqlite3.Connection, key: KeyInfo) -> None:
    """Store the new state of a key; its uses are not touched."""
    connection.execute(
        "UPDATE keys SET state = :state, expires_at = :expires_at, revoked_at = :revoked_at,"
        " replaced_by = :replaced_by WHERE id = :id",
        msgspec.to_builtins(key),
    )


def store_client(connection: sqlite3.Connection, client: Client) -> None:
    """Store a client as it is now, whether or not it was there."""
    values = msgspec.structs.asdict(client)
    connection.execute(
        _STORE_CLIENT, values | {name: msgspec.json.encode(values[name]).decode() for name in _LISTS}
    )


def mark_expired(connection: sqlite3.Connection, key_ids: Collection[str]) -> None:
    """Store that these retiring keys have expired, so that a clock set back can't revive them."""
    connection.execute(
        "UPDATE keys SET state = 'expired'"
        " WHERE state = 'retiring' AND id IN (SELECT value FROM json_each(?))",
        (msgspec.json.encode(list(key_ids)).decode(),),
    )


def store_uses(connection: sqlite3.Connection, uses: list[tuple[str, str, str, str, str]]) -> None:
    """Store the first and last use of keys: time and address of each, and the key's id."""
    connection.executemany(
        "UPDATE keys SET first_used_at = coalesce(first_used_at, ?),"
        " first_used_ip = coalesce(first_used_ip, ?), last_used_at = ?, last_used_ip = ? WHERE id = ?",
        uses,
    )


def advance(connection: sqlite3.Connection, generation: int, at: str, peer: Peer, action: str) -> int:
    """Move the ring from this generation to the next; return the new one.

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
