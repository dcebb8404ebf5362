"""The log, read: pages, replay, audit, keys; with and without a daemon."""

from __future__ import annotations

import sqlite3
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from relayd.state import reader
from relayd.state.errors import StateBusy, StateDamaged
from relayd.state.filter import parse_filter
from relayd.state.reader import LogReader
from relayd.state.records import Audited, Ended, Gap, LogContents, LogEvent, Outcome, Started, utc_text
from relayd.state.sqlite import Sqlite
from relayd.state.state import State
from tests.state.harness import ALICE, NOON_S, Published, a_record, as_ended, opened
from tests.wire import wait_until

pytestmark = pytest.mark.usefixtures("engine_kind")


def fill(state: State, count: int) -> None:
    """So many requests, every third of which failed, all on disk."""
    for number in range(count):
        record = a_record(number)
        state.log.started(record)
        state.log.ended(as_ended(record, 502 if number % 3 == 0 else 200))
    wait_until(lambda: state.log.queued == 0)


def test_the_contents_are_a_count_and_an_age(tmp_path: Path) -> None:
    """An empty log has no oldest request."""
    with opened(tmp_path / "state") as state:
        assert state.reader.contents() == LogContents(0, None)
        fill(state, 3)
        assert state.reader.contents() == LogContents(3, a_record(0).started_at)
        disk = state.disk_use()
        assert disk is None or 0 < disk.wal_bytes <= disk.database_bytes


def test_pages_are_newest_first_and_join_without_a_seam(tmp_path: Path) -> None:
    """Asking again with `next_before` gives each record once, until there is no more."""
    with opened(tmp_path / "state") as state:
        fill(state, 25)
        seen: list[str] = []
        before: int | None = None
        sizes = []
        while True:
            page = state.reader.page(before=before, limit=10)
            seen += [record.id for record in page.records]
            sizes.append(len(page.records))
            before = page.next_before
            if before is None:
                break
        assert seen == [f"req-{n:06d}" for n in reversed(range(25))]
        assert sizes == [10, 10, 5]


def test_a_page_is_bounded_on_both_sides(tmp_path: Path) -> None:
    """`after` and `before` are places in the log, both exclusive."""
    with opened(tmp_path / "state") as state:
        fill(state, 6)
        seqs = [record.seq for record in state.reader.page().records]
        page = state.reader.page(after=seqs[4], before=seqs[1])
        assert [record.seq for record in page.records] == seqs[2:4]


def test_pages_are_filtered(tmp_path: Path) -> None:
    """Only what passes is on a page, and the cursor goes on below the last of it."""
    with opened(tmp_path / "state") as state:
        fill(state, 12)
        failed = parse_filter("status>=500 error=upstream_failed")
        first = state.reader.page(failed, limit=3)
        assert [record.id for record in first.records] == ["req-000009", "req-000006", "req-000003"]
        rest = state.reader.page(failed, before=first.next_before, limit=3)
        assert [record.id for record in rest.records] == ["req-000000"]
        assert rest.next_before is None
        assert state.reader.page(parse_filter("client=nobody")).records == []


def test_one_record_by_its_id(tmp_path: Path) -> None:
    """The whole record, or None; any text may be asked for."""
    with opened(tmp_path / "state") as state:
        fill(state, 1)
        record = state.reader.get("req-000000")
        assert record is not None
        assert (record.status, record.error and record.error.code) == (502, "upstream_failed")
        assert state.reader.get("nobody\0\ud800") is None


async def test_replay_is_what_was_published(tmp_path: Path) -> None:
    """From any place, in any page size: the events of the disk are those that went out, in order, once."""
    published = Published()
    with opened(tmp_path / "state", published=published) as state:
        for number in range(30):
            record = a_record(number)
            state.log.started(record)
            if number % 10 == 5:
                await state.audit.record("pause", "done", peer=ALICE.peer, detail=f"number {number}")
            state.log.ended(as_ended(record))
        wait_until(lambda: state.log.queued == 0)
        live = published.wait_for(63)
        assert [event.seq for event in live] == list(range(1, 64))
        for limit in (1, 7, 1000):
            replayed: list[LogEvent] = []
            after = 0
            while events := state.reader.events(after, limit):
                assert len(events) <= limit
                replayed += [event for event in events if not isinstance(event, Gap)]
                after = replayed[-1].seq
            assert replayed == live
        assert state.reader.events(60) == live[60:]
        assert state.reader.newest_seq() == 63
        assert state.reader.events(63) == []
        assert state.reader.events(10**30) == []
        assert state.reader.events(-5, 1) == live[:1]


def test_an_answer_is_bounded(tmp_path: Path) -> None:
    """Without a limit 100 records and 1,000 events, with one at least one and at most 10,000 rows."""
    with opened(tmp_path / "state") as state:
        fill(state, 600)
        assert len(state.reader.page().records) == 100
        assert len(state.reader.events(0)) == 1000
        assert len(state.reader.events(0, 10**9)) == 1200
        assert len(state.reader.page(limit=-1).records) == 1
    assert reader.MAX_ROWS == 10_000


