"""The key ring: what is verified, when and how often a change takes effect, what a bad disk may not do."""

from __future__ import annotations

import asyncio
import hmac
import sqlite3
import threading
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from relayd.state.database import Database
from relayd.state.directory import StateDirectory
from relayd.state.engine import EngineError
from relayd.state.errors import (
    BadChange,
    GenerationMismatch,
    IdempotencyMismatch,
    NoSuchKey,
    RingError,
    RingUnavailable,
    StateDamaged,
    StateReplaced,
    WrongState,
)
from relayd.state.key_store import load_ring
from relayd.state.keyring import Caller, KeyOwner, KeyRing
from relayd.state.keys import new_key
from relayd.state.records import KeyChangeResult, KeyInfo, KeyState, Peer, utc_text
from relayd.state.sqlite import Sqlite
from relayd.state.state import State
from relayd.state.writer import Writer
from tests.state.harness import ALICE, NOON_S, Clock, Disk, Published, engine_for, opened
from tests.wire import wait_until

pytestmark = pytest.mark.usefixtures("engine_kind")

BOB = Caller(Peer(uid=1001, pid=77, login="bob"))


async def rotate(
    ring: KeyRing, key_id: str, caller: Caller = ALICE, grace_s: float = 60.0
) -> KeyChangeResult:
    """Rotate with a grace of a minute."""
    return await ring.rotate(key_id, grace_s=grace_s, caller=caller)


def on(generation: int, once: str | None = None, caller: Caller = ALICE) -> Caller:
    """Return a caller who decided on this generation."""
    return replace(caller, expected_generation=generation, idempotency_key=once)


def key_of(change: KeyChangeResult) -> bytes:
    """Return the secret of a change, as a client presents it."""
    assert change.secret is not None
    return change.secret.encode()


def shown(ring: KeyRing, key_id: str) -> KeyInfo:
    """Return one key as it is shown."""
    keys = ring.keys()
    return next(key for key in keys if key.id == key_id)


def audited(state: State) -> list[tuple[str, str, str, int]]:
    """Return what the audit says, oldest first: action, result, who, generation."""
    entries = reversed(state.reader.audit().entries)
    return [(entry.action, entry.result, entry.login, entry.generation) for entry in entries]


# What is verified.


async def test_a_change_is_in_force_when_it_is_acknowledged(tmp_path: Path) -> None:
    """The very next verification knows the new key; the old one works for its grace, to the millisecond."""
    clock = Clock()
    with opened(tmp_path / "state", clock=clock) as state:
        first = await state.ring.add("web", caller=ALICE)
        second = await rotate(state.ring, first.key.id)
        assert state.ring.verify(key_of(second)) == KeyOwner(second.key.id, "web")
        assert state.ring.verify(key_of(first)) == KeyOwner(first.key.id, "web")
        clock.now_s += 59.999
        assert state.ring.verify(key_of(first)) is not None
        clock.now_s += 0.001
        assert state.ring.verify(key_of(first)) is None
        assert shown(state.ring, first.key.id).state is KeyState.EXPIRED
        await state.ring.revoke(second.key.id, cut=False, caller=ALICE)
        assert state.ring.verify(key_of(second)) is None
        assert state.ring.former_owner(key_of(first)) == KeyOwner(first.key.id, "web")
        assert state.ring.former_owner(key_of(second)) == KeyOwner(second.key.id, "web")
        assert state.ring.former_owner(b"never one of ours") is None


