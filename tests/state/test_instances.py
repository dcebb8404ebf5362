"""Several processes on one database: what one does holds for all, and each can ask the others."""

from __future__ import annotations

import asyncio
import os
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from relayd.state.budget import Demand, TooManyStreams, Use
from relayd.state.directory import StateDirectory
from relayd.state.engine import EngineError, Fault
from relayd.state.errors import RingStale, RingUnavailable, StateBusy, StateReplaced, StateUnreachable
from relayd.state.instances import Activity
from relayd.state.keyring import KeyOwner
from relayd.state.records import Client, KeyChangeResult, Lost, Outcome, Started
from relayd.state.state import State
from tests.state.harness import (
    ALICE,
    BorrowedDirectory,
    SharedDatabase,
    a_record,
    as_ended,
    opened,
    patience,
)
from tests.support.postgres import Postgres as PostgresServer
from tests.wire import PATIENCE_S, until


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> SharedDatabase:
    """A database for several instances, of each engine."""
    is_file = request.param == "sqlite"
    return SharedDatabase(tmp_path, None if is_file else request.getfixturevalue("postgres_url"))


@asynccontextmanager
async def together(database: SharedDatabase, count: int) -> AsyncIterator[list[State]]:
    """Yield several instances of one relay, once each has heard of all the others."""
    with database.opened(count) as states:
        for state in states:
            state.follow(lambda _: None)
        await until(lambda: all(len(state.instances.live()) == count for state in states))
        yield states
        for state in states:
            await state.commands.close()


def key_of(change: KeyChangeResult) -> bytes:
    """Return the secret of a change, as a client presents it."""
    assert change.secret is not None
    return change.secret.encode()


def bound_of(state: State) -> int | None:
    """Return how many streams the client `web` may have, as this instance knows it."""
    client = state.ring.client("web")
    assert client is not None
    return client.max_streams


def states_of(state: State) -> list[str]:
    """Return the states of all keys, oldest first, as this instance knows them."""
    keys = state.ring.keys()
    return [key.state.value for key in keys]


def trouble_of(state: State) -> str | None:
    """Return why an instance can't follow the others."""
    assert state.follower is not None
    return state.follower.error


# Changes of keys and clients.


async def test_a_change_holds_in_every_instance(database: SharedDatabase) -> None:
    """Keys and clients that one instance makes, changes or ends are so in the others, too."""
    async with together(database, 3) as (one, two, three):
        added = await one.ring.add_client("web", {"max_streams": 3}, caller=ALICE)
        assert added.secret is not None
        assert added.key is not None
        secret = added.secret.encode()
        await two.instances.with_ring(added.generation, PATIENCE_S)
        for state in (two, three):
            assert state.ring.verify(secret) == KeyOwner(added.key.id, "web")
            assert bound_of(state) == 3
        await two.ring.set_client("web", {"max_streams": 5}, caller=ALICE)
        rotated = await two.ring.rotate(added.key.id, grace_s=600, caller=ALICE)
        await three.instances.with_ring(rotated.generation, PATIENCE_S)
        for state in (one, three):
            assert state.ring.verify(key_of(rotated)) == KeyOwner(rotated.key.id, "web")
            assert state.ring.verify(secret) is not None
            assert bound_of(state) == 5
        removed = await three.ring.remove_client("web", cut=False, caller=ALICE)
        await one.instances.with_ring(removed.generation, PATIENCE_S)
        for state in (one, two):
            assert state.ring.verify(secret) is None
            assert state.ring.verify(key_of(rotated)) is None
            assert state.ring.client("web") is None
            assert states_of(state) == ["revoked", "revoked"]


async def test_an_instance_knows_what_changed_during_its_start(database: SharedDatabase) -> None:
    """Else it would refuse a key that was made, and accept one that was revoked, when it begins to serve."""
    with database.opened(2) as (one, starting):
        change = await one.ring.add("web", caller=ALICE)
        starting.follow(lambda _: None)
        await starting.caught_up()
        assert starting.ring.verify(key_of(change)) == KeyOwner(change.key.id, "web")


