"""The key ring as rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from msgspec.structs import replace

from relayd.state.database import make_private, open_for_writing
from relayd.state.errors import StateDamaged
from relayd.state.records import KeyState, utc_text
from relayd.state.ringrules import make_key
from relayd.state.ringstore import DEAD_KEYS_SHOWN, advance, find_key, load_ring, store_key
from tests.state.room import ALICE, NOON_S

NOW = utc_text(NOON_S)


@pytest.fixture
def connection(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    """A database with an empty ring."""
    with closing(open_for_writing(make_private(tmp_path / "state"))) as opened:
        yield opened


def test_a_key_comes_back_as_it_was_stored(connection: sqlite3.Connection) -> None:
    """All that is stored of a key is loaded again; storing it once more brings its new state."""
    key, _ = make_key("web", NOW)
    store_key(connection, key)
    assert load_ring(connection).keys == [key]
    retiring = replace(key, state=KeyState.RETIRING, expires_at=utc_text(NOON_S + 60), replaced_by="other")
    store_key(connection, retiring)
    assert load_ring(connection).keys == [retiring]
    assert find_key(connection, "id", key.id) == retiring
    assert find_key(connection, "digest", bytes.fromhex(key.digest_hex)) == retiring
    assert find_key(connection, "id", "nobody") is None


def test_storing_a_key_does_not_touch_its_uses(connection: sqlite3.Connection) -> None:
    """First and last use are written by another hand, and a change of the ring keeps them."""
    key, _ = make_key("web", NOW)
    store_key(connection, key)
    connection.execute("UPDATE keys SET first_used_at = 'then', last_used_ip = '192.0.2.1'")
    store_key(connection, replace(key, state=KeyState.REVOKED, revoked_at=NOW))
    (stored,) = load_ring(connection).keys
    assert (stored.first_used_at, stored.last_used_ip, stored.state) == (
        "then",
        "192.0.2.1",
        KeyState.REVOKED,
    )


def test_the_file_itself_refuses_a_second_active_key(connection: sqlite3.Connection) -> None:
    """Whatever a bug decides, a client can't get two active keys on disk."""
    store_key(connection, make_key("web", NOW)[0])
    with pytest.raises(sqlite3.IntegrityError):
        store_key(connection, make_key("web", NOW)[0])


def test_all_live_keys_and_the_last_dead_ones_are_loaded(connection: sqlite3.Connection) -> None:
    """A ring that was rotated for years does not grow in memory; the newest dead keys are kept."""
    for number in range(DEAD_KEYS_SHOWN + 20):
        key, _ = make_key("web", utc_text(NOON_S + number))
        store_key(
            connection, replace(key, state=KeyState.REVOKED, revoked_at=utc_text(NOON_S + 1000 + number))
        )
    live, _ = make_key("web", utc_text(NOON_S))
    store_key(connection, live)
    keys = load_ring(connection).keys
    assert len(keys) == DEAD_KEYS_SHOWN + 1
    assert live in keys
    assert min(key.revoked_at for key in keys if key.revoked_at) == utc_text(NOON_S + 1020)
    assert keys == sorted(keys, key=lambda key: (key.created_at, key.id))


def test_the_generation_moves_only_from_the_expected_one(connection: sqlite3.Connection) -> None:
    """The guard of the transaction: a ring at another generation refuses the update."""
    assert advance(connection, 0, NOW, ALICE, "add") == 1
    ring = load_ring(connection)
    assert (ring.generation, ring.changed_by, ring.change, ring.changed_at) == (1, "alice", "add", NOW)
    with pytest.raises(sqlite3.IntegrityError, match="left generation 0"):
        advance(connection, 0, NOW, ALICE, "add")


@pytest.mark.parametrize("damage", ["DELETE FROM ring", "UPDATE keys SET created_at = x'00ff'"])
def test_a_ring_that_makes_no_sense_is_reported(connection: sqlite3.Connection, damage: str) -> None:
    """Rather than run with half a ring, the error names the file and what to do."""
    store_key(connection, make_key("web", NOW)[0])
    connection.execute(damage)
    with pytest.raises((StateDamaged, sqlite3.Error), match=r"relayd\.db makes no sense|JSON"):
        load_ring(connection)