@pytest.mark.sqlite
async def test_every_live_digest_is_compared_for_any_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right, wrong, mistyped or foreign: the same number of constant-time comparisons, without early exit."""
    with opened(tmp_path / "state") as state:
        changes = [await state.ring.add(f"client-{n}", caller=ALICE) for n in range(5)]
        compared: list[tuple[int, int]] = []

        def counting(left: bytes, right: bytes) -> bool:
            compared.append((len(left), len(right)))
            return real(left, right)

        real = hmac.compare_digest
        monkeypatch.setattr(hmac, "compare_digest", counting)
        good = key_of(changes[0])
        for presented in (good, good[:-1] + b"!", good + b"x", new_key()[1].encode(), b"", b"\xff\x00" * 600):
            compared.clear()
            assert (state.ring.verify(presented) is not None) is (presented == good)
            assert compared == [(32, 32)] * 5


async def test_the_ring_survives_a_restart(tmp_path: Path) -> None:
    """Keys, states, ends and the generation are the same after a restart."""
    clock = Clock()
    with opened(tmp_path / "state", clock=clock) as state:
        first = await state.ring.add("web", caller=ALICE)
        second = await rotate(state.ring, first.key.id)
        await state.ring.add("api", caller=ALICE)
        before = state.ring.keys(), state.ring.generation
    with opened(tmp_path / "state", boot_id="boot-2", clock=clock) as state:
        assert (state.ring.keys(), state.ring.generation) == before
        assert state.ring.verify(key_of(first)) is not None
        assert state.ring.verify(key_of(second)) is not None


async def test_a_clock_that_is_set_back_revives_nothing(tmp_path: Path) -> None:
    """A key that was seen expired stays so: in memory, for changes, and after a restart."""
    clock = Clock()
    with opened(tmp_path / "state", clock=clock) as state:
        first = await state.ring.add("web", caller=ALICE)
        await rotate(state.ring, first.key.id)
        clock.now_s += 61
        assert state.ring.verify(key_of(first)) is None
        clock.now_s -= 61
        assert state.ring.verify(key_of(first)) is None
        assert shown(state.ring, first.key.id).state is KeyState.EXPIRED
        with pytest.raises(WrongState, match="expired"):
            await state.ring.undo(first.key.id, caller=ALICE)
        await state.ring.add("api", caller=ALICE)
        assert state.ring.verify(key_of(first)) is None
    with opened(tmp_path / "state", boot_id="boot-2", clock=clock) as state:
        assert state.ring.verify(key_of(first)) is None


def stored_state(state_dir: Path, key_id: str) -> str:
    """Return the state of a key as it is on disk."""
    with closing(engine_for(state_dir)) as engine, engine.reading(lambda: False, 10.0) as connection:
        (found,) = connection.execute("SELECT state FROM keys WHERE id = ?", (key_id,)).fetchone()
    return str(found)


@pytest.mark.parametrize("act", ["a request", "a list", "nothing"])
async def test_a_key_that_ended_is_stored_as_ended(tmp_path: Path, act: str) -> None:
    """However it was noticed: a clock that is set back right then, and a crash, do not revive it."""
    clock = Clock()
    with opened(tmp_path / "state", clock=clock) as state:
        first = await state.ring.add("web", caller=ALICE)
        await rotate(state.ring, first.key.id)
        clock.now_s += 60
        if act == "a request":
            assert state.ring.verify(key_of(first)) is None
            clock.now_s -= 60
        elif act == "a list":
            assert shown(state.ring, first.key.id).state is KeyState.EXPIRED
            clock.now_s -= 60
        wait_until(lambda: stored_state(tmp_path / "state", first.key.id) == "expired")


async def test_a_key_that_ended_meanwhile_is_stored_so_at_the_start(tmp_path: Path) -> None:
    """As soon as the state is open: a crash right after that, with a clock set back, does not revive it."""
    clock = Clock()
    with opened(tmp_path / "state", clock=clock) as state:
        first = await state.ring.add("web", caller=ALICE)
        await rotate(state.ring, first.key.id)
    assert stored_state(tmp_path / "state", first.key.id) == "retiring"
    clock.now_s += 60
    with opened(tmp_path / "state", boot_id="boot-2", clock=clock):
        assert stored_state(tmp_path / "state", first.key.id) == "expired"


async def test_uses_show_at_once_and_reach_the_disk(tmp_path: Path) -> None:
    """The first use stays and the last one moves, also across restarts and changes of the ring."""
    clock = Clock()
    with opened(tmp_path / "state", clock=clock) as state:
        first = await state.ring.add("web", caller=ALICE)
        state.ring.record_use(first.key.id, "192.0.2.1")
        clock.now_s += 3
        state.ring.record_use(first.key.id, "192.0.2.2")
        used = shown(state.ring, first.key.id)
        assert (used.first_used_at, used.first_used_ip) == (utc_text(NOON_S), "192.0.2.1")
        assert (used.last_used_at, used.last_used_ip) == (utc_text(NOON_S + 3), "192.0.2.2")
        await rotate(state.ring, first.key.id)
    with opened(tmp_path / "state", boot_id="boot-2", clock=clock) as state:
        stored = shown(state.ring, first.key.id)
        assert (stored.first_used_at, stored.last_used_ip) == (used.first_used_at, "192.0.2.2")
        clock.now_s += 1
        state.ring.record_use(first.key.id, "192.0.2.9")
        assert shown(state.ring, first.key.id).first_used_ip == "192.0.2.1"
    with opened(tmp_path / "state", boot_id="boot-3", clock=clock) as state:
        key = shown(state.ring, first.key.id)
        assert (key.first_used_at, key.first_used_ip) == (utc_text(NOON_S), "192.0.2.1")
        assert (key.last_used_at, key.last_used_ip) == (utc_text(NOON_S + 4), "192.0.2.9")


@pytest.mark.sqlite
def test_uses_that_the_disk_refused_are_written_later(tmp_path: Path) -> None:
    """A full disk delays the note of a use, it does not lose it; without a use nothing is written."""
    disk = Disk()
    with opened(tmp_path / "state") as state:
        key = state.ring.ensure_initial_key(None).key
    assert key is not None
    with (
        StateDirectory(tmp_path / "state") as directory,
        closing((engine := Sqlite(directory.database, disk.connect)).open()) as connection,
    ):
        database = Database(engine, connection, "boot-2", Published())
        ring = KeyRing(Writer(database), database, directory, Clock())
        ring.record_use(key.id, "192.0.2.1")
        disk.full()
        with pytest.raises(EngineError):
            ring.store_uses()
        disk.mended()
        ring.store_uses()
        assert load_ring(database.connection).keys[0].last_used_ip == "192.0.2.1"
        disk.statements.clear()
        ring.store_uses()
        assert disk.statements == []


@pytest.mark.sqlite
async def test_requests_see_the_old_or_the_new_ring_whole(tmp_path: Path) -> None:
    """While changes run, no verification fails for a key that is good before and after."""
    with opened(tmp_path / "state") as state:
        steady = key_of(await state.ring.add("steady", caller=ALICE))
        newest = await state.ring.add("web", caller=ALICE)
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


async def test_a_long_dead_key_is_known_to_be_dead(tmp_path: Path) -> None:
    """A key that died before the last hundred is not shown any more, but still refused as what it is."""
    clock = Clock()
    with opened(tmp_path / "state", clock=clock) as state:
        oldest = newest = (await state.ring.add("web", caller=ALICE)).key.id
        for _ in range(103):
            clock.now_s += 1
            newest = (await rotate(state.ring, newest, grace_s=0)).key.id
        clock.now_s += 1
        await state.ring.revoke(newest, cut=False, caller=ALICE)
        keys = state.ring.keys()
        assert len(keys) == 100
        assert keys[-1].id == newest
        assert keys == sorted(keys, key=lambda key: (key.created_at, key.id))
        with pytest.raises(WrongState, match=f"{oldest}.*expired since"):
            await rotate(state.ring, oldest)


# Changes: once each, on the right generation, with their audit row.


async def test_every_change_has_its_audit_row(tmp_path: Path) -> None:
    """Who did what to which keys, in which order, with the generation that came of it."""
    with opened(tmp_path / "state") as state:
        first = await state.ring.add("web", caller=ALICE)
        second = await rotate(state.ring, first.key.id, on(1))
        await state.ring.extend(first.key.id, by_s=5, caller=on(2, caller=BOB))
        await state.ring.undo(first.key.id, caller=on(3, caller=BOB))
        await state.ring.revoke(first.key.id, cut=True, caller=on(4, caller=BOB))
        assert audited(state) == [
            ("add", "done", "alice", 1),
            ("rotate", "done", "alice", 2),
            ("extend", "done", "bob", 3),
            ("undo", "done", "bob", 4),
            ("revoke", "done", "bob", 5),
        ]
        entries = state.reader.audit().entries
        assert (entries[3].key_ids, entries[3].client) == ((second.key.id, first.key.id), "web")
        assert "grace 60 s" in (entries[3].detail or "")
        assert entries[0].detail == "its open streams are cut"
        assert (entries[0].uid, entries[0].pid) == (1001, 77)


async def test_a_repeated_change_happens_once(tmp_path: Path) -> None:
    """The second answer for the same Idempotency-Key tells what was done, without the secret."""
    with opened(tmp_path / "state") as state:
        first = await state.ring.add("web", caller=ALICE)
        done = await rotate(state.ring, first.key.id, on(1, "once-1"))
        assert done.secret is not None
        again = await rotate(state.ring, first.key.id, on(1, "once-1"))
        assert again == msgspec.structs.replace(done, secret=None, already_done=True)
        assert state.ring.generation == 2
    with opened(tmp_path / "state", boot_id="boot-2") as state:
        assert await rotate(state.ring, first.key.id, on(1, "once-1")) == again
        assert len(audited(state)) == 2


async def test_the_same_key_for_another_change_is_refused(tmp_path: Path) -> None:
    """An Idempotency-Key belongs to one change with all its parameters."""
    with opened(tmp_path / "state") as state:
        first = await state.ring.add("web", caller=ALICE)
        await rotate(state.ring, first.key.id, on(1, "once-1"))
        with pytest.raises(IdempotencyMismatch, match=f"rotate {first.key.id} grace 60 s"):
            await rotate(state.ring, first.key.id, on(2, "once-1"), grace_s=61)
        with pytest.raises(IdempotencyMismatch):
            await state.ring.revoke(first.key.id, cut=False, caller=on(2, "once-1"))
        assert state.ring.generation == 2


@pytest.mark.sqlite
async def test_an_idempotency_key_is_short_and_visible(tmp_path: Path) -> None:
    """Anything else is refused in words."""
    with opened(tmp_path / "state") as state:
        for once in ("", "with space", "x" * 201, "naïve", "a\0b"):
            with pytest.raises(BadChange, match="Idempotency-Key"):
                await state.ring.add("web", caller=on(0, once))
        assert state.ring.generation == 0


async def test_a_change_decided_on_an_older_ring_is_refused(tmp_path: Path) -> None:
    """The refusal names both generations, who moved the ring, and how."""
    with opened(tmp_path / "state") as state:
        first = await state.ring.add("web", caller=ALICE)
        await rotate(state.ring, first.key.id, on(1, "winner"))
        words = r"generation 1, and it is 2 now \(rotate by alice at 20"
        with pytest.raises(GenerationMismatch, match=words) as caught:
            await state.ring.revoke(first.key.id, cut=False, caller=on(1, "loser", BOB))
        assert (caught.value.expected, caught.value.actual) == (1, 2)
        assert (await rotate(state.ring, first.key.id, on(1, "winner"))).already_done
        assert audited(state)[-1] == ("revoke", "generation_mismatch", "bob", 2)


async def test_of_twenty_at_once_one_wins(tmp_path: Path) -> None:
    """Twenty operators on the same generation: one change, nineteen refusals, generation plus one."""
    with opened(tmp_path / "state") as state:
        first = await state.ring.add("web", caller=ALICE)
        answers = await asyncio.gather(
            *(rotate(state.ring, first.key.id, on(1, f"operator-{n}")) for n in range(20)),
            return_exceptions=True,
        )
        kinds = [type(answer) for answer in answers]
        assert (kinds.count(KeyChangeResult), kinds.count(GenerationMismatch)) == (1, 19)
        assert state.ring.generation == 2
        results = [result for _, result, _, _ in audited(state)]
        assert results == ["done", "done"] + ["generation_mismatch"] * 19


async def test_refusals_are_audited_and_change_nothing(tmp_path: Path) -> None:
    """Each kind of refusal leaves its code and sentence in the audit, whatever was in the request."""
    with opened(tmp_path / "state") as state:
        first = await state.ring.add("web", caller=ALICE)
        before = state.ring.keys()
        refused: list[type[RingError]] = []
        for attempt in (
            state.ring.add("web", caller=BOB),
            state.ring.add("\ud800\0" * 300, caller=BOB),
            rotate(state.ring, "\ud800\0nobody", BOB),
            state.ring.extend(first.key.id, by_s=1, caller=BOB),
        ):
            with pytest.raises(RingError) as caught:
                await attempt
            refused.append(caught.type)
        assert refused == [WrongState, BadChange, NoSuchKey, WrongState]
        results = [result for _, result, _, _ in audited(state)]
        assert results == ["done", "wrong_state", "bad_request", "no_such_key", "wrong_state"]
        newest = state.reader.audit().entries[0]
        assert (newest.key_ids, newest.client, newest.login) == ((first.key.id,), "web", "bob")
        assert "has no end" in (newest.detail or "")
        assert (state.ring.keys(), state.ring.generation) == (before, 1)


@pytest.mark.sqlite
async def test_an_older_ring_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Once, with both generations: a backup was restored, or a damaged WAL took the newest changes along."""
    with opened(tmp_path / "state") as state:
        await state.ring.add("web", caller=ALICE)
        state.close()
        older = state.path.read_bytes()
    with opened(tmp_path / "state", boot_id="boot-2") as state:
        for client in ("api", "bot"):
            await state.ring.add(client, caller=ALICE)
    assert "older" not in caplog.text
    state.path.write_bytes(older)
    with opened(tmp_path / "state", boot_id="boot-3") as state:
        state.ring.ensure_initial_key(None)
    assert "older (generation 1) than the one last in force here (generation 3)" in caplog.text
    caplog.clear()
    with opened(tmp_path / "state", boot_id="boot-4"):
        assert caplog.text == ""