async def test_audit_is_paged(tmp_path: Path) -> None:
    """Newest first, with a cursor."""
    with opened(tmp_path / "state") as state:
        for number in range(5):
            await state.audit.record(
                "cancel", "done", peer=ALICE.peer, key_ids=("k1", "k2"), detail=f"{number}"
            )
        first = state.reader.audit(limit=3)
        rest = state.reader.audit(before=first.next_before, limit=3)
        assert [entry.detail for entry in first.entries + rest.entries] == ["4", "3", "2", "1", "0"]
        assert rest.next_before is None
        assert first.entries[0].key_ids == ("k1", "k2")


@pytest.mark.sqlite
async def test_the_file_alone_is_enough(tmp_path: Path) -> None:
    """After the daemon ended, everything can be read from the file, by a reader of its own."""
    with opened(tmp_path / "state") as state:
        await state.ring.add("web", caller=ALICE)
        fill(state, 3)
        path = state.path
    alone = LogReader(Sqlite(path))
    assert len(alone.page().records) == 3
    generation, keys = alone.keys()
    assert (generation, keys[0].client) == (1, "web")
    assert [type(event) for event in alone.events(0, 3)] == [Audited, Started, Ended]


def test_many_threads_may_read_while_one_writes(tmp_path: Path) -> None:
    """Reads run side by side with the writer, and each sees a whole state of the log."""
    with opened(tmp_path / "state") as state:
        faults: list[object] = []
        stop = threading.Event()

        def read() -> None:
            while not stop.wait(0.002):
                events = state.reader.events(0, 5000)
                if [event.seq for event in events if not isinstance(event, Gap)] != list(
                    range(1, len(events) + 1)
                ):
                    faults.append(events)

        threads = [threading.Thread(target=read) for _ in range(6)]
        for thread in threads:
            thread.start()
        for _ in range(5):
            fill_some(state)
            time.sleep(0.06)
        stop.set()
        for thread in threads:
            thread.join(20)
        assert faults == []


def fill_some(state: State) -> None:
    """Ten more requests."""
    base = state.reader.newest_seq() * 1000
    for number in range(10):
        record = a_record(base + number)
        state.log.started(record)
        state.log.ended(as_ended(record))


def test_a_query_that_takes_too_long_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with a sentence, and the next one is answered."""
    with opened(tmp_path / "state") as state:
        fill(state, 3000)
        monkeypatch.setattr(reader, "QUERY_TIMEOUT_S", 0.0)
        hard = parse_filter(
            " ".join(f"x!~word{number}" for number in range(50)).replace("x!~", "user_agent!~")
        )
        with pytest.raises(StateBusy, match="too long"):
            state.reader.page(hard, limit=1000)
        monkeypatch.undo()
        assert len(state.reader.page(hard, limit=1000).records) == 1000


@pytest.mark.sqlite
@pytest.mark.parametrize(
    "damage",
    [
        "DELETE FROM meta",
        "UPDATE meta SET value = 'abc'",
        "UPDATE meta SET value = x'00ff'",
        "DELETE FROM ring",
        "UPDATE ring SET generation = 'many'",
        "UPDATE keys SET expires_at = 'never'",
        "UPDATE keys SET created_at = x'ff00'",
        "DROP TABLE keys",
        "DROP TABLE meta",
    ],
)
async def test_damage_within_the_database_is_told_in_words(damage: str, tmp_path: Path) -> None:
    """What is read at each start names the file and what to do, also where SQLite finds no fault."""
    with opened(tmp_path / "state") as state:
        await state.ring.add("web", caller=ALICE)
        path = state.path
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(damage)

    def read() -> None:
        LogReader(Sqlite(path)).newest_seq()
        LogReader(Sqlite(path)).keys()

    with pytest.raises(StateDamaged, match=str(path)):
        read()


def test_all_users_of_a_key_are_told_with_what_each_did(tmp_path: Path) -> None:
    """By address and program, the latest first, over the whole log; refusals apart; since a time."""
    with opened(tmp_path / "state") as state:
        for number in range(65):
            record = a_record(number, started_s=NOON_S + number % 32)
            record.ip = f"192.0.2.{number % 32}"
            if number == 64:
                record.started_at, record.user_agent = utc_text(NOON_S + 99), None
            state.log.started(record)
            ended = as_ended(record)
            if number == 64:
                ended.outcome = Outcome.DENIED
            state.log.ended(ended)
        other = a_record(65, started_s=NOON_S - 5)
        other.key_id = "another1"
        state.log.started(other)
        wait_until(lambda: state.log.queued == 0)
        found = state.reader.key_users("abcd1234", since=utc_text(NOON_S + 30), limit=30)
        assert (found.count, found.requests, found.refused, len(found.users)) == (33, 64, 1, 30)
        assert found.log_begins_at == utc_text(NOON_S - 5)
        first, second, *_, last = found.users
        assert (first.ip, first.user_agent, first.requests, first.refused) == ("192.0.2.0", None, 0, 1)
        assert (second.ip, second.requests, second.requests_since) == ("192.0.2.31", 2, 2)
        assert (last.ip, last.requests, last.requests_since) == ("192.0.2.3", 2, 0)
        assert (last.first_at, last.last_at) == (utc_text(NOON_S + 3), utc_text(NOON_S + 3))
        assert state.reader.key_users("nokey", since="").users == []
