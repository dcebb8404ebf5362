"""Changes of clients: what they do, when they are in force, what is kept of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from relayd.state.errors import (
    BadChange,
    GenerationMismatch,
    IdempotencyMismatch,
    NoSuchClient,
    RingUnavailable,
    WrongState,
)
from relayd.state.key_store import REMOVED_CLIENTS_SHOWN, load_ring
from relayd.state.keyring import Caller, KeyOwner
from relayd.state.records import Client, KeyInfo, KeyState, utc_text
from relayd.state.state import State
from tests.state.harness import ALICE, NOON_S, Clock, Disk, opened

pytestmark = pytest.mark.usefixtures("engine_kind")


def once(key: str, generation: int | None = None) -> Caller:
    """Return a caller with an idempotency key."""
    return replace(ALICE, idempotency_key=key, expected_generation=generation)


def on_disk(state: State) -> tuple[list[Client], dict[str, KeyState]]:
    """Return the clients and the states of the keys as the file has them."""
    with state.reader._connection() as connection:
        ring = load_ring(connection)
    return sorted(ring.clients, key=lambda client: client.name), states_of(ring.keys)


def states_of(keys: list[KeyInfo]) -> dict[str, KeyState]:
    """Return the states of keys by id."""
    return {key.id: key.state for key in keys}


async def test_a_client_is_made_with_its_bounds_and_a_key(tmp_path: Path) -> None:
    """One change, in force when it is acknowledged, the same after a restart; the audit has the bounds."""
    bounds = {"models": ["gpt-4o*", "o3"], "usd_per_day": 1.5, "note": "Anna"}
    with opened(tmp_path / "state", clock=Clock()) as state:
        made = await state.ring.add_client("anna", bounds, caller=ALICE)
        assert made.secret is not None
        assert made.secret not in repr(made)
        assert made.key is not None
        assert made.client == Client(
            name="anna",
            created_at=utc_text(NOON_S),
            note="Anna",
            models=("gpt-4o*", "o3"),
            usd_per_day=1.5,
        )
        assert state.ring.client("anna") == made.client
        assert state.ring.verify(made.secret.encode()) == KeyOwner(made.key.id, "anna")
        (entry,) = state.reader.audit().entries
        assert (entry.action, entry.client, entry.key_ids) == ("add_client", "anna", (made.key.id,))
        assert (entry.generation, entry.detail) == (1, "models gpt-4o*,o3; usd_per_day 1.5; note Anna")
    with opened(tmp_path / "state", boot_id="boot-2", clock=Clock()) as state:
        assert state.ring.client("anna") == made.client
        assert state.ring.verify(made.secret.encode()) is not None


async def test_a_change_keeps_all_other_bounds(tmp_path: Path) -> None:
    """Only what is named changes; None removes; an expiry that has passed does not stand in the way."""
    clock = Clock()
    with opened(tmp_path / "state", clock=clock) as state:
        bounds = {"max_streams": 5, "tokens_per_day": 10**12, "expires_at": utc_text(NOON_S + 60)}
        made = await state.ring.add_client("web", bounds, caller=ALICE)
        clock.now_s += 3600
        changed = await state.ring.set_client(
            "web", {"max_streams": None, "origins": ["https://a.example"]}, caller=ALICE
        )
        assert changed.client == Client(
            name="web",
            created_at=made.client.created_at,
            tokens_per_day=10**12,
            expires_at=utc_text(NOON_S + 60),
            origins=("https://a.example",),
        )
        assert (changed.generation, changed.key, changed.secret) == (2, None, None)
        assert state.ring.client("web") == changed.client
        entry = state.reader.audit().entries[0]
        assert (entry.action, entry.client, entry.key_ids) == ("set_client", "web", ())
        assert entry.detail == "max_streams none; origins https://a.example"
        assert on_disk(state)[0] == state.ring.clients()


async def test_a_removed_client_has_no_key_that_works(tmp_path: Path) -> None:
    """Its active and its retiring key are revoked for good; others' are not. The name may be used again."""
    with opened(tmp_path / "state", clock=Clock()) as state:
        first = await state.ring.add_client("web", {"max_streams": 5}, caller=ALICE)
        other = await state.ring.add("api", caller=ALICE)
        assert first.key is not None
        second = await state.ring.rotate(first.key.id, grace_s=60, caller=ALICE)
        removed = await state.ring.remove_client("web", cut=True, caller=ALICE)
        assert set(removed.revoked) == {first.key.id, second.key.id}
        assert removed.client.removed_at == utc_text(NOON_S)
        for change in (first, second):
            assert change.secret is not None
            assert state.ring.verify(change.secret.encode()) is None
        assert other.secret is not None
        assert state.ring.verify(other.secret.encode()) is not None
        assert state.ring.client("web") is None
        assert [client.name for client in state.ring.clients()] == ["api", "default", "web"]
        entry = state.reader.audit().entries[0]
        assert (entry.action, entry.detail) == ("remove_client", "its open streams are cut")
        assert set(entry.key_ids) == set(removed.revoked)
        with pytest.raises(WrongState, match="revoked"):
            await state.ring.undo(first.key.id, caller=ALICE)
        again = await state.ring.add_client("web", {}, caller=ALICE)
        assert state.ring.client("web") == again.client
        assert again.client.max_streams is None
        clients, states = on_disk(state)
        assert clients == state.ring.clients()
        assert states == states_of(state.ring.keys())