async def test_each_instance_changes_what_the_others_made(database: SharedDatabase) -> None:
    """Changes in turn, each of what another made: one that is not followed yet is the base of the next."""
    async with together(database, 3) as states:
        key_id = (await states[0].ring.add("web", caller=ALICE)).key.id
        for turn in range(12):
            change = await states[turn % 3].ring.rotate(key_id, grace_s=600, caller=ALICE)
            key_id = change.key.id
            assert change.generation == turn + 2
            assert states[turn % 3].ring.verify(key_of(change)) is not None
        for state in states:
            await state.instances.with_ring(13, PATIENCE_S)
            await until(lambda ring=state.ring: ring.generation == 13)  # type: ignore[misc]
            assert sorted(states_of(state)) == ["active", *["retiring"] * 12]
            assert state.ring.verify(key_of(change)) == KeyOwner(key_id, "web")


async def test_instances_change_keys_at_the_same_time(database: SharedDatabase) -> None:
    """Each change of each instance has its own generation and place in the log, and all have all keys."""
    names = [f"client-{number:02}" for number in range(15)]
    with patience():
        async with together(database, 3) as states:
            await asyncio.gather(
                *(states[at % 3].ring.add_client(name, {}, caller=ALICE) for at, name in enumerate(names))
            )
            await until(lambda: all(state.ring.generation == 15 for state in states))
            for state in states:
                assert [client.name for client in state.ring.clients()] == [*names, "default"]
                assert states_of(state) == ["active"] * 15
            entries = states[0].reader.audit().entries[::-1]
    assert [(entry.seq, entry.generation) for entry in entries] == [(n, n) for n in range(1, 16)]


async def test_the_answer_says_which_instances_have_the_change(database: SharedDatabase) -> None:
    """All that follow are told to have it; one that does not is named without it, and waited for in vain."""
    with database.opened(3) as states:
        for state in states[:2]:
            state.follow(lambda _: None)
        await until(lambda: len(states[0].instances.live()) == 3)
        change = await states[0].ring.add("web", caller=ALICE)
        answers = await states[0].instances.with_ring(change.generation, 0.0)
        assert {answer.boot_id for answer in answers} == {"boot-1", "boot-2", "boot-3"}
        assert answers[0].has_it
        assert (answers[2].has_it, answers[2].generation) == (False, 0)
        await until(lambda: states[0].instances.live()[1].generation == change.generation)
        answers = await states[0].instances.with_ring(change.generation, 0.0)
        assert [answer.has_it for answer in answers] == [True, True, False]


async def test_a_cut_reaches_every_instance(database: SharedDatabase) -> None:
    """Each is told once which keys lose their streams: that of a revoke, all of a removed client."""
    async with together(database, 2) as (one, two):
        cuts: list[tuple[str, str]] = []
        for state in (one, two):
            boot_id = state.instances.identity.boot_id
            state.ring.on_cut = lambda ids, boot_id=boot_id: cuts.extend((boot_id, one) for one in ids)  # type: ignore[misc]
        first = (await one.ring.add("web", caller=ALICE)).key.id
        second = (await one.ring.rotate(first, grace_s=600, caller=ALICE)).key.id
        third = (await one.ring.rotate(second, grace_s=600, caller=ALICE)).key.id
        other = (await one.ring.add("other", caller=ALICE)).key.id
        await one.ring.revoke(first, cut=False, caller=ALICE)
        await one.ring.revoke(second, cut=True, caller=ALICE)
        await until(lambda: len(cuts) == 2)
        assert sorted(cuts) == [("boot-1", second), ("boot-2", second)]
        cuts.clear()
        await two.ring.remove_client("web", cut=True, caller=ALICE)
        await until(lambda: len(cuts) == 4)
        assert sorted(cuts) == sorted((boot, key) for boot in ("boot-1", "boot-2") for key in (first, third))
        assert one.ring.client("other") is not None, other


async def test_evidence_counts_everywhere(database: SharedDatabase) -> None:
    """The uses of a key through all instances are shown by each: the first of all and the last of all."""
    async with together(database, 2) as (one, two):
        change = await one.ring.add("web", caller=ALICE)
        await one.instances.with_ring(change.generation, PATIENCE_S)
        one.ring.record_use(change.key.id, "192.0.2.1")
        await until(lambda: two.ring.keys()[0].last_used_ip == "192.0.2.1")
        two.ring.record_use(change.key.id, "192.0.2.2")
        await until(lambda: one.ring.keys()[0].last_used_ip == "192.0.2.2")
        for state in (one, two):
            (key,) = state.ring.keys()
            assert (key.first_used_ip, key.last_used_ip) == ("192.0.2.1", "192.0.2.2")
        await until(lambda: one.reader.keys()[1][0].last_used_ip == "192.0.2.2")
        assert one.reader.keys()[1][0].first_used_ip == "192.0.2.1"


