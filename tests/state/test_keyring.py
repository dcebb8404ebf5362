"""The key ring: what is verified, when changes take effect, and what a bad disk may not do."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from relayd.state import keyring
from relayd.state.errors import NoSuchKey, RingUnavailable, StateDamaged
from relayd.state.keyring import Admitted, KeyRing, RingChange
from relayd.state.records import KeyInfo, KeyState, utc_text
from relayd.state.state import State
from tests.state.room import ALICE, NOON_S, Clock, Disk, opened, wait_until


async def make_client(ring: KeyRing, client: str = "web") -> RingChange:
    """A client with a first key."""
    return await ring.add(client, peer=ALICE, expected_generation=None, idempotency_key=None)


async def rotate(ring: KeyRing, key_id: str, grace_s: float = 60.0) -> RingChange:
    """Rotate as alice, on any generation."""
    return await ring.rotate(
        key_id, grace_s=grace_s, peer=ALICE, expected_generation=None, idempotency_key=None
    )


def key_of(change: RingChange) -> bytes:
    """The secret of a change, as a client presents it."""
    assert change.secret is not None
    return change.secret.encode()


def shown(ring: KeyRing, key_id: str) -> KeyInfo:
    """One key as it is shown."""
    keys = ring.keys()
    return next(key for key in keys if key.id == key_id)


async def test_a_change_is_in_force_when_it_is_acknowledged(tmp_path: Path) -> None:
    """The very next verification knows the new key; the old one goes on for its grace, to the millisecond."""
    clock = Clock()
    with opened(tmp_path / "state", clock=clock) as state:
        first = await make_client(state.ring)
        second = await rotate(state.ring, first.key.id)
        assert state.ring.verify(key_of(second)) == Admitted(second.key.id, "web")
        assert state.ring.verify(key_of(first)) == Admitted(first.key.id, "web")
        clock.now_s += 59.999
        assert state.ring.verify(key_of(first)) is not None
        clock.now_s += 0.001
        assert state.ring.verify(key_of(first)) is None
        assert shown(state.ring, first.key.id).state is KeyState.EXPIRED
        await state.ring.revoke(
            second.key.id, cut=False, peer=ALICE, expected_generation=None, idempotency_key=None
        )
        assert state.ring.verify(key_of(second)) is None
        assert state.ring.former(key_of(first)) == Admitted(first.key.id, "web")
        assert state.ring.former(key_of(second)) == Admitted(second.key.id, "web")
        assert state.ring.former(b"never one of ours") is None


async def test_the_ring_survives_a_restart(tmp_path: Path) -> None:
    """Keys, states, ends and the generation are the same after a restart."""
    clock = Clock()
    with opened(tmp_path / "state", clock=clock) as state:
        first = await make_client(state.ring)
        second = await rotate(state.ring, first.key.id)
        await make_client(state.ring, "api")
        before = state.ring.keys(), state.ring.generation
    with opened(tmp_path / "state", boot_id="boot-2", clock=clock) as state:
        assert (state.ring.keys(), state.ring.generation) == before
        assert state.ring.verify(key_of(first)) is not None
        assert state.ring.verify(key_of(second)) is not None


async def test_a_clock_that_is_set_back_revives_nothing(tmp_path: Path) -> None:
    """A key that was seen expired stays so, in memory at once and on disk soon."""
    clock = Clock()
    with opened(tmp_path / "state", clock=clock) as state:
        first = await make_client(state.ring)
        await rotate(state.ring, first.key.id)
        clock.now_s += 61
        assert state.ring.verify(key_of(first)) is None
        clock.now_s -= 61
        assert state.ring.verify(key_of(first)) is None
        assert shown(state.ring, first.key.id).state is KeyState.EXPIRED
    with opened(tmp_path / "state", boot_id="boot-2", clock=clock) as state:
        assert state.ring.verify(key_of(first)) is None


async def test_expired_keys_are_marked_on_disk(tmp_path: Path) -> None:
    """The upkeep notes an expiry without any request, so that even a restart with a wrong clock keeps it."""
    clock = Clock()
    with opened(tmp_path / "state", clock=clock) as state:
        first = await make_client(state.ring)
        second = await rotate(state.ring, first.key.id)
        clock.now_s += 61
    clock.now_s -= 61
    with opened(tmp_path / "state", boot_id="boot-2", clock=clock) as state:
        assert shown(state.ring, first.key.id).state is KeyState.EXPIRED
        assert state.ring.verify(key_of(second)) is not None
        assert state.ring.generation == 2


async def test_uses_show_at_once_and_reach_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first use of a key is on disk promptly, later ones lazily, and all of them at the close."""
    monkeypatch.setattr(keyring, "USE_EVERY_S", 3600.0)
    clock = Clock()
    with opened(tmp_path / "state", clock=clock) as state:
        first = await make_client(state.ring)
        state.ring.used(first.key.id, "192.0.2.1")
        assert shown(state.ring, first.key.id).first_used_ip == "192.0.2.1"
        await asyncio.to_thread(wait_until, lambda: state.reader.keys()[1][0].first_used_ip == "192.0.2.1")
        clock.now_s += 3
        state.ring.used(first.key.id, "192.0.2.2")
        assert shown(state.ring, first.key.id).last_used_at == utc_text(NOON_S + 3)
    with opened(tmp_path / "state", boot_id="boot-2", clock=clock) as state:
        key = shown(state.ring, first.key.id)
        assert (key.first_used_at, key.first_used_ip) == (utc_text(NOON_S), "192.0.2.1")
        assert (key.last_used_at, key.last_used_ip) == (utc_text(NOON_S + 3), "192.0.2.2")


