"""The file itself: permissions, older and foreign files, transactions, and errors in words."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from relayd.files import DATABASE
from relayd.state.audit import append_audit
from relayd.state.columns import COLUMNS
from relayd.state.database import Database, Transaction
from relayd.state.engine import Connection, EngineError, as_state_errors
from relayd.state.errors import (
    StateBusy,
    StateDamaged,
    StateError,
    StateOtherFormat,
    StateReplaced,
    StateUnreachable,
)
from relayd.state.keyring import KeyOwner
from relayd.state.records import AuditEntry, Client, Ended, KeyState, Lost, Outcome, utc_text
from relayd.state.sqlite import CHECKPOINT_BYTES, Sqlite, explain, wal_path
from tests.state.harness import (
    ALICE,
    FIRST_RELEASE,
    NOON_S,
    Clock,
    Disk,
    Published,
    file_of,
    make_database,
    opened,
    opened_database,
)


def open_for_writing(path: Path, disk: Disk | None = None) -> Connection:
    """Open a database as the daemon does."""
    engine = Sqlite(path) if disk is None else Sqlite(path, disk.connect)
    with as_state_errors(engine):
        return engine.open()


@contextmanager
def open_for_reading(path: Path) -> Iterator[Connection]:
    """Open a database as a reader does."""
    engine = Sqlite(path)
    with as_state_errors(engine), engine.reading(lambda: False, 10.0) as connection:
        yield connection


def read(path: Path) -> None:
    """Open a database as a reader does, and leave it."""
    with open_for_reading(path):
        pass


def first_release(state_dir: Path) -> Path:
    """Make a database as the first release wrote it."""
    path = make_database(state_dir)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL").fetchall()
        connection.executescript(FIRST_RELEASE.read_text(encoding="utf-8"))
    return path


def test_the_disk_is_measured(tmp_path: Path) -> None:
    """Bytes of the database with its WAL, and what is free beside them; a missing directory is told."""
    with opened_database(tmp_path / "state") as database:
        used = sum(file.stat().st_size for file in (tmp_path / "state").iterdir())
        disk = Sqlite(file_of(database)).disk_use()
        assert disk.database_bytes == used > 0
        assert disk.free_bytes > 0
    with pytest.raises(StateBusy, match="can't be examined"):
        Sqlite(tmp_path / "gone" / DATABASE).disk_use()


@pytest.mark.parametrize("open_it", [open_for_writing, read])
def test_a_file_that_is_no_database_is_reported_in_words(
    tmp_path: Path, open_it: Callable[[Path], object]
) -> None:
    """Garbage in place of the database stops with its path and what to do, and is left as it is."""
    path = make_database(tmp_path / "state")
    path.write_bytes(b"this is not a database, certainly " * 100)
    with pytest.raises(StateDamaged, match=r"relayd\.db is damaged .*stop relayd, move all files .*backup"):
        open_it(path)
    assert path.read_bytes().startswith(b"this is not")


def test_damage_to_the_tables_of_the_keys_is_found_at_the_start(tmp_path: Path) -> None:
    """A row that an index lacks: the keys can be read, but the index no longer keeps the rules."""
    path = first_release(tmp_path / "state")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute(
            "UPDATE sqlite_master SET sql = replace(sql, 'active', 'expired') WHERE name = 'keys_one_active'"
        )
    with pytest.raises(StateDamaged, match=r"relayd\.db is damaged .*keys_one_active"):
        open_for_writing(path)


@pytest.mark.parametrize("open_it", [open_for_writing, read])
def test_a_newer_file_is_refused(tmp_path: Path, open_it: Callable[[Path], object]) -> None:
    """What a newer relayd wrote is not touched; the error says both versions and what to do."""
    path = first_release(tmp_path / "state")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA user_version = 99")
    with pytest.raises(StateOtherFormat, match=r"format 99, this relayd knows up to 3.*Start that version"):
        open_it(path)


def test_the_database_of_another_program_is_refused(tmp_path: Path) -> None:
    """A file with someone else's tables is not filled with ours."""
    path = make_database(tmp_path / "state")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE bookmarks (url)")
        with pytest.raises(StateDamaged, match="not one of relayd"):
            open_for_writing(path)
        tables = connection.execute("SELECT name FROM sqlite_master").fetchall()
    assert tables == [("bookmarks",)]