async def test_an_older_ring_is_refused(database: SharedDatabase, caplog: pytest.LogCaptureFixture) -> None:
    """If the database lost a change, the ring in memory stays in force, changes fail, and it says why."""
    async with together(database, 2) as (one, two):
        first = await one.ring.add("web", caller=ALICE)
        second = await one.ring.rotate(first.key.id, grace_s=600, caller=ALICE)
        await one.instances.with_ring(second.generation, PATIENCE_S)
        database.execute("UPDATE ring SET generation = generation - 1")
        await until(lambda: one.ring.error is not None and two.ring.error is not None)
        assert "another key ring (generation 1, " in (two.ring.error or "")
        assert "another key ring" in caplog.text
        for state in (one, two):
            assert state.ring.generation == 2
            assert state.ring.verify(key_of(second)) is not None
            with pytest.raises(RingUnavailable, match=r"nothing is changed\. .*another key ring"):
                await state.ring.revoke(second.key.id, cut=False, caller=ALICE)
        database.execute("UPDATE ring SET generation = generation + 1")
        await until(lambda: one.ring.error is None and two.ring.error is None)
        database.execute("UPDATE ring SET changed_at = '2026-01-01T00:00:00.000Z'")
        await until(lambda: one.ring.error is not None)
        assert two.ring.verify(key_of(second)) is not None


async def test_a_ring_that_went_on_from_an_older_one_is_refused(database: SharedDatabase) -> None:
    """Also if it has more changes by now than the one in memory: those that it lost are not among them."""
    async with together(database, 2) as (one, two):
        first = await one.ring.add("web", caller=ALICE)
        await one.ring.revoke(first.key.id, cut=False, caller=ALICE)
        await two.instances.with_ring(2, PATIENCE_S)
        database.execute("UPDATE audit SET at = '2026-01-01T00:00:00.000Z' WHERE generation = 2")
        database.execute("UPDATE keys SET state = 'active', revoked_at = NULL, generation = 4")
        database.execute("UPDATE ring SET generation = 4, changed_at = '2026-01-02T00:00:00.000Z'")
        await until(lambda: one.ring.error is not None and two.ring.error is not None)
        for state in (one, two):
            assert state.ring.generation == 2
            assert state.ring.verify(key_of(first)) is None
            with pytest.raises(RingUnavailable, match="another key ring"):
                await state.ring.add("other", caller=ALICE)