STEPS = (
    "BEGIN",
    "INSERT INTO keys",
    "UPDATE ring",
    "INSERT INTO idempotency",
    "INSERT INTO audit",
    "UPDATE meta",
)


@pytest.mark.parametrize("failing", [*STEPS, "COMMIT"])
async def test_whatever_the_disk_refuses_the_old_ring_stays(
    tmp_path: Path, failing: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A change that is not on disk is not in force: the old key works, and a repeat does too."""
    disk = Disk()
    with opened(tmp_path / "state", connect=disk.connect) as state:
        first = await make_client(state.ring)
        disk.full(beginning=(failing,))
        with pytest.raises(RingUnavailable, match="The ring is as it was"):
            await state.ring.rotate(
                first.key.id, grace_s=60, peer=ALICE, expected_generation=1, idempotency_key="once"
            )
        assert state.ring.generation == 1
        assert state.ring.verify(key_of(first)) is not None
        assert shown(state.ring, first.key.id).state is KeyState.ACTIVE
        disk.mended()
        done = await state.ring.rotate(
            first.key.id, grace_s=60, peer=ALICE, expected_generation=1, idempotency_key="once"
        )
        assert not done.already_done
        assert state.ring.verify(key_of(done)) is not None
    assert "could not be put on disk" in caplog.text
    assert first.secret is not None
    assert first.secret not in caplog.text


async def test_a_failure_is_audited_when_the_disk_allows(tmp_path: Path) -> None:
    """A change that failed on its own row is still found in the audit."""
    disk = Disk()
    with opened(tmp_path / "state", connect=disk.connect) as state:
        first = await make_client(state.ring)
        disk.full(beginning=("INSERT INTO keys",))
        with pytest.raises(RingUnavailable):
            await rotate(state.ring, first.key.id)
        await asyncio.to_thread(wait_until, lambda: len(state.reader.audit().entries) == 2)
        entry = state.reader.audit().entries[0]
        assert (entry.action, entry.result, entry.generation) == ("rotate", "ring_unavailable", 1)


async def test_a_refusal_is_told_even_if_it_can_t_be_audited(tmp_path: Path) -> None:
    """A full disk does not turn 'no such key' into 'disk full'."""
    disk = Disk()
    with opened(tmp_path / "state", connect=disk.connect) as state:
        disk.full(beginning=("INSERT INTO audit",))
        with pytest.raises(NoSuchKey):
            await rotate(state.ring, "nobody")
        disk.mended()


async def test_a_caller_who_leaves_does_not_part_memory_and_disk(tmp_path: Path) -> None:
    """Cancelled while its change is being stored, the change is in force in memory as on disk."""
    disk, gate, reached = Disk(), threading.Event(), threading.Event()

    def slow(sql: str) -> bool:
        if sql.startswith("UPDATE ring"):
            reached.set()
            assert gate.wait(10)
        return False

    with opened(tmp_path / "state", connect=disk.connect) as state:
        first = await make_client(state.ring)
        disk.fails = slow
        task = asyncio.ensure_future(rotate(state.ring, first.key.id))
        await asyncio.to_thread(reached.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert state.ring.generation == 1
        gate.set()
        await asyncio.to_thread(wait_until, lambda: state.ring.generation == 2)
        assert state.reader.keys()[0] == 2
        assert shown(state.ring, first.key.id).state is KeyState.RETIRING


async def test_requests_see_the_old_or_the_new_ring_whole(tmp_path: Path) -> None:
    """While changes run, no verification fails for a key that is good before and after."""
    with opened(tmp_path / "state") as state:
        steady = key_of(await make_client(state.ring, "steady"))
        newest = await make_client(state.ring, "web")
        stop, misses = threading.Event(), []

        def verify_all_the_time() -> None:
            while not stop.is_set():
                if state.ring.verify(steady) is None:
                    misses.append(1)

        thread = threading.Thread(target=verify_all_the_time)
        thread.start()
        try:
            for _ in range(30):
                newest = await rotate(state.ring, newest.key.id)
                assert state.ring.verify(key_of(newest)) is not None
        finally:
            stop.set()
            thread.join(10)
        assert misses == []


async def test_a_ring_that_can_t_be_read_stops_the_start(tmp_path: Path) -> None:
    """Rather than run without knowing which keys are good, the start ends with a sentence."""
    with opened(tmp_path / "state") as state:
        await make_client(state.ring)
        path = state.path
    broken = bytearray(path.read_bytes())
    for at in range(4096, len(broken)):
        broken[at] = 0xAA
    path.write_bytes(broken)
    with pytest.raises(StateDamaged, match=r"relayd\.db is damaged"):
        State.open(tmp_path / "state", boot_id="boot-2", keep_days=1, max_mib=1, on_commit=lambda _: None)


async def test_secrets_are_nowhere_on_disk(tmp_path: Path) -> None:
    """Neither database nor WAL nor index ever holds a key, during the run and after it."""
    with opened(tmp_path / "state") as state:
        first = await make_client(state.ring)
        second = await state.ring.rotate(
            first.key.id, grace_s=60, peer=ALICE, expected_generation=1, idempotency_key="once"
        )
        contents = [file.read_bytes() for file in (tmp_path / "state").iterdir()]
    contents += [file.read_bytes() for file in (tmp_path / "state").iterdir()]
    for secret in (key_of(first), key_of(second)):
        assert all(secret[13:] not in content for content in contents)
        assert secret.decode() not in repr(first) + repr(second)