def test_a_database_of_the_first_release_opens(tmp_path: Path) -> None:
    """Keys, audit, requests and losses of the first release are there, and what it left open is closed."""
    state_dir, clock = first_release(tmp_path / "state").parent, Clock(NOON_S + 10)
    with opened(state_dir, boot_id="boot-2", clock=clock) as state:
        assert state.ring.generation == 2
        assert state.ring.verify(b"a-key-of-the-first-release") == KeyOwner("kmx83AoC", "default")
        old, new = state.ring.keys()
        assert [(old.id, old.state), (new.id, new.state)] == [
            ("kmx83AoC", KeyState.RETIRING),
            ("XuOGYtsG", KeyState.ACTIVE),
        ]
        assert old.first_used_ip == "192.0.2.1"
        assert [entry.action for entry in state.reader.audit().entries] == ["rotate", "fill"]
        requests = state.reader.page().records
        assert [record.outcome for record in requests] == [
            Outcome.CRASHED,
            Outcome.UPSTREAM_ERROR,
            Outcome.COMPLETED,
        ]
        assert (requests[1].error and requests[1].error.message) == "The provider failed."
        events = state.reader.events(0)
        assert [getattr(event, "seq", None) for event in events] == list(range(1, 10))
        assert isinstance(events[7], Lost)
        assert events[7].count == 3
        assert isinstance(events[8], Ended)


def test_clients_of_the_first_release_keep_chat_alone(tmp_path: Path) -> None:
    """Each client that had a key is there, also if its keys are dead; `default` always is."""
    path = first_release(tmp_path / "state")
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(
            "INSERT INTO keys (id, client, digest, state, created_at, revoked_at)"
            " VALUES ('k2', 'web', x'00', 'revoked', '2026-12-24T18:00:00.000Z', '2027-01-15T08:00:00.000Z')"
        )
    for boot in ("boot-2", "boot-3"):
        with opened(path.parent, boot_id=boot, clock=Clock(NOON_S + 10)) as state:
            default, web = state.ring.clients()
            assert (default.name, default.endpoints) == ("default", ("/chat",))
            assert web == Client(name="web", created_at="2026-12-24T18:00:00.000Z", endpoints=("/chat",))
            assert state.ring.client("web") == web
            assert not web.bounded


async def test_a_new_file_has_a_default_client_without_bounds(tmp_path: Path) -> None:
    """It may use everything, and so may a client whose first key is added."""
    with opened(tmp_path / "state", clock=Clock()) as state:
        (default,) = state.ring.clients()
        assert default == Client(name="default", created_at=default.created_at)
        await state.ring.add("web", caller=ALICE)
        assert state.ring.client("web") == Client(name="web", created_at=utc_text(NOON_S))
        assert state.ring.client("nobody") is None


def test_a_file_without_a_field_s_column_gets_it(tmp_path: Path) -> None:
    """A field that a release adds to records needs no migration: old rows have its default."""
    path = first_release(tmp_path / "state")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("ALTER TABLE requests DROP COLUMN stalled_ms")
        connection.execute("ALTER TABLE requests DROP COLUMN finish_reason")
    with pytest.raises(StateOtherFormat, match="start this relayd once"):
        read(path)
    with opened(path.parent, boot_id="boot-2") as state:
        record = state.reader.get("req-000001")
        assert record is not None
        assert (record.stalled_ms, record.finish_reason, record.status) == (0, None, 200)


def test_a_step_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    """Bringing a file up to date is one transaction: a full disk in its middle changes nothing."""
    disk = Disk()
    disk.full(beginning=("CREATE TABLE keys",))
    path = make_database(tmp_path / "state")
    with pytest.raises(StateBusy, match="free space"):
        open_for_writing(path, disk)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT * FROM sqlite_master").fetchall() == []
    with closing(open_for_writing(path)) as connection:
        names = {name for (name,) in connection.execute("SELECT name FROM pragma_table_info('requests')")}
        assert names == set(COLUMNS)