async def test_a_key_that_was_extended_elsewhere_lives_on(
    database: SharedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An instance that does not know it yet sees the old end pass; the key is not stored as expired."""
    with database.opened(1) as (state,):
        old = await state.ring.add("web", caller=ALICE)
        await state.ring.rotate(old.key.id, grace_s=600, caller=ALICE)
    with database.opened(2) as (one, behind):
        await one.ring.extend(old.key.id, by_s=3600, caller=ALICE)
        monkeypatch.setattr(behind.ring, "_clock", lambda: time.time() + 700)
        assert behind.ring.verify(key_of(old)) is None
        await until(lambda: behind.ring.verify(key_of(old)) is not None)
        assert [key.state.value for key in one.reader.keys()[1]] == ["retiring", "active"]


async def test_an_instance_with_another_ring_does_not_have_a_change(
    database: SharedDatabase, tmp_path: Path
) -> None:
    """Those that keep the newer ring of before are not told to have what is made from the older one."""
    async with together(database, 2) as (one, two):
        await one.ring.add("web", caller=ALICE)
        before = database.execute("SELECT generation, changed_at, changed_by, change FROM ring")[0]
        lost = await one.ring.add("other", caller=ALICE)
        await one.instances.with_ring(lost.generation, PATIENCE_S)
        # What a standby would have that took over without the last change.
        update = "UPDATE ring SET generation = ?, changed_at = ?, changed_by = ?, change = ?"
        database.execute(update, *before)
        for table, own in (("keys", "client"), ("clients", "name"), ("audit", "client")):
            database.execute(f"DELETE FROM {table} WHERE {own} = 'other'")  # noqa: S608 - own SQL
        await until(lambda: one.ring.error is not None and two.ring.error is not None)
        for state in (one, two):
            await until(lambda state=state: [each.generation for each in state.instances.live()] == [-1, -1])  # type: ignore[misc]
            assert state.ring.verify(key_of(lost)) is not None
            with pytest.raises(RingStale):
                state.ring.verify(b"perhaps made since")
        with StateDirectory(tmp_path / "lock", has_database=False) as lock:
            restarted = database.instance(BorrowedDirectory(lock), 3)
            with closing(restarted):
                change = await restarted.ring.add("new", caller=ALICE)
                assert change.generation == lost.generation
                answers = await restarted.instances.with_ring(change.generation, 0.0)
        assert {answer.boot_id: answer.has_it for answer in answers} == {
            "boot-1": False,
            "boot-2": False,
            "boot-3": True,
        }


async def test_a_key_that_may_have_been_made_elsewhere_is_not_refused(
    database: SharedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An instance that has not looked at the database for a second does not say that a key is wrong."""
    with database.opened(2) as (one, behind):
        made = await one.ring.add("web", caller=ALICE)
        monkeypatch.setattr(behind.ring, "_confirmed_at", time.monotonic() - 1.1)
        with pytest.raises(RingStale):
            behind.ring.verify(key_of(made))
        assert behind.ring.verify(b"") is None
        behind.follow(lambda _: None)
        await until(lambda: _is_valid(behind, key_of(made)))


def _is_refused(state: State, key: bytes) -> bool:
    with suppress(RingStale):
        return state.ring.verify(key) is None
    return False


def _is_valid(state: State, key: bytes) -> bool:
    with suppress(RingStale):
        return state.ring.verify(key) is not None
    return False


async def test_after_a_commit_without_an_answer_nothing_waits_for_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client with bounds is refused at once, until the database says what became of the commit."""
    client = Client(name="web", created_at="2026-01-01T00:00:00.000Z", max_streams=100)
    use = Use(1, 10, 0)

    def demand(number: int) -> Demand:
        return Demand(f"req-{number:06d}", client, "k", "gpt-4o-mini", use, use)

    def no_answer() -> None:
        raise EngineError("no answer", Fault.UNKNOWN, StateUnreachable("no answer"))

    with SharedDatabase(tmp_path).opened(1) as (one,):
        connection = one._database.connection
        with monkeypatch.context() as patch:
            patch.setattr(connection, "was_committed", no_answer)
            patch.setattr(connection, "commit", no_answer)
            with pytest.raises(StateUnreachable):
                await one.budget.reserve(demand(1))
            with pytest.raises(StateUnreachable, match="did not answer a commit"):
                await one.budget.reserve(demand(2))
            patch.setattr(connection, "commit", type(connection).commit.__get__(connection))
            patch.setattr(connection, "was_committed", lambda: False)
            await until(lambda: not one._database.is_undecided)
            await one.budget.reserve(demand(3))


async def test_the_streams_of_a_client_are_bounded_over_all(database: SharedDatabase) -> None:
    """What one instance has open is not left for the others, until it ends."""
    async with together(database, 2) as (one, two):
        client = Client(name="web", created_at="2026-01-01T00:00:00.000Z", max_streams=2)
        use = Use(1, 10, 0)

        def demand(number: int, streams: int) -> Demand:
            return Demand(f"req-{number:06d}", client, "k", "gpt-4o-mini", use, use, streams=streams)

        assert one.budget.counts(client)
        await one.budget.reserve(demand(1, 1))
        await two.budget.reserve(demand(2, 1))
        for state in (one, two):
            with pytest.raises(TooManyStreams):
                await state.budget.reserve(demand(3, 2))
        record = a_record(1)
        one.log.started(record)
        one.log.ended(as_ended(record))
        await until(lambda: database.execute("SELECT id FROM reservations") == [("req-000002",)])
        await two.budget.reserve(demand(3, 2))
        with pytest.raises(TooManyStreams):
            await one.budget.reserve(demand(4, 1))


async def test_a_crowd_at_one_instance_gets_all_that_is_left_of_the_streams(database: SharedDatabase) -> None:
    """Those that wait with it take nothing from a request: some of them will be refused."""
    async with together(database, 2) as (one, two):
        client = Client(name="web", created_at="2026-01-01T00:00:00.000Z", max_streams=5)
        use = Use(1, 10, 0)

        async def ask(state: State, numbers: range) -> int:
            demands = [
                Demand(f"req-{n:06d}", client, "k", "gpt-4o-mini", use, use, streams=5) for n in numbers
            ]
            answers = await asyncio.gather(*map(state.budget.reserve, demands), return_exceptions=True)
            refused = sum(isinstance(answer, TooManyStreams) for answer in answers)
            assert refused + sum(isinstance(answer, list) for answer in answers) == len(numbers), answers
            return len(numbers) - refused

        assert await ask(two, range(2)) == 2
        assert await ask(one, range(2, 7)) == 3
        assert await ask(two, range(7, 12)) == 0


async def test_a_place_in_the_log_is_given_once(database: SharedDatabase) -> None:
    """Also if the database lost it meanwhile: no request overwrites another."""
    async with together(database, 2) as (one, two):
        first, second = a_record(1, "boot-1"), a_record(2, "boot-2")
        one.log.started(first)
        await until(lambda: not one.log.queued)
        # What a standby would have that took over without the last commit.
        database.execute("DELETE FROM requests")
        database.execute("UPDATE meta SET value = 0 WHERE name = 'seq'")
        two.log.started(second)
        await until(lambda: not two.log.queued)
        one.log.ended(as_ended(first))
        await until(lambda: not one.log.queued)
        two.log.ended(as_ended(second))
        await until(lambda: not two.log.queued)
        for record in (first, second):
            found = one.reader.get(record.id)
            assert found is not None
            assert (found.boot_id, found.outcome) == (record.boot_id, Outcome.COMPLETED)
        assert (one.log.lost, two.log.lost) == (0, 0)


async def test_the_log_says_what_the_database_lost(database: SharedDatabase) -> None:
    """It goes on behind the places that were seen in use, for those who have read that far."""
    async with together(database, 1) as (one,):
        record = a_record(1)
        one.log.started(record)
        one.log.ended(as_ended(record))
        await until(lambda: not one.log.queued)
        database.execute("DELETE FROM requests")
        database.execute("UPDATE meta SET value = 0 WHERE name = 'seq'")
        one.log.started(a_record(2))
        await until(lambda: not one.log.queued)
        lost, started = one.reader.events(2)
        assert isinstance(lost, Lost)
        assert (lost.seq, lost.count, lost.reason) == (3, 2, "the database lost the newest part of the log")
        assert isinstance(started, Started)
        assert (started.seq, started.record.id) == (4, "req-000002")


# The database stands still.


async def test_a_revoke_holds_without_notifications(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are a hint: what they would say is found out anyway."""
    monkeypatch.setattr("relayd.state.postgres.PostgresConnection.notify", lambda _: None)
    async with together(SharedDatabase(tmp_path, postgres_url), 2) as (one, two):
        change = await one.ring.add("web", caller=ALICE)
        await until(lambda: two.ring.verify(key_of(change)) is not None)
        await one.ring.revoke(change.key.id, cut=False, caller=ALICE)
        await until(lambda: two.ring.verify(key_of(change)) is None)


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_keys_work_while_postgresql_does_not(
    tmp_path: Path, postgres: PostgresServer, postgres_url: str, how: str
) -> None:
    """Known keys stay valid, changes fail, and all is as before when the server answers again."""
    async with together(SharedDatabase(tmp_path, postgres_url), 2) as (one, two):
        change = await one.ring.add("web", caller=ALICE)
        await until(lambda: two.ring.verify(key_of(change)) is not None)
        if how == "killed":
            postgres.kill()
        else:
            postgres.freeze()
        await until(lambda: trouble_of(one) is not None and trouble_of(two) is not None)
        for state in (one, two):
            assert state.ring.verify(key_of(change)) is not None
            assert not state.ring.is_stale
            with pytest.raises(RingStale):
                state.ring.verify(b"perhaps made elsewhere")
        with pytest.raises(RingUnavailable, match="does not answer"):
            await two.ring.revoke(change.key.id, cut=False, caller=ALICE)
        assert await one.commands.ask("nothing", timeout_s=0.1) == {}
        two.ring.stale_after_s = 0.0
        with pytest.raises(RingStale, match="stale_after_s"):
            two.ring.verify(key_of(change))
        postgres.thaw()
        postgres.start()
        two.ring.stale_after_s = PATIENCE_S
        await until(lambda: trouble_of(one) is None and trouble_of(two) is None)
        # The follower has looked; how long ago is the machine's affair.
        await until(lambda: _is_refused(two, b"perhaps made elsewhere"))
        await two.ring.revoke(change.key.id, cut=False, caller=ALICE)
        await until(lambda: one.ring.verify(key_of(change)) is None)


# Who is there.


async def test_all_instances_see_each_other(database: SharedDatabase) -> None:
    """Each is listed with what it says of itself, until it ends."""
    async with together(database, 2) as (one, two):
        two.instances.address = "http://127.0.0.2:3666"
        two.instances.activity = lambda: Activity("paused", 7)
        two.instances.announce()
        await until(lambda: one.instances.others()[0].intake == "paused")
        (seen,) = one.instances.others()
        assert (seen.boot_id, seen.worker, seen.streams) == ("boot-2", 2, 7)
        assert (seen.address, seen.pid) == ("http://127.0.0.2:3666", os.getpid())
        assert seen.name.endswith("-2")
        assert 0 <= seen.heartbeat_age_s < PATIENCE_S
        assert [instance.boot_id for instance in two.instances.live()] == ["boot-1", "boot-2"]
        two.close()
        await until(lambda: one.instances.others() == [])
        assert [instance.boot_id for instance in one.instances.live()] == ["boot-1"]


async def test_an_instance_without_heartbeats_is_dead(database: SharedDatabase) -> None:
    """After 15 s without one it is not listed; the clock is that of the database."""
    async with together(database, 1) as (one,):
        row = """INSERT INTO instances SELECT ?, name, worker, address, pid, version, started_at,
            heartbeat_at - ?, NULL, generation, intake, streams FROM instances WHERE boot_id = 'boot-1'"""
        database.execute(row, "long-dead", 100.0)
        database.execute(row, "here", -1000.0)
        await until(lambda: len(one.instances.live()) == 2)
        assert [other.boot_id for other in one.instances.others()] == ["here"]


async def test_a_relay_that_cannot_write_loses_sight_of_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the disk is full, no heartbeat is new: else a pause of one worker would look like one of all."""
    now_s = 0.0
    clock = SimpleNamespace(monotonic=lambda: now_s)
    database = SharedDatabase(tmp_path)
    async with together(database, 2) as (one, two):
        monkeypatch.setattr("relayd.state.instances.time", clock)
        for state in (one, two):
            state.instances.announce()
        await until(lambda: all(state.instances.own.heartbeat_age_s == 0.0 for state in (one, two)))

        def fail() -> None:
            raise EngineError("disk full", Fault.FULL, StateBusy("The disk is full."))

        for state in (one, two):
            state.instances.heartbeat_task.run = fail
            state.instances.announce()
        await until(lambda: all(state.instances.heartbeat_task.is_failing for state in (one, two)))
        database.execute("UPDATE instances SET heartbeat_at = heartbeat_at - 100")
        await until(lambda: one.instances.others() == [])
        now_s += 100.0
        await until(lambda: [other.boot_id for other in one.instances.others()] == ["boot-2"])


@pytest.mark.parametrize("is_first", [True, False], ids=["the first of all", "the next of its number"])
async def test_a_worker_ends_those_whose_place_it_takes(tmp_path: Path, *, is_first: bool) -> None:
    """All others, or the one that had its number: nothing waits until their heartbeats are old."""
    database = SharedDatabase(tmp_path)
    with database.opened(2) as states:
        states[1].log.started(a_record(1, "boot-2"))
        await until(lambda: not states[1].log.queued)
        with StateDirectory(tmp_path / "lock") as lock:
            new = database.instance(BorrowedDirectory(lock), 2, boot_id="new", is_first=is_first)
            found = new.reader.get("req-000001")
            new.close()
        live = {boot for (boot,) in database.execute("SELECT boot_id FROM instances WHERE ended_at IS NULL")}
    assert live == (set() if is_first else {"boot-1"})
    assert found is not None
    assert found.outcome is (Outcome.CRASHED if is_first else None)


async def test_only_an_instance_in_touch_judges_the_others(
    database: SharedDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Others are dead after 15 s in which this one was in touch, not because it was out of touch itself."""
    now_s = 0.0
    clock = SimpleNamespace(monotonic=lambda: now_s)
    monkeypatch.setattr("relayd.state.instances.time", clock)
    monkeypatch.setattr("relayd.state.state._RECOVER_EVERY_S", 0.01)
    with database.opened(1) as (state,):
        state.log.started(a_record(1))
    database.execute("UPDATE requests SET boot_id = 'dead'")
    async with together(database, 1) as (one,):

        async def beat_after(pause_s: float) -> None:
            nonlocal now_s
            now_s += pause_s
            one.instances.announce()
            await until(lambda: one.instances.own.heartbeat_age_s == 0.0)

        def is_closed() -> bool:
            record = one.reader.get("req-000001")
            assert record is not None
            return record.outcome is not None

        for _ in range(3):
            await beat_after(4.9)
            assert not is_closed()
        now_s += 4.9
        await until(is_closed)
        now_s += 10.0
        database.execute("UPDATE requests SET end_seq = NULL, outcome = NULL")
        await beat_after(0.0)
        for _ in range(3):
            await beat_after(4.9)
            assert not is_closed()
        now_s += 4.9
        await until(is_closed)


@pytest.mark.parametrize("is_replaced", [False, True], ids=["moved away", "replaced"])
def test_a_worker_opens_no_other_database(tmp_path: Path, *, is_replaced: bool) -> None:
    """Else it would serve with an empty ring, or with older keys, beside workers that have the right ones."""
    with StateDirectory(tmp_path / "state") as lock:

        def open_next() -> State:
            return SharedDatabase(tmp_path).instance(BorrowedDirectory(lock), 2, boot_id="next")

        open_next().close()
        lock.database.rename(tmp_path / "moved.db")
        if is_replaced:
            shutil.copy(tmp_path / "moved.db", lock.database)
        with pytest.raises(StateReplaced, match="moved, deleted or replaced"):
            open_next()
        assert lock.database.exists() == is_replaced


async def test_the_log_of_one_is_news_for_the_others(database: SharedDatabase) -> None:
    """Each is told how far the log reaches, whoever wrote it, and can read all of it without a gap."""
    with database.opened(2) as (one, two):
        reached: list[int] = []
        two.follow(reached.append)
        for number in range(1, 4):
            record = a_record(number)
            one.log.started(record)
            one.log.ended(as_ended(record))
        await until(lambda: reached[-1:] == [6])
        assert [event.seq for event in two.reader.events(0)] == [1, 2, 3, 4, 5, 6]  # type: ignore[union-attr]


# Commands.


async def test_a_command_is_answered_by_all(database: SharedDatabase) -> None:
    """Each instance does it once, and the one who asked has all replies."""
    async with together(database, 3) as states:
        done: list[tuple[str, Any]] = []
        for state in states:

            async def add(argument: Any, boot_id: str = state.instances.identity.boot_id) -> Any:
                done.append((boot_id, argument))
                return {"boot": boot_id, "sum": argument["a"] + 1}

            state.commands.handle("add", add)
        replies = await states[1].commands.ask("add", {"a": 41}, timeout_s=PATIENCE_S)
        assert replies == {boot: {"boot": boot, "sum": 42} for boot in ("boot-1", "boot-2", "boot-3")}
        assert sorted(done) == [(boot, {"a": 41}) for boot in ("boot-1", "boot-2", "boot-3")]
        done.clear()
        replies = await states[1].commands.ask("add", {"a": 1}, instance="boot-3", timeout_s=PATIENCE_S)
        assert list(replies) == ["boot-3"]
        replies = await states[1].commands.ask("add", {"a": 2}, instance="boot-2", timeout_s=PATIENCE_S)
        assert done == [("boot-3", {"a": 1}), ("boot-2", {"a": 2})]


async def test_a_command_that_is_stored_while_it_is_done_here_is_answered(database: SharedDatabase) -> None:
    """The loop may hear of both in one turn; none of the replies is lost, and no question stays open."""
    async with together(database, 2) as (one, two):

        async def slow(_: Any) -> Any:
            # Nothing else runs on the loop before the command is stored: the next call is done after it.
            one._writer.call(lambda: None).result(PATIENCE_S)
            await asyncio.sleep(0)
            return True

        async def quick(_: Any) -> Any:
            return True

        one.commands.handle("try", slow)
        two.commands.handle("try", quick)
        for _ in range(5):
            replies = await one.commands.ask("try", timeout_s=PATIENCE_S)
            assert replies == {"boot-1": True, "boot-2": True}
        assert one.commands._replies == {}


async def test_an_instance_that_has_just_joined_is_asked(database: SharedDatabase) -> None:
    """Also by one that has not heard of it yet: a pause would be in force on one of two workers."""
    with database.opened(2) as (one, two):

        async def agree(_: Any) -> Any:
            return True

        for state in (one, two):
            state.commands.handle("try", agree)
        two.follow(lambda _: None)
        assert one.instances.others() == []
        asking = asyncio.create_task(one.commands.ask("try", timeout_s=PATIENCE_S), name="ask")
        await asyncio.sleep(0)
        one.follow(lambda _: None)
        assert await asking == {"boot-1": True, "boot-2": True}
        for state in (one, two):
            await state.commands.close()


async def test_an_instance_that_cannot_answer_has_no_reply(database: SharedDatabase) -> None:
    """One that fails, or is of a version that does not know the command, is missing after the time for it."""
    async with together(database, 3) as (one, two, _):

        async def fail(_: Any) -> Any:
            raise ZeroDivisionError

        async def agree(_: Any) -> Any:
            return "yes"

        one.commands.handle("try", agree)
        two.commands.handle("try", fail)
        assert await one.commands.ask("try", timeout_s=0.5) == {"boot-1": "yes"}
        one.commands.handle("again", agree)
        two.commands.handle("again", agree)
        replies = await one.commands.ask("again", instance="boot-2", timeout_s=PATIENCE_S)
        assert replies == {"boot-2": "yes"}


async def test_an_instance_alone_answers_itself(tmp_path: Path) -> None:
    """The only process of a database has no follower, writes no row, and answers each command."""
    with opened(tmp_path / "state") as state:
        state.follow(lambda _: None)

        async def double(argument: Any) -> Any:
            return 2 * argument

        state.commands.handle("double", double)
        assert await state.commands.ask("double", 21) == {"boot-1": 42}
        assert await state.commands.ask("double", 21, instance="boot-9") == {}
        assert not state.budget.counts(Client(name="web", created_at="", max_streams=2))
        (own,) = state.instances.live()
        assert (own.boot_id, own.worker, own.pid, own.heartbeat_age_s) == ("boot-1", None, os.getpid(), 0.0)
        change = await state.ring.add("web", caller=ALICE)
        (answer,) = await state.instances.with_ring(change.generation)
        assert answer.has_it
        assert state.follower is None
    with closing(sqlite3.connect(state.path)) as connection:
        for table in ("instances", "commands", "replies"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)  # noqa: S608


async def test_what_is_over_is_forgotten(database: SharedDatabase) -> None:
    """Commands and replies go after a minute, instances an hour after their end."""
    async with together(database, 2) as (one, two):

        async def agree(_: Any) -> Any:
            return True

        for state in (one, two):
            state.commands.handle("try", agree)
        await one.commands.ask("try", timeout_s=PATIENCE_S)
        database.execute("UPDATE commands SET at = at - 61")
        database.execute(
            """INSERT INTO instances SELECT 'old', name, worker, address, pid, version, started_at,
            heartbeat_at - 3700, NULL, generation, intake, streams FROM instances WHERE boot_id = 'boot-1'""",
        )
        await one.commands.ask("try", timeout_s=PATIENCE_S)
        one.instances.forget_task.due = 0.0
        one.instances.announce()

        def left() -> tuple[int, int, int]:
            commands, replies, instances = (
                database.execute(f"SELECT count(*) FROM {table}")[0][0]  # noqa: S608
                for table in ("commands", "replies", "instances")
            )
            return commands, replies, instances

        await until(lambda: left() == (1, 1, 2))


async def test_a_state_that_is_closed_asks_no_others(database: SharedDatabase) -> None:
    """A command to the others that comes after the end is refused as every change is."""
    async with together(database, 1) as (state,):
        state.close()
        with pytest.raises(StateBusy):
            await state.commands.ask("anything")
