"""The state as a whole: opened, used and closed by one daemon."""

from __future__ import annotations

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import pytest

from relayd.files import DATABASE
from relayd.state.backup import back_up
from relayd.state.directory import LOCK_NAME
from relayd.state.errors import (
    RingUnavailable,
    StateBusy,
    StateDamaged,
)
from relayd.state.key_operations import InitialKeyOutcome
from relayd.state.records import Audited, Ended, Outcome, Phase, Started
from tests.state.harness import (
    ALICE,
    NOON_S,
    Clock,
    Disk,
    Published,
    a_record,
    as_ended,
    opened,
)
from tests.wire import wait_until

pytestmark = pytest.mark.usefixtures("engine_kind")


def test_a_request_is_on_disk_and_published_as_it_starts_and_ends(tmp_path: Path) -> None:
    """The path of every request: noted, committed, published, readable, there after a restart."""
    published = Published()
    with opened(tmp_path / "state", published=published) as state:
        record = a_record()
        state.log.started(record)
        (started,) = published.wait_for(1)
        assert isinstance(started, Started)
        state.log.ended(as_ended(record, 502))
        ended = published.wait_for(2)[1]
        assert isinstance(ended, Ended)
        assert ended.record.seq == started.seq == 1
        stored = state.reader.get(record.id)
        assert stored == ended.record
        assert (state.log.queued, state.log.lost, state.log.error) == (0, 0, None)
    with opened(tmp_path / "state", boot_id="boot-2") as state:
        assert state.reader.get(record.id) == stored
        assert state.reader.newest_seq() == 2


async def test_an_operator_s_act_is_audited(tmp_path: Path) -> None:
    """The entry comes back with its place, is published and readable; hostile text does no harm."""
    published = Published()
    with opened(tmp_path / "state", published=published, clock=Clock()) as state:
        entry = await state.audit.record(
            "cancel", "done", peer=ALICE.peer, key_ids=("a", "\ud800"), detail="é\0\ud800"
        )
        assert (entry.seq, entry.boot_id, entry.detail) == (1, "boot-1", "é\ufffd\ufffd")
        assert (entry.key_ids, entry.uid, entry.pid, entry.login) == (("a", "\ufffd"), 1000, 4242, "alice")
        assert published.wait_for(1) == [Audited(1, "boot-1", entry)]
        assert state.reader.audit().entries == [entry]


async def test_an_act_that_can_t_be_audited_is_told(tmp_path: Path) -> None:
    """With a full disk the caller learns that there is no audit row, in words."""
    disk = Disk()
    with opened(tmp_path / "state", disk=disk) as state:
        disk.full(beginning=("INSERT INTO audit",))
        with pytest.raises(StateBusy, match="free space"):
            await state.audit.record("pause", "done", peer=ALICE.peer)
        disk.mended()


@pytest.mark.sqlite
async def test_a_backup_in_place_of_a_database_in_use_is_what_the_next_start_has(tmp_path: Path) -> None:
    """Nothing of the old WAL comes into it, and the old database is whole where it was moved to."""
    with opened(tmp_path / "state") as state:
        await state.ring.add("web", caller=ALICE)
        back_up(state.path, tmp_path / "b.db")
        with closing(sqlite3.connect(state.path, isolation_level=None)) as reader:
            # Else a checkpoint may have emptied the WAL.
            reader.execute("BEGIN")
            reader.execute("SELECT * FROM ring").fetchall()
            for number in range(3):
                await state.ring.add(f"later-{number}", caller=ALICE)
        state.path.rename(tmp_path / "moved.db")
        (tmp_path / "b.db").rename(state.path)
        assert state.close()
    with opened(tmp_path / "state", boot_id="boot-2") as state:
        assert [key.client for key in state.reader.keys()[1]] == ["web"]
    with closing(sqlite3.connect(tmp_path / "moved.db")) as moved:
        assert moved.execute("SELECT count(*) FROM keys").fetchone() == (4,)


@pytest.mark.sqlite
def test_a_clean_end_leaves_no_wal(tmp_path: Path) -> None:
    """After the close there is no WAL left, and a second close does no harm."""
    with opened(tmp_path / "state") as state:
        state.log.started(a_record())
        assert state.reader.newest_seq() >= 0
        assert state.close() is True
        assert state.close() is True
    assert {file.name for file in (tmp_path / "state").iterdir()} == {DATABASE, LOCK_NAME}
    assert threading.active_count() == 1 or "relayd-state-writer" not in {
        thread.name for thread in threading.enumerate()
    }


def try_to_open(state_dir: Path) -> None:
    """Open and close."""
    with opened(state_dir):
        pass