def test_reading_makes_nothing(tmp_path: Path) -> None:
    """Where no daemon ran there is nothing to read, and nothing is created; a reader can't write."""
    with pytest.raises(StateUnreachable, match="no database"):
        read(tmp_path / DATABASE)
    assert list(tmp_path.iterdir()) == []
    path = make_database(tmp_path / "state")
    with pytest.raises(StateOtherFormat, match="old format"):
        read(path)
    open_for_writing(path).close()
    with (
        open_for_reading(path) as connection,
        pytest.raises(EngineError, match="readonly"),
    ):
        connection.execute("UPDATE meta SET value = 6")


def test_a_reader_sees_what_a_killed_writer_left_in_the_wal(tmp_path: Path) -> None:
    """What was committed before a kill is read from the WAL, without a daemon."""
    killed = make_database(tmp_path / "copy")
    with opened_database(tmp_path / "state") as database:
        with database.transaction(durable=False) as transaction:
            assert transaction.next_seq() == 1
        killed.write_bytes(file_of(database).read_bytes())
        wal_path(killed).write_bytes(wal_path(file_of(database)).read_bytes())
    with open_for_reading(killed) as connection:
        assert connection.execute("SELECT value FROM meta WHERE name = 'seq'").fetchone() == (1,)


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        (sqlite3.SQLITE_CORRUPT, StateDamaged, "damaged"),
        (sqlite3.SQLITE_NOTADB, StateDamaged, "damaged"),
        (sqlite3.SQLITE_CANTOPEN, StateUnreachable, "owner and mode"),
        (sqlite3.SQLITE_READONLY, StateUnreachable, "owner and mode"),
        (sqlite3.SQLITE_BUSY, StateBusy, "Another process"),
        (sqlite3.SQLITE_FULL, StateBusy, "free space"),
        (sqlite3.SQLITE_IOERR, StateBusy, "cannot be written"),
    ],
)
def test_every_failure_of_sqlite_is_told_in_words(code: int, kind: type[StateError], says: str) -> None:
    """Each kind of error says what is wrong, with which file, and what to do."""
    error = sqlite3.OperationalError("some reason")
    error.sqlite_errorcode = code
    told = explain(error, Path("state/relayd.db")).told
    assert type(told) is kind
    assert "state/relayd.db" in str(told)
    assert says in str(told)


def audit(transaction: Transaction) -> int:
    """Put one audit row in; return its place."""
    return append_audit(transaction, ALICE.peer, AuditEntry(at="", action="pause", result="done")).seq


def seq_of(database: Database) -> int:
    """Return the newest place that is stored."""
    found: int = database.connection.execute("SELECT value FROM meta WHERE name = 'seq'").fetchone()[0]
    return found


def test_places_are_given_without_a_gap(tmp_path: Path) -> None:
    """Work that fails gives its places back; the next one gets them."""
    published = Published()
    with opened_database(tmp_path / "state", published=published) as database:
        with database.transaction(durable=True) as transaction:
            assert audit(transaction) == 1
        with pytest.raises(TypeError), database.transaction(durable=False) as transaction:
            audit(transaction) + "a bug"  # type: ignore[operator]
        with database.transaction(durable=False) as transaction:
            assert audit(transaction) == 2
        assert seq_of(database) == 2
    assert [event.seq for event in published.events] == [1, 2]


