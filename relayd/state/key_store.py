"""The key ring in SQL: loaded as a whole or for some clients, written key by key."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import cache

import msgspec

from relayd.state.columns import INT_MAX
from relayd.state.engine import Connection, Dialect, EngineError, Fault
from relayd.state.errors import StateBusy, StateDamaged
from relayd.state.keys import digest
from relayd.state.records import Client, KeyInfo, KeyUse, Peer, epoch_s
from relayd.state.transitions import NewKey, RingMark, StoredRing

DEAD_KEYS_SHOWN = 100
REMOVED_CLIENTS_SHOWN = 100
_FINGERPRINT_CHARS = 8

_LISTS = ("models", "endpoints", "origins")
_LOAD_ALL = (
    "chosen_keys AS (SELECT * FROM keys WHERE state NOT IN ('expired', 'revoked') UNION ALL SELECT * FROM"
    " (SELECT * FROM keys WHERE state IN ('expired', 'revoked')"
    " ORDER BY {ended_at} DESC LIMIT {dead}) AS dead),"
    " chosen_clients AS (SELECT * FROM clients WHERE removed_at IS NULL UNION ALL SELECT * FROM"
    " (SELECT * FROM clients WHERE removed_at IS NOT NULL"
    " ORDER BY removed_at DESC LIMIT {removed}) AS removed)"
)
_LOAD_SOME = (
    "subjects AS ({listed}),"
    " names AS (SELECT value FROM subjects UNION"
    " SELECT client FROM keys WHERE id IN (SELECT value FROM subjects)),"
    " chosen_keys AS (SELECT * FROM keys WHERE generation > :since OR client IN (SELECT value FROM names)),"
    " chosen_clients AS (SELECT * FROM clients"
    " WHERE generation > :since OR name IN (SELECT value FROM names))"
)
_COLUMNS = Client.__struct_fields__
_STORED_COLUMNS = (*_COLUMNS, "generation")
_STORE_CLIENT = (
    f"INSERT INTO clients ({', '.join(_STORED_COLUMNS)}) VALUES (:{', :'.join(_STORED_COLUMNS)})"  # noqa: S608 - own columns
    " ON CONFLICT (name) DO UPDATE SET"
    f" {', '.join(f'{column} = excluded.{column}' for column in _STORED_COLUMNS if column != 'name')}"
)
_MARK = f"SELECT {', '.join(RingMark._fields)} FROM ring"  # noqa: S608 - own columns
_HAS_CHANGE = """SELECT 1 FROM audit WHERE generation = :generation AND at = :changed_at
    AND login = :changed_by AND action = :change AND result = 'done' LIMIT 1"""
_USE = KeyUse.__struct_fields__
_STORE_USE = """UPDATE keys SET
    first_used_at = CASE WHEN first_used_at <= :first_used_at THEN first_used_at ELSE :first_used_at END,
    first_used_ip = CASE WHEN first_used_at <= :first_used_at THEN first_used_ip ELSE :first_used_ip END,
    last_used_at = CASE WHEN last_used_at > :last_used_at THEN last_used_at ELSE :last_used_at END,
    last_used_ip = CASE WHEN last_used_at > :last_used_at THEN last_used_ip ELSE :last_used_ip END
    WHERE id = :id"""
_LOAD_USES = f"SELECT id, {', '.join(_USE)} FROM keys WHERE last_used_at >= ?"  # noqa: S608 - own columns
_RING_FIELDS = tuple(name for name in StoredRing.__struct_fields__ if name != "cut")
_ring = msgspec.json.Decoder(StoredRing)
_key = msgspec.json.Decoder(KeyInfo)


@cache
def _key_json(dialect: Dialect) -> str:
    return dialect.json_object(
        KeyInfo.__struct_fields__, fingerprint=f"substr({dialect.hex('digest')}, 1, {_FINGERPRINT_CHARS})"
    )


@cache
def _load(dialect: Dialect, *, some: bool) -> str:
    """Return the query for a whole ring, or for the one with some clients and keys."""
    others = {}
    if some:
        chosen = _LOAD_SOME.format(listed=dialect.listed(":subjects"))
        cut = dialect.json_map("id", "generation")
        others["cut"] = dialect.as_json(
            f"(SELECT {cut} FROM chosen_keys WHERE cut = 1 AND generation > :since)"  # noqa: S608 - own columns
        )
    else:
        ended_at = dialect.greatest("coalesce(expires_at, '')", "coalesce(revoked_at, '')")
        chosen = _LOAD_ALL.format(ended_at=ended_at, dead=DEAD_KEYS_SHOWN, removed=REMOVED_CLIENTS_SHOWN)
    client = dialect.json_object(_COLUMNS, **{name: dialect.as_json(name) for name in _LISTS})
    ring = dialect.json_object(
        (*_RING_FIELDS, *others),
        **others,
        keys=dialect.as_json(f"(SELECT {dialect.json_list(_key_json(dialect))} FROM chosen_keys)"),  # noqa: S608 - own columns
        digests=dialect.as_json(f"(SELECT {dialect.json_map('id', dialect.hex('digest'))} FROM chosen_keys)"),  # noqa: S608 - own columns
        clients=dialect.as_json(f"(SELECT {dialect.json_list(client)} FROM chosen_clients)"),  # noqa: S608 - own columns
    )
    return f"WITH {chosen} SELECT {ring} FROM ring"  # noqa: S608 - own SQL


def load_ring(
    connection: Connection, subjects: Collection[str] | None = None, *, since: int = INT_MAX
) -> StoredRing:
    """Return the ring as it is on disk, oldest key first.

    Args:
        connection: any connection to the database.
        subjects: names of clients and ids of keys: load only these clients and their keys, however long
            dead. None: load all that is live, and what ended last.
        since: with the subjects, load also what changed after this generation.

    Raises:
        EngineError: it can't be read.
        StateDamaged: what was read is not a ring.
    """
    parameters: dict[str, object] = {}
    if subjects is not None:
        parameters = {"subjects": msgspec.json.encode(list(subjects)).decode(), "since": since}
    row = connection.execute(_load(connection.dialect, some=subjects is not None), parameters).fetchone()
    try:
        ring = _ring.decode("null" if row is None else row[0])
        for key in ring.keys:
            epoch_s(key.expires_at or key.created_at)
    except (msgspec.MsgspecError, ValueError) as error:
        raise StateDamaged(
            f"The key ring in {connection.where} is inconsistent ({error}). Put a backup in its place: "
            "relayd does not start without knowing which keys are valid."
        ) from error
    return msgspec.structs.replace(ring, keys=sorted(ring.keys, key=lambda key: (key.created_at, key.id)))


def ring_mark(connection: Connection) -> RingMark:
    """Return the last change of the ring in the database."""
    return RingMark(*connection.execute(_MARK).fetchone())


def has_change(connection: Connection, mark: RingMark) -> bool:
    """Return whether the audit has this change of the ring."""
    return connection.execute(_HAS_CHANGE, mark._asdict()).fetchone() is not None


def find_by_digest(connection: Connection, key_digest: bytes) -> KeyInfo | None:
    """Return the key with this digest, however long dead."""
    query = f"SELECT {_key_json(connection.dialect)} FROM keys WHERE digest = ?"  # noqa: S608 - own columns
    row = connection.execute(query, (key_digest,)).fetchone()
    return None if row is None else _key.decode(row[0])


def insert_key(connection: Connection, key: NewKey, generation: int) -> None:
    """Store a new key: its digest, never its secret."""
    info = key.info
    connection.execute(
        "INSERT INTO keys (id, client, digest, state, created_at, generation) VALUES (?, ?, ?, ?, ?, ?)",
        (info.id, info.client, digest(key.secret.encode()), info.state.value, info.created_at, generation),
    )


def update_key(connection: Connection, key: KeyInfo, generation: int) -> None:
    """Store the new state of a key; its uses are not touched."""
    connection.execute(
        "UPDATE keys SET state = :state, expires_at = :expires_at, revoked_at = :revoked_at,"
        " replaced_by = :replaced_by, generation = :generation WHERE id = :id",
        msgspec.to_builtins(key) | {"generation": generation},
    )


def cut_key(connection: Connection, key_id: str, generation: int) -> None:
    """Store that the open streams of a revoked key end."""
    connection.execute("UPDATE keys SET cut = 1, generation = ? WHERE id = ?", (generation, key_id))


def cut_client(connection: Connection, name: str, generation: int) -> None:
    """Store that the open streams of a removed client end, also those of keys that ended before."""
    connection.execute(
        "UPDATE keys SET cut = 1, generation = ? WHERE client = ? AND cut = 0", (generation, name)
    )


def store_client(connection: Connection, client: Client, generation: int) -> None:
    """Store a client as it is now, whether or not it was there."""
    values = msgspec.structs.asdict(client) | {"generation": generation}
    connection.execute(
        _STORE_CLIENT, values | {name: msgspec.json.encode(values[name]).decode() for name in _LISTS}
    )


def mark_expired(connection: Connection, ends: Mapping[str, str]) -> None:
    """Store that retiring keys have expired, so that a clock set back can't revive them.

    Args:
        connection: in a transaction.
        ends: the ends that were seen to pass, by id; a key that was extended meanwhile has not expired.
    """
    connection.executemany(
        "UPDATE keys SET state = 'expired' WHERE state = 'retiring' AND id = ? AND expires_at <= ?",
        sorted(ends.items()),
    )


def store_uses(connection: Connection, uses: Mapping[str, KeyUse]) -> None:
    """Store the uses of keys, by id, beside those that other instances have stored."""
    connection.executemany(
        _STORE_USE, [msgspec.structs.asdict(use) | {"id": key_id} for key_id, use in uses.items()]
    )


def load_uses(connection: Connection, since: str) -> dict[str, KeyUse]:
    """Return the first and last use of each key that was used from this UTC time on."""
    return {key_id: KeyUse(*values) for key_id, *values in connection.execute(_LOAD_USES, (since,))}


def advance(connection: Connection, generation: int, at: str, peer: Peer, action: str) -> int:
    """Move the ring from this generation to the next; return the new one.

    Raises:
        EngineError: the ring is at another generation; the transaction must end.
    """
    cursor = connection.execute(
        "UPDATE ring SET generation = generation + 1, changed_at = ?, changed_by = ?, change = ?"
        " WHERE generation = ?",
        (at, peer.login, action, generation),
    )
    if cursor.rowcount != 1:
        reason = f"the ring has left generation {generation}"
        raise EngineError(reason, Fault.DATA, StateBusy(f"The keys were changed meanwhile ({reason})."))
    return generation + 1