async def test_a_key_makes_its_client(tmp_path: Path) -> None:
    """`keys add` for a name that is not there, or no longer, makes a client without bounds."""
    with opened(tmp_path / "state", clock=Clock()) as state:
        await state.ring.add_client("web", {"max_streams": 5}, caller=ALICE)
        await state.ring.remove_client("web", cut=False, caller=ALICE)
        await state.ring.add("web", caller=ALICE)
        assert state.ring.client("web") == Client(name="web", created_at=utc_text(NOON_S))
        await state.ring.set_client("web", {"max_streams": 6}, caller=ALICE)
        states = states_of(state.ring.keys())
        await state.ring.revoke(
            next(key for key in states if states[key] is KeyState.ACTIVE), cut=False, caller=ALICE
        )
        await state.ring.add("web", caller=ALICE)
        client = state.ring.client("web")
        assert client is not None
        assert client.max_streams == 6


async def test_refused_changes_change_nothing(tmp_path: Path) -> None:
    """Each says what to do instead, and is audited with the client's name."""
    with opened(tmp_path / "state") as state:
        await state.ring.add_client("web", {}, caller=ALICE)
        before = state.ring.clients(), state.ring.generation
        with pytest.raises(
            WrongState, match=r"relayd clients set web; or rotate its key: relayd keys rotate"
        ):
            await state.ring.add_client("web", {}, caller=ALICE)
        with pytest.raises(WrongState, match="relayd keys add default"):
            await state.ring.add_client("default", {}, caller=ALICE)
        with pytest.raises(BadChange, match="1 to 64 letters"):
            await state.ring.add_client("a b", {}, caller=ALICE)
        with pytest.raises(BadChange, match="max_streams is a whole number"):
            await state.ring.add_client("new", {"max_streams": -1}, caller=ALICE)
        with pytest.raises(NoSuchClient, match=r"no client 'wbe'\. List them: relayd clients list"):
            await state.ring.set_client("wbe", {"max_streams": 1}, caller=ALICE)
        with pytest.raises(NoSuchClient, match="no client 'wbe'"):
            await state.ring.remove_client("wbe", cut=False, caller=ALICE)
        with pytest.raises(BadChange, match="Nothing to change"):
            await state.ring.set_client("web", {}, caller=ALICE)
        with pytest.raises(WrongState, match="'default' always exists"):
            await state.ring.remove_client("default", cut=False, caller=ALICE)
        assert (state.ring.clients(), state.ring.generation) == before
        refused = [(entry.client, entry.result) for entry in state.reader.audit().entries[:-1]]
        assert refused == [
            ("default", "wrong_state"),
            ("web", "bad_request"),
            ("wbe", "no_such_client"),
            ("wbe", "no_such_client"),
            ("new", "bad_request"),
            ("a b", "bad_request"),
            ("default", "wrong_state"),
            ("web", "wrong_state"),
        ]


async def test_a_repeated_change_acts_once(tmp_path: Path) -> None:
    """Under one idempotency key: the same answer without the secret; another change is refused."""
    with opened(tmp_path / "state") as state:
        made = await state.ring.add_client("web", {"max_streams": 5}, caller=once("a", 0))
        again = await state.ring.add_client("web", {"max_streams": 5}, caller=once("a", 0))
        assert (again.client, again.key, again.generation) == (made.client, made.key, 1)
        assert (again.secret, again.already_done) == (None, True)
        with pytest.raises(IdempotencyMismatch, match="another change"):
            await state.ring.add_client("web", {"max_streams": 6}, caller=once("a", 0))
        with pytest.raises(GenerationMismatch, match="you saw generation 0, and it is 1"):
            await state.ring.set_client("web", {"max_streams": 6}, caller=once("b", 0))
        removed = await state.ring.remove_client("web", cut=False, caller=once("c", 1))
        again_removed = await state.ring.remove_client("web", cut=False, caller=once("c", 1))
        assert (again_removed.revoked, again_removed.already_done) == (removed.revoked, True)


async def test_a_disk_that_fails_changes_nothing(tmp_path: Path) -> None:
    """A removal that it refuses half-way: memory and disk stay as they were, and the answer says so."""
    disk = Disk()
    with opened(tmp_path / "state", disk=disk) as state:
        made = await state.ring.add_client("web", {"max_streams": 5}, caller=ALICE)
        disk.full(beginning=("INSERT INTO clients",))
        with pytest.raises(RingUnavailable, match="nothing is changed"):
            await state.ring.remove_client("web", cut=False, caller=ALICE)
        disk.mended()
        assert state.ring.client("web") == made.client
        assert made.secret is not None
        assert state.ring.verify(made.secret.encode()) is not None
        clients, states = on_disk(state)
        assert clients == state.ring.clients()
        assert set(states.values()) == {KeyState.ACTIVE}


async def test_memory_keeps_what_a_restart_would_load(tmp_path: Path) -> None:
    """Dead keys and removed clients beyond the last hundred are forgotten, the live ones never."""
    clock = Clock()
    with opened(tmp_path / "state", clock=clock) as state:
        for number in range(REMOVED_CLIENTS_SHOWN + 3):
            clock.now_s += 1
            await state.ring.add_client(f"gone-{number}", {}, caller=ALICE)
            clock.now_s += 1
            await state.ring.remove_client(f"gone-{number}", cut=False, caller=ALICE)
        await state.ring.add("web", caller=ALICE)
        shown = state.ring.clients(), state.ring.keys()
        assert "gone-2" not in [client.name for client in shown[0]]
        assert len(shown[0]) == len(shown[1]) + 1 == REMOVED_CLIENTS_SHOWN + 2
    with opened(tmp_path / "state", boot_id="boot-2", clock=clock) as state:
        assert (state.ring.clients(), state.ring.keys()) == shown