def test_a_transaction_is_alone_from_its_beginning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What it reads stays true until it ends: another process begins only then, and reads what it wrote."""
    monkeypatch.setattr("relayd.state.sqlite.BUSY_TIMEOUT_S", 0.0)
    with opened_database(tmp_path / "state") as one, opened_database(tmp_path / "state") as other:
        with one.transaction(durable=True) as transaction:
            with pytest.raises(EngineError, match="locked"), other.transaction(durable=True):
                pytest.fail("it began")
            assert audit(transaction) == 1
        with other.transaction(durable=True) as transaction:
            assert audit(transaction) == 2


def test_events_go_out_after_the_commit(tmp_path: Path) -> None:
    """Whoever sees an event finds it on disk: callbacks run first, then the listener, both after commit."""
    order: list[str] = []
    path = make_database(tmp_path / "state")
    with closing(open_for_writing(path)) as connection:
        database = Database(
            Sqlite(path), connection, "boot-1", lambda _: order.append(f"{connection.in_transaction}")
        )
        with database.transaction(durable=True) as transaction:
            audit(transaction)
            transaction.after_commit.append(lambda: order.append(f"callback {connection.in_transaction}"))
    assert order == ["callback False", "False"]


def test_a_commit_that_fails_publishes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A full disk at the commit, even at the rollback: the first error is raised, the next one works."""
    published, disk = Published(), Disk()
    with opened_database(tmp_path / "state", published=published, disk=disk) as database:
        disk.full(beginning=("COMMIT", "ROLLBACK"))
        with (
            pytest.raises(EngineError, match="full"),
            database.transaction(durable=True) as transaction,
        ):
            audit(transaction)
        assert published.events == []
        assert "could not be rolled back" in caplog.text
        disk.mended()
        with database.transaction(durable=True) as transaction:
            assert audit(transaction) == 1


def test_a_broken_listener_does_not_stop_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What a listener raises is logged; the commit stands."""
    path = make_database(tmp_path / "state")

    def on_commit(_: object) -> None:
        raise RuntimeError("a bug elsewhere")

    with closing(open_for_writing(path)) as connection:
        database = Database(Sqlite(path), connection, "boot-1", on_commit)
        with database.transaction(durable=True) as transaction:
            audit(transaction)
        assert "a bug elsewhere" in caplog.text
        assert seq_of(database) == 1


@pytest.mark.parametrize("name", ["relayd.db", "relayd.db-wal", "relayd.db-shm"])
@pytest.mark.parametrize("replaced", [True, False])
def test_nothing_is_written_to_a_file_that_left_its_place(
    tmp_path: Path, name: str, *, replaced: bool
) -> None:
    """Deleted or replaced, the database or a file beside it: refused in words, until it is back."""
    with opened_database(tmp_path / "state") as database:
        file = file_of(database).with_name(name)
        kept = file.rename(tmp_path / name)
        if replaced:
            file.write_bytes(kept.read_bytes())
        with pytest.raises(EngineError) as refused, database.transaction(durable=True):
            pytest.fail("it began")
        told = refused.value.told
        assert isinstance(told, StateReplaced)
        assert f"{file_of(database)} was moved, deleted or replaced" in str(told)
        assert f"or stop relayd, move all files {file_of(database)}* away" in str(told)
        kept.rename(file)
        with database.transaction(durable=True) as transaction:
            assert audit(transaction) == 1


def test_durable_commits_are_synchronised(tmp_path: Path) -> None:
    """A durable transaction runs with synchronous=FULL, any other with NORMAL."""
    levels: list[int] = []
    with opened_database(tmp_path / "state") as database:
        for durable in (True, False, True):
            with database.transaction(durable=durable):
                levels += database.connection.execute("PRAGMA synchronous").fetchone()
    assert levels == [2, 1, 2]


def test_a_copy_of_the_file_has_the_last_durable_change(tmp_path: Path) -> None:
    """A checkpoint moves durable changes at once, other commits in a pause or when the WAL has grown."""
    with opened_database(tmp_path / "state") as database:

        def seq_in_copy() -> int:
            copy = tmp_path / "copy.db"
            copy.write_bytes(file_of(database).read_bytes())
            with closing(sqlite3.connect(copy)) as connection:
                found: int = connection.execute("SELECT value FROM meta WHERE name = 'seq'").fetchone()[0]
            return found

        database.connection.checkpoint()
        with database.transaction(durable=False) as transaction:
            audit(transaction)
        database.connection.checkpoint()
        assert seq_in_copy() == 0
        database.connection.checkpoint()
        assert seq_in_copy() == 1
        with database.transaction(durable=True) as transaction:
            audit(transaction)
        database.connection.checkpoint()
        assert seq_in_copy() == 2
        while wal_path(file_of(database)).stat().st_size < CHECKPOINT_BYTES:
            with database.transaction(durable=False) as transaction:
                for _ in range(1000):
                    audit(transaction)
        assert seq_in_copy() == 2
        database.connection.checkpoint()
        assert seq_in_copy() == seq_of(database)
