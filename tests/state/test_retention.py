"""Retention: by age, by size, and never without a word."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from relayd.state.audit import append_audit
from relayd.state.database import Database
from relayd.state.reader import LogReader
from relayd.state.records import Audited, AuditEntry, Ended, Gap, Started, utc_text
from relayd.state.request_log import RequestLog
from relayd.state.retention import CHUNK_ROWS, Retention
from tests.state.harness import ALICE, NOON_S, Clock, a_record, as_ended, opened_database

pytestmark = pytest.mark.usefixtures("engine_kind")

DAY_S = 86_400


class Harness:
    """A log on disk and its retention, run when the test says so."""

    def __init__(self, database: Database, *, max_mib: int) -> None:
        self.clock = Clock()
        self.database = database
        self.path = Path(database.engine.where)
        self.connection = database.connection
        self.log = RequestLog(database, lambda: None, self.clock, lambda *_: None, lambda _: None, 10**6)
        self.retention = Retention(database, keep_days=30, max_mib=max_mib, clock=self.clock)
        self.reader = LogReader(database.engine)

    def requests(self, numbers: range, days_ago: float = 0.0) -> None:
        """Write requests that started so long ago."""
        for number in numbers:
            self.log.ended(as_ended(a_record(number, started_s=self.clock.now_s - days_ago * DAY_S)))
        self.log.drain(until=math.inf)

    def prune(self) -> int:
        """Prune until nothing more is to do; return how many rounds it took."""
        rounds = 1
        while self.retention.prune_requests() is not None:
            rounds += 1
            assert rounds < 1000
        return rounds

    def kept(self) -> list[str]:
        """Return the ids of all records, oldest first."""
        return [record.id for record in reversed(self.reader.page(limit=10_000).records)]


@contextmanager
def harness(state_dir: Path, *, max_mib: int = 512) -> Iterator[Harness]:
    """Open a log that keeps 30 days."""
    with opened_database(state_dir) as database:
        yield Harness(database, max_mib=max_mib)


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Harness]:
    """A log that keeps 30 days of any size."""
    with harness(tmp_path / "state") as made:
        yield made


def test_old_requests_go_in_small_pieces(log: Harness) -> None:
    """What started before the limit goes, 500 a round; what is younger stays."""
    log.requests(range(1200), days_ago=31)
    log.requests(range(1200, 1210), days_ago=29)
    assert log.retention.prune_requests() == 0.0
    assert len(log.kept()) == 1210 - CHUNK_ROWS
    log.prune()
    assert log.kept() == [f"req-{n:06d}" for n in range(1200, 1210)]


def test_replay_says_what_is_gone(log: Harness) -> None:
    """A reader from before the floor gets one gap and then everything after it, without a hole."""
    log.requests(range(10), days_ago=31)
    log.requests(range(10, 15))
    log.prune()
    first, *rest = log.reader.events(4)
    assert first == Gap(5, 20)
    assert [event.seq for event in rest if not isinstance(event, Gap)] == list(range(21, 31))
    assert log.reader.events(20) == rest
    assert log.reader.events(25) == rest[5:]


def test_a_long_request_does_not_tear_a_hole(log: Harness) -> None:
    """One that started long ago and ended late goes when its end is old; an open one is never removed."""
    long, still_open = (
        a_record(900, started_s=NOON_S - 40 * DAY_S),
        a_record(901, started_s=NOON_S - 40 * DAY_S),
    )
    log.log.started(long)
    log.log.started(still_open)
    log.requests(range(5), days_ago=35)
    log.requests(range(5, 8), days_ago=1)
    log.log.ended(as_ended(long))
    log.log.write()
    log.prune()
    assert log.kept() == ["req-000900", "req-000901", "req-000005", "req-000006", "req-000007"]
    events = log.reader.events(0)
    assert events[0] == Gap(1, 12)
    assert [event.seq for event in events if not isinstance(event, Gap)] == list(range(13, 20))
    assert isinstance(events[-1], Ended)
    assert events[-1].record.id == "req-000900"


@pytest.mark.sqlite
def test_the_file_stays_within_its_bound(tmp_path: Path) -> None:
    """Beyond the size, the oldest go whatever their age, and the file gives space back."""
    with harness(tmp_path / "state", max_mib=2) as log:
        for start in range(0, 9000, 1000):
            log.requests(range(start, start + 1000))
            log.prune()
            assert log.connection.used_bytes() <= 2 * 1024 * 1024
        log.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        # Up to 1 MiB of free pages stays for what comes next.
        assert log.path.stat().st_size <= 3.5 * 1024 * 1024
        kept = log.kept()
        assert 500 < len(kept) < 9000
        assert kept[-1] == "req-008999"
        assert isinstance(log.reader.events(0)[0], Gap)


@pytest.mark.sqlite
def test_free_pages_are_given_back_piece_by_piece(log: Harness) -> None:
    """After many requests went, the file shrinks, a bounded piece a round."""
    log.requests(range(12_000), days_ago=31)
    log.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    before = log.path.stat().st_size
    assert log.prune() > 12_000 // CHUNK_ROWS
    log.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    assert log.path.stat().st_size < before - 1_000_000
    assert log.connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_audit_outlives_the_records(log: Harness) -> None:
    """Audit rows stay a year; when one goes, the floor says so."""
    for days_ago in (400, 100):
        entry = AuditEntry(at=utc_text(NOON_S - days_ago * DAY_S), action="pause", result="done")
        with log.database.transaction(durable=True) as transaction:
            append_audit(transaction, ALICE.peer, entry)
    log.requests(range(2), days_ago=50)
    log.prune()
    assert len(log.reader.audit().entries) == 2
    while log.retention.prune_audit() is not None:
        pass
    (entry,) = log.reader.audit().entries
    assert entry.at == utc_text(NOON_S - 100 * DAY_S)
    assert log.reader.events(0) == [Gap(1, 6)]


def test_idempotency_keys_are_kept_for_two_days(log: Harness) -> None:
    """A repeat is recognised for at least 24 hours, not forever."""
    for name, hours in (("old", 49), ("young", 47)):
        log.connection.execute(
            "INSERT INTO idempotency VALUES (?, 'change', '{}', ?)", (name, utc_text(NOON_S - hours * 3600))
        )
    log.retention.prune_audit()
    assert log.connection.execute("SELECT key FROM idempotency").rows == [("young",)]


def test_a_thousand_reconnects_across_retention_miss_nothing_unsaid(log: Harness) -> None:
    """Whoever reads on from where it was gets every place once, or is told that it is gone."""
    at, number, gaps = 0, 0, 0
    seen: list[int] = []
    for turn in range(1000):
        if turn % 4 == 0:
            log.requests(range(number, number + 3), days_ago=31 if turn % 8 else 0)
            number += 3
        if turn % 50 == 0:
            log.clock.now_s += 10 * DAY_S
            log.prune()
        # Slower than the log grows, so that retention overtakes the reader again and again.
        for event in log.reader.events(at, limit=1):
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