# Bad disks.


@pytest.mark.sqlite
async def test_a_change_is_refused_once_the_database_has_left_its_place(tmp_path: Path) -> None:
    """Every change says so and leaves the ring as it is, and so does the state of the disk."""
    with opened(tmp_path / "state") as state:
        first = await state.ring.add("web", caller=ALICE)
        second = await rotate(state.ring, first.key.id)
        before = state.ring.keys()
        state.path.rename(tmp_path / "kept")
        for change in (
            state.ring.add("api", caller=ALICE),
            rotate(state.ring, second.key.id),
            state.ring.extend(first.key.id, by_s=1, caller=ALICE),
            state.ring.undo(first.key.id, caller=ALICE),
            state.ring.revoke(second.key.id, cut=False, caller=ALICE),
        ):
            with pytest.raises(RingUnavailable, match=r"nothing is changed.*was moved, deleted"):
                await change
        assert (state.ring.keys(), state.ring.generation) == (before, 2)
        with pytest.raises(StateReplaced):
            state.disk_use()
        (tmp_path / "kept").rename(state.path)
        assert state.disk_use() is not None
        assert (await rotate(state.ring, second.key.id)).generation == 3


@pytest.mark.parametrize(
    "failing",
    [
        "BEGIN",
        "INSERT INTO keys",
        "UPDATE ring",
        "INSERT INTO idempotency",
        "INSERT INTO audit",
        "UPDATE meta",
        "COMMIT",
    ],
)
async def test_whatever_the_disk_refuses_the_old_ring_stays(
    tmp_path: Path, failing: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A change that is not on disk is not in force: the old key works, and a repeat does too."""
    disk = Disk()
    with opened(tmp_path / "state", disk=disk) as state:
        first = await state.ring.add("web", caller=ALICE)
        disk.full(beginning=(failing,))
        with pytest.raises(RingUnavailable, match="nothing is changed"):
            await rotate(state.ring, first.key.id, on(1, "once"))
        assert state.ring.generation == 1
        assert state.ring.verify(key_of(first)) is not None
        assert shown(state.ring, first.key.id).state is KeyState.ACTIVE
        disk.mended()
        done = await rotate(state.ring, first.key.id, on(1, "once"))
        assert not done.already_done
        assert state.ring.verify(key_of(done)) is not None
    assert "could not be written to disk" in caplog.text
    assert key_of(first).decode() not in caplog.text


async def test_a_failure_is_audited_when_the_disk_allows(tmp_path: Path) -> None:
    """A change that failed on its own row is still found in the audit."""
    disk = Disk()
    with opened(tmp_path / "state", disk=disk) as state:
        first = await state.ring.add("web", caller=ALICE)
        disk.full(beginning=("INSERT INTO keys",))
        with pytest.raises(RingUnavailable):
            await rotate(state.ring, first.key.id)
        assert audited(state)[1:] == [("rotate", "ring_unavailable", "alice", 1)]


async def test_a_refusal_is_told_even_if_it_can_t_be_audited(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk does not turn 'no such key' into 'disk full'."""
    disk = Disk()
    with opened(tmp_path / "state", disk=disk) as state:
        disk.full(beginning=("INSERT INTO audit", "COMMIT"))
        with pytest.raises(NoSuchKey):
            await rotate(state.ring, "nobody")
        disk.mended()
    assert "A refused rotate of nobody could not be audited" in caplog.text


async def test_a_caller_who_leaves_does_not_part_memory_and_disk(tmp_path: Path) -> None:
    """Cancelled while its change is being stored, the change is in force in memory as on disk."""
    disk, gate, reached = Disk(), threading.Event(), threading.Event()

    def slow(sql: str) -> bool:
        if sql.startswith("UPDATE ring"):
            reached.set()
            assert gate.wait(10)
        return False

    with opened(tmp_path / "state", disk=disk) as state:
        first = await state.ring.add("web", caller=ALICE)
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


@pytest.mark.sqlite
@pytest.mark.parametrize("damage", ["DELETE FROM ring", "UPDATE keys SET created_at = x'00ff'"])
async def test_a_ring_that_makes_no_sense_stops_the_start(tmp_path: Path, damage: str) -> None:
    """Rather than run without knowing which keys are good, the start ends with a sentence."""
    with opened(tmp_path / "state") as state:
        await state.ring.add("web", caller=ALICE)
    with closing(sqlite3.connect(state.path, isolation_level=None)) as connection:
        connection.execute(damage)
    with (
        pytest.raises(StateDamaged, match=r"relayd\.db .*backup"),
        opened(tmp_path / "state", boot_id="boot-2"),
    ):
        pytest.fail("it began")


@pytest.mark.sqlite
async def test_the_file_itself_refuses_a_second_active_key(tmp_path: Path) -> None:
    """Whatever a bug decides, a client can't get two active keys on disk."""
    with opened(tmp_path / "state") as state:
        await state.ring.add("web", caller=ALICE)
    with closing(sqlite3.connect(state.path)) as connection, pytest.raises(sqlite3.IntegrityError):
        connection.execute(
            "INSERT INTO keys (id, client, digest, state, created_at)"
            " VALUES ('x', 'web', x'00', 'active', '')"
        )


@pytest.mark.sqlite
async def test_secrets_are_nowhere_on_disk(tmp_path: Path) -> None:
    """Neither database nor WAL nor index ever holds a key, during the run and after it."""
    with opened(tmp_path / "state") as state:
        first = await state.ring.add("web", caller=ALICE)
        second = await rotate(state.ring, first.key.id, on(1, "once"))
        contents = [file.read_bytes() for file in (tmp_path / "state").iterdir()]
    contents += [file.read_bytes() for file in (tmp_path / "state").iterdir()]
    for secret in (key_of(first), key_of(second)):
        assert all(secret[13:] not in content for content in contents)
        assert secret.decode() not in repr(first) + repr(second)
