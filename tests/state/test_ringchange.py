"""Changes of the ring: once each, on the right generation, with their audit row."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from relayd.state.errors import (
    BadChange,
    GenerationMismatch,
    IdempotencyMismatch,
    NoSuchKey,
    RingError,
    WrongState,
)
from relayd.state.keyring import KeyRing, RingChange
from relayd.state.records import Peer
from relayd.state.state import State
from tests.state.room import ALICE, opened

BOB = Peer(uid=1001, pid=77, login="bob")


async def make_client(ring: KeyRing, client: str = "web") -> RingChange:
    """A client with a first key."""
    return await ring.add(client, peer=ALICE, expected_generation=None, idempotency_key=None)


async def rotate(ring: KeyRing, key_id: str, generation: int | None, once: str | None = None) -> RingChange:
    """Rotate with a grace of a minute, as alice."""
    return await ring.rotate(
        key_id, grace_s=60, peer=ALICE, expected_generation=generation, idempotency_key=once
    )


def audited(state: State) -> list[tuple[str, str, str, int]]:
    """What the audit says, oldest first: action, result, who, generation."""
    entries = reversed(state.reader.audit().entries)
    return [(entry.action, entry.result, entry.login, entry.generation) for entry in entries]


async def test_every_change_has_its_audit_row(tmp_path: Path) -> None:
    """Who did what to which keys, in which order, with the generation that came of it."""
    with opened(tmp_path / "state") as state:
        first = await make_client(state.ring)
        second = await rotate(state.ring, first.key.id, 1)
        await state.ring.extend(first.key.id, by_s=5, expected_generation=2, peer=BOB, idempotency_key=None)
        await state.ring.undo(first.key.id, expected_generation=3, peer=BOB, idempotency_key=None)
        await state.ring.revoke(first.key.id, cut=True, expected_generation=4, peer=BOB, idempotency_key=None)
        assert audited(state) == [
            ("add", "done", "alice", 1),
            ("rotate", "done", "alice", 2),
            ("extend", "done", "bob", 3),
            ("undo", "done", "bob", 4),
            ("revoke", "done", "bob", 5),
        ]
        entries = state.reader.audit().entries
        assert entries[3].key_ids == (second.key.id, first.key.id)
        assert "grace 60 s" in (entries[3].detail or "")
        assert entries[0].detail == "its open streams are cut"
        assert (entries[0].uid, entries[0].pid) == (1001, 77)


async def test_a_repeated_change_happens_once(tmp_path: Path) -> None:
    """The second answer for the same Idempotency-Key tells what was done, without the secret."""
    with opened(tmp_path / "state") as state:
        first = await make_client(state.ring)
        done = await rotate(state.ring, first.key.id, 1, "once-1")
        assert done.secret is not None
        again = await rotate(state.ring, first.key.id, 1, "once-1")
        assert (again.already_done, again.secret) == (True, None)
        assert (again.generation, again.key, again.old) == (done.generation, done.key, done.old)
        assert state.ring.generation == 2
    with opened(tmp_path / "state", boot_id="boot-2") as state:
        assert await rotate(state.ring, first.key.id, 1, "once-1") == again
        assert len(audited(state)) == 2


async def test_the_same_key_for_another_change_is_refused(tmp_path: Path) -> None:
    """An Idempotency-Key belongs to one change with all its parameters."""
    with opened(tmp_path / "state") as state:
        first = await make_client(state.ring)
        await rotate(state.ring, first.key.id, 1, "once-1")
        with pytest.raises(IdempotencyMismatch, match=f"rotate {first.key.id} grace 60 s"):
            await state.ring.rotate(
                first.key.id, grace_s=61, peer=ALICE, expected_generation=2, idempotency_key="once-1"
            )
        with pytest.raises(IdempotencyMismatch):
            await state.ring.revoke(
                first.key.id, cut=False, peer=ALICE, expected_generation=2, idempotency_key="once-1"
            )
        assert state.ring.generation == 2


@pytest.mark.parametrize("once", ["", "with space", "x" * 201, "naïve", "a\0b"])
async def test_an_idempotency_key_is_short_and_visible(tmp_path: Path, once: str) -> None:
    """Anything else is refused in words."""
    with opened(tmp_path / "state") as state:
        with pytest.raises(BadChange, match="Idempotency-Key"):
            await state.ring.add("web", peer=ALICE, expected_generation=None, idempotency_key=once)
        assert state.ring.generation == 0


async def test_a_change_decided_on_an_older_ring_is_refused(tmp_path: Path) -> None:
    """The refusal names both generations, who moved the ring, and how."""
    with opened(tmp_path / "state") as state:
        first = await make_client(state.ring)
        await rotate(state.ring, first.key.id, 1, "winner")
        with pytest.raises(
            GenerationMismatch, match=r"generation 1, it is at 2 now \(rotate by alice at 20"
        ) as caught:
            await state.ring.revoke(
                first.key.id, cut=False, peer=BOB, expected_generation=1, idempotency_key="loser"
            )
        assert (caught.value.expected, caught.value.actual) == (1, 2)
        assert (await rotate(state.ring, first.key.id, 1, "winner")).already_done
        assert audited(state)[-1] == ("revoke", "generation_mismatch", "bob", 2)


async def test_of_twenty_at_once_one_wins(tmp_path: Path) -> None:
    """Twenty operators on the same generation: one change, nineteen refusals, generation plus one."""
    with opened(tmp_path / "state") as state:
        first = await make_client(state.ring)
        answers = await asyncio.gather(
            *(rotate(state.ring, first.key.id, 1, f"operator-{n}") for n in range(20)), return_exceptions=True
        )
        assert [type(answer) for answer in answers].count(RingChange) == 1
        assert [type(answer) for answer in answers].count(GenerationMismatch) == 19
        assert state.ring.generation == 2
        results = [result for _, result, _, _ in audited(state)]
        assert results == ["done", "done"] + ["generation_mismatch"] * 19


async def test_refusals_are_audited_and_change_nothing(tmp_path: Path) -> None:
    """Each kind of refusal leaves its code and sentence in the audit, whatever was in the request."""
    with opened(tmp_path / "state") as state:
        first = await make_client(state.ring)
        before = state.ring.keys()
        refused: list[type[RingError]] = []
        for attempt in (
            state.ring.add("web", peer=BOB, expected_generation=None, idempotency_key=None),
            state.ring.add("\ud800\0" * 300, peer=BOB, expected_generation=None, idempotency_key=None),
            rotate(state.ring, "\ud800\0nobody", None),
            state.ring.extend(first.key.id, by_s=1, peer=BOB, expected_generation=None, idempotency_key=None),
        ):
            with pytest.raises(RingError) as caught:
                await attempt
            refused.append(caught.type)
        assert refused == [WrongState, BadChange, NoSuchKey, WrongState]
        assert [result for _, result, _, _ in audited(state)] == [
            "done",
            "wrong_state",
            "bad_request",
            "no_such_key",
            "wrong_state",
        ]
        assert state.ring.keys() == before
        assert state.ring.generation == 1


async def test_a_long_dead_key_is_known_to_be_dead(tmp_path: Path) -> None:
    """A key that died before the last hundred is not shown any more, but still refused as what it is."""
    with opened(tmp_path / "state") as state:
        oldest = (await make_client(state.ring)).key.id
        newest = oldest
        for _ in range(103):
            change = await state.ring.rotate(
                newest, grace_s=0, peer=ALICE, expected_generation=None, idempotency_key=None
            )
            newest = change.key.id
    with opened(tmp_path / "state", boot_id="boot-2") as state:
        await state.ring.revoke(newest, cut=False, peer=ALICE, expected_generation=None, idempotency_key=None)
        shown = state.ring.keys()
        assert len(shown) == 100
        assert newest in {key.id for key in shown}
        with pytest.raises(WrongState, match=f"{oldest}.*expired since"):
            await rotate(state.ring, oldest, None)


async def test_a_ring_that_another_process_changed_is_read_again(tmp_path: Path) -> None:
    """Where two daemons overlap, a change is decided on what is on disk, not on what one remembers."""
    with opened(tmp_path / "state") as old, opened(tmp_path / "state", boot_id="boot-2") as new:
        first = await make_client(old.ring)
        assert new.ring.verify((first.secret or "").encode()) is None
        with pytest.raises(GenerationMismatch, match="generation 0, it is at 1"):
            await new.ring.add("api", peer=BOB, expected_generation=0, idempotency_key=None)
        # The refusal brought the ring of the disk into memory.
        assert new.ring.generation == 1
        assert new.ring.verify((first.secret or "").encode()) is not None