@pytest.mark.sqlite
def test_a_start_on_a_full_disk_serves_by_the_ring_that_is_there(tmp_path: Path) -> None:
    """What a start has to note waits with the log: itself, and what a crash left open before it."""
    with opened(tmp_path / "state", boot_id="crashed") as state:
        secret = state.ring.ensure_initial_key(None).secret
        assert secret is not None
        state.log.started(a_record(1, "crashed"))
    disk, published = Disk(), Published()
    # A transaction that changed nothing needs no disk to be committed.
    disk.full(beginning=("INSERT", "UPDATE", "DELETE"))
    with opened(tmp_path / "state", boot_id="boot-2", disk=disk, published=published) as state:
        assert state.ring.ensure_initial_key(None).outcome is InitialKeyOutcome.KEPT
        assert state.ring.verify(secret.encode()) is not None
        record = a_record(2, "boot-2")
        state.log.started(record)
        state.log.ended(as_ended(record))
        wait_until(lambda: state.log.error is not None)
        disk.mended()
        published.wait_for(2)
        wait_until(lambda: state.log.error is None)
        assert state.close()
        ends = [event.record for event in published.events if isinstance(event, Ended)]
        assert {(end.id, end.outcome) for end in ends} == {
            ("req-000001", Outcome.CRASHED),
            ("req-000002", Outcome.COMPLETED),
        }


def test_a_first_start_on_a_full_disk_fails_in_words(tmp_path: Path) -> None:
    """Without any key there is nothing to serve by."""
    try_to_open(tmp_path / "state")
    disk = Disk()
    disk.full()
    with (
        opened(tmp_path / "state", boot_id="boot-2", disk=disk) as state,
        pytest.raises(RingUnavailable, match="first key could not be written to disk"),
    ):
        state.ring.ensure_initial_key(None)
    assert "relayd-state-writer" not in {thread.name for thread in threading.enumerate()}


@pytest.mark.sqlite
def test_a_start_that_cannot_be_noted_for_another_reason_fails_in_words(tmp_path: Path) -> None:
    """A database that is not what it should be is no full disk; no thread stays behind."""
    try_to_open(tmp_path / "state")
    with sqlite3.connect(tmp_path / "state" / DATABASE) as connection:
        connection.execute("DROP TABLE requests")
    connection.close()
    with pytest.raises(StateDamaged, match="no such table"):
        try_to_open(tmp_path / "state")
    assert "relayd-state-writer" not in {thread.name for thread in threading.enumerate()}


def test_a_full_disk_stops_nothing_but_the_writing(tmp_path: Path) -> None:
    """Requests go on, the log says why it waits, and all of it is there once the disk is back."""
    disk, published = Disk(), Published()
    with opened(tmp_path / "state", disk=disk, published=published) as state:
        initial = state.ring.ensure_initial_key(None)
        assert initial.secret is not None
        disk.full()
        for number in range(50):
            record = a_record(number)
            state.log.started(record)
            state.log.ended(as_ended(record))
        wait_until(lambda: state.log.error is not None)
        assert state.ring.verify(initial.secret.encode()) is not None
        assert (state.log.queued, state.log.lost) == (100, 0)
        disk.mended()
        published.wait_for(101)
        wait_until(lambda: state.log.error is None)
        assert len(state.reader.page(limit=100).records) == 50


def test_retention_runs_by_itself(tmp_path: Path) -> None:
    """Records beyond their days are gone soon after the start, without anyone asking."""
    clock = Clock()
    with opened(tmp_path / "state", clock=clock) as state:
        for number in range(20):
            state.log.ended(as_ended(a_record(number, started_s=NOON_S)))
    clock.now_s += 31 * 86_400
    with opened(tmp_path / "state", boot_id="boot-2", clock=clock) as state:
        wait_until(lambda: state.reader.page().records == [])


def test_what_an_earlier_run_left_open_is_closed_as_crashed(tmp_path: Path) -> None:
    """Once, by the next start, with an event for each; what had ended stays as it is."""
    with opened(tmp_path / "state", boot_id="boot-1") as state:
        for number in range(40):
            state.log.started(a_record(number))
        state.log.ended(as_ended(a_record(0)))
    published = Published()
    with opened(tmp_path / "state", boot_id="boot-2", published=published) as state:
        # With PostgreSQL later, once it is sure that no other instance has them open.
        wait_until(lambda: len(published.events) >= 39)
        ended = [event for event in published.events if isinstance(event, Ended)]
        assert [(event.seq, event.record.id) for event in ended] == [
            (41 + number, f"req-{number:06d}") for number in range(1, 40)
        ]
        assert {(event.boot_id, event.record.outcome, event.record.phase) for event in ended} == {
            ("boot-1", Outcome.CRASHED, Phase.DONE)
        }
        first = state.reader.get("req-000000")
        assert first is not None
        assert first.outcome is Outcome.COMPLETED
        assert state.reader.events(41) == ended
    again = Published()
    with opened(tmp_path / "state", boot_id="boot-3", published=again):
        assert again.events == []
