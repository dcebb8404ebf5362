"""Forgetting: by age, by size, and never without a word."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from relayd.state.audit import new_entry
from relayd.state.batch import BatchWriter, Progress
from relayd.state.database import make_private, open_for_writing, side_files
from relayd.state.events import Audited, Ended, Gap, Started
from relayd.state.reader import LogReader
from relayd.state.records import utc_text
from relayd.state.requestlog import RequestLog
from relayd.state.retention import CHECKPOINT_BYTES, CHUNK_ROWS, Retention, used_bytes
from relayd.state.transactor import Transactor
from tests.state.room import ALICE, NOON_S, Clock, Published, a_record, as_ended

DAY_S = 86_400


class Desk:
    """A log on disk and its retention, without the thread."""

    def __init__(self, state_dir: Path, *, keep_days: int = 30, max_mib: int = 512) -> None:
        self.clock = Clock()
        self.path = make_private(state_dir)
        self.connection = open_for_writing(self.path)
        self.transactor = Transactor(self.connection, "boot-1", Published())
        self.log = RequestLog("boot-1", lambda: None, 10**6)
        self.batch = BatchWriter(self.log, self.path, self.clock)
        self.retention = Retention(self.path, keep_days=keep_days, max_mib=max_mib, clock=self.clock)
        self.reader = LogReader(self.path)

    def requests(self, numbers: range, days_ago: float = 0.0) -> None:
        """Requests that started so long ago."""
        for number in numbers:
            self.log.ended(as_ended(a_record(number, started_s=self.clock.now_s - days_ago * DAY_S)))
        while self.batch.write(self.transactor) is not Progress.DONE:
            pass

    def prune(self) -> int:
        """Prune until nothing more is to do; how many rounds it took."""
        rounds = 1
        while self.retention.prune(self.transactor):
            rounds += 1
            assert rounds < 1000
        return rounds

    def kept(self) -> list[str]:
        """The ids of all records, oldest first."""
        return [record.id for record in reversed(self.reader.page(limit=10_000).records)]

    def close(self) -> None:
        """Let go of the file."""
        self.reader.close()
        self.connection.close()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    """A desk that keeps 30 days."""
    with closing(Desk(tmp_path / "state")) as made:
        yield made


def test_old_requests_go_in_small_pieces(desk: Desk) -> None:
    """What started before the limit goes, 500 a round; what is younger stays."""
    desk.requests(range(1200), days_ago=31)
    desk.requests(range(1200, 1210), days_ago=29)
    assert desk.retention.prune(desk.transactor) is True
    assert len(desk.kept()) == 1210 - CHUNK_ROWS
    desk.prune()
    assert desk.kept() == [f"req-{n:06d}" for n in range(1200, 1210)]


def test_replay_says_what_is_gone(desk: Desk) -> None:
    """A reader from before the floor gets one gap and then everything after it, without a hole."""
    desk.requests(range(10), days_ago=31)
    desk.requests(range(10, 15))
    desk.prune()
    first, *rest = desk.reader.events(4)
    assert first == Gap(5, 20)
    assert [event.seq for event in rest if not isinstance(event, Gap)] == list(range(21, 31))
    assert desk.reader.events(20) == rest
    assert desk.reader.events(25) == rest[5:]


def test_a_long_request_does_not_tear_a_hole(desk: Desk) -> None:
    """One that started long ago and ended late goes when its end is old; an open one is never removed."""
    long, still_open = (
        a_record(900, started_s=NOON_S - 40 * DAY_S),
        a_record(901, started_s=NOON_S - 40 * DAY_S),
    )
    desk.log.started(long)
    desk.log.started(still_open)
    desk.requests(range(5), days_ago=35)
    desk.requests(range(5, 8), days_ago=1)
    desk.log.ended(as_ended(long))
    desk.batch.write(desk.transactor)
    desk.prune()
    assert desk.kept() == ["req-000900", "req-000901", "req-000005", "req-000006", "req-000007"]
    events = desk.reader.events(0)
    assert events[0] == Gap(1, 12)
    assert [event.seq for event in events if not isinstance(event, Gap)] == list(range(13, 20))
    assert isinstance(events[-1], Ended)
    assert events[-1].record.id == "req-000900"


def test_the_file_stays_within_its_bound(tmp_path: Path) -> None:
    """Beyond the size, the oldest go whatever their age, and the file gives space back."""
    with closing(Desk(tmp_path / "state", max_mib=2)) as desk:
        for start in range(0, 9000, 1000):
            desk.requests(range(start, start + 1000))
            desk.prune()
            assert used_bytes(desk.connection) <= 2 * 1024 * 1024
        desk.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        # Up to 1 MiB of free pages stays for what comes next.
        assert desk.path.stat().st_size <= 3.5 * 1024 * 1024
        kept = desk.kept()
        assert 500 < len(kept) < 9000
        assert kept[-1] == "req-008999"
        assert isinstance(desk.reader.events(0)[0], Gap)


def test_free_pages_are_given_back_piece_by_piece(desk: Desk) -> None:
    """After many requests went, the file shrinks, a bounded piece a round."""
    desk.requests(range(12_000), days_ago=31)
    desk.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    before = desk.path.stat().st_size
    assert desk.prune() > 12_000 // CHUNK_ROWS
    desk.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    assert desk.path.stat().st_size < before - 1_000_000
    assert desk.connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_audit_outlives_the_records(desk: Desk) -> None:
    """Audit rows stay a year; when one goes, the floor says so."""
    for days_ago in (400, 100):
        entry = new_entry("pause", "done", ALICE, utc_text(NOON_S - days_ago * DAY_S), 1)
        desk.transactor.run(lambda tx, entry=entry: tx.audit(entry), durable=True)  # type: ignore[misc]
    desk.requests(range(2), days_ago=50)
    desk.prune()
    assert len(desk.reader.audit().entries) == 2
    while desk.retention.tidy(desk.transactor):
        pass
    (entry,) = desk.reader.audit().entries
    assert entry.at == utc_text(NOON_S - 100 * DAY_S)
    assert desk.reader.events(0) == [Gap(1, 6)]


def test_idempotency_keys_are_kept_for_two_days(desk: Desk) -> None:
    """A repeat is recognised for at least 24 hours, not forever."""
    for name, hours in (("old", 49), ("young", 47)):
        desk.connection.execute(
            "INSERT INTO idempotency VALUES (?, 'change', '{}', ?)", (name, utc_text(NOON_S - hours * 3600))
        )
    desk.retention.tidy(desk.transactor)
    assert desk.connection.execute("SELECT key FROM idempotency").fetchall() == [("young",)]


def test_a_grown_wal_is_moved_into_the_file(desk: Desk) -> None:
    """Below the bound nothing is done; above it the WAL starts again from its beginning."""
    desk.requests(range(10))
    desk.retention.checkpoint(desk.transactor)
    wal = side_files(desk.path)[0]
    assert wal.stat().st_size > 0
    while wal.stat().st_size < CHECKPOINT_BYTES:
        desk.requests(range(desk.reader.newest_seq(), desk.reader.newest_seq() + 500))
    size = desk.path.stat().st_size
    desk.retention.checkpoint(desk.transactor)
    assert desk.path.stat().st_size > size
    grown = wal.stat().st_size
    desk.requests(range(10**6, 10**6 + 100))
    assert wal.stat().st_size == grown


def test_a_thousand_reconnects_across_retention_miss_nothing_unsaid(desk: Desk) -> None:
    """Whoever reads on from where it was gets every place once, or is told that it is gone."""
    at, number, gaps = 0, 0, 0
    seen: list[int] = []
    for turn in range(1000):
        if turn % 4 == 0:
            desk.requests(range(number, number + 3), days_ago=31 if turn % 8 else 0)
            number += 3
        if turn % 50 == 0:
            desk.clock.now_s += 10 * DAY_S
            desk.prune()
        # Slower than the log grows, so that retention overtakes the reader again and again.
        for event in desk.reader.events(at, limit=1):
            if isinstance(event, Gap):
                assert event.first == at + 1
                at, gaps = event.last, gaps + 1
            else:
                assert isinstance(event, Started | Ended | Audited)
                assert event.seq == at + 1
                at = event.seq
                seen.append(at)
    assert gaps > 3
    assert len(seen) == len(set(seen))
