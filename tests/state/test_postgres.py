"""What is PostgreSQL's own: connections that break, waits that end, commits without an answer, versions."""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import NoReturn

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from relayd.state import keyring
from relayd.state import postgres as postgres_engine
from relayd.state.database import Database, Transaction
from relayd.state.engine import EngineError, Fault, as_state_errors
from relayd.state.errors import RingUnavailable, StateUnreachable
from relayd.state.filter import parse_filter
from relayd.state.keyring import KeyOwner
from relayd.state.postgres import TIMEOUT_S, Postgres
from relayd.state.request_log import RequestLog
from tests.state.harness import (
    ALICE,
    Published,
    a_record,
    as_ended,
    opened,
    patience,
    patient_url,
)
from tests.state.lossy_proxy import LossyProxy
from tests.support.postgres import Postgres as Server
from tests.wire import PATIENCE_S, until, wait_until


@pytest.fixture
def engine(postgres_url: str) -> Iterator[Postgres]:
    """A database on a server that the test may stop, kill and freeze."""
    with patience(), closing(Postgres(patient_url(postgres_url))) as engine:
        yield engine


def counted(database: Database) -> int:
    """Count once more, in a transaction of its own."""
    with database.transaction(durable=True) as transaction:
        return transaction.next_seq()


async def test_keys_log_and_audit_live_in_postgresql(tmp_path: Path, postgres_url: str) -> None:
    """A key works at once and after a restart; a request is published, filtered and replayed."""
    published = Published()
    with opened(tmp_path / "state", published=published, engine=Postgres(postgres_url)) as state:
        made = await state.ring.add("web", caller=ALICE)
        assert made.secret is not None
        record = a_record()
        state.log.started(record)
        state.log.ended(as_ended(record, 502))
        published.wait_for(3)
        assert [event.seq for event in published.events] == [1, 2, 3]
        assert state.reader.events(0) == published.events
        where = parse_filter("model~GPT-4o ip=203.0.113.0/24 first_token_ms~20 provider")
        assert state.reader.page(where).records == [state.reader.get(record.id)]
    with opened(tmp_path / "state", boot_id="boot-2", engine=Postgres(postgres_url)) as state:
        assert state.ring.verify(made.secret.encode()) == KeyOwner(made.key.id, "web")
        assert [entry.action for entry in state.reader.audit().entries] == ["add"]
    assert [path.name for path in (tmp_path / "state").iterdir()] == ["relayd.lock"]


def test_a_restart_of_the_server_is_not_noticed_between_transactions(
    postgres: Server, engine: Postgres
) -> None:
    """The connections that it broke are made anew, for the writer and for readers."""
    with closing(engine.open()) as connection:
        database = Database(engine, connection, "boot-1", Published())
        assert counted(database) == 1
        with engine.reading(lambda: False, PATIENCE_S) as reader:
            assert reader.execute("SELECT 1").rows == [(1,)]
        postgres.restart()
        assert counted(database) == 2
        with engine.reading(lambda: False, PATIENCE_S) as reader:
            assert reader.execute("SELECT value FROM meta WHERE name = 'seq'").rows == [(2,)]
        assert engine.error is None


def test_a_transaction_that_breaks_changes_nothing(postgres: Server, engine: Postgres) -> None:
    """Its statements are not repeated on a new connection; the next transaction works."""
    with closing(engine.open()) as connection:
        database = Database(engine, connection, "boot-1", Published())

        def breaks() -> None:
            with database.transaction(durable=True) as transaction:
                transaction.next_seq()
                postgres.restart()
                with pytest.raises(EngineError):
                    transaction.connection.execute("SELECT 1")
                transaction.connection.execute("SELECT 1")

        with pytest.raises(EngineError, match="broke") as refused:
            breaks()
        assert refused.value.fault is Fault.UNREACHABLE
        assert counted(database) == 1


def test_a_server_that_stands_still_is_waited_for_once(postgres: Server, engine: Postgres) -> None:
    """The first statement waits 2 s and no longer, all others fail at once; it goes on without a restart."""
    with closing(engine.open()) as connection:
        database = Database(engine, connection, "boot-1", Published())
        counted(database)
        connection._timeout_s = TIMEOUT_S
        with postgres.frozen():
            with pytest.raises(EngineError) as refused:
                counted(database)
            assert isinstance(refused.value.told, StateUnreachable)
            assert str(postgres.directory) in str(refused.value.told)
            assert engine.error is not None
            assert engine.error == str(refused.value.told)
            # With a wait for each, this would take minutes.
            for _ in range(50):
                with pytest.raises(EngineError):
                    counted(database)
                with pytest.raises(EngineError), engine.reading(lambda: False, PATIENCE_S):
                    pytest.fail("it began")
        wait_until(lambda: engine.error is None)
        assert counted(database) == 2


def test_a_reader_that_is_closed_waits_no_longer(postgres: Server, engine: Postgres) -> None:
    """A query ends as soon as its reader is closed, whatever the server does."""
    engine.open().close()
    asked: list[None] = []

    def is_cancelled() -> bool:
        asked.append(None)
        # Only once the query is under way.
        return len(asked) > 1

    with (
        pytest.raises(EngineError) as refused,
        engine.reading(is_cancelled, PATIENCE_S) as reader,
        postgres.frozen(),
    ):
        reader.execute("SELECT 1")
    assert refused.value.fault is Fault.INTERRUPTED
    assert asked


def attempt(database: Database, done: list[str]) -> tuple[Transaction, Fault | None]:
    """Commit something; return what is known of it by then, and the fault of the commit."""
    transactions: list[Transaction] = []
    try:
        with database.transaction(durable=True) as transaction:
            transactions.append(transaction)
            transaction.next_seq()
            transaction.after_commit.append(lambda: done.append("done"))
    except EngineError as error:
        return transactions[0], error.fault
    return transactions[0], None


@pytest.fixture
def far(proxy: LossyProxy, postgres_url: str) -> Iterator[Postgres]:
    """A database whose connections go through the proxy."""
    with patience(), closing(Postgres(patient_url(proxy.url(postgres_url)))) as engine:
        yield engine


@pytest.mark.parametrize("is_committed", [True, False])
def test_a_commit_without_an_answer_is_looked_up(
    far: Postgres, proxy: LossyProxy, *, is_committed: bool
) -> None:
    """Its caller learns what became of it, and what follows a commit is done."""
    with closing(far.open()) as connection:
        database, done = Database(far, connection, "boot-1", Published()), list[str]()
        counted(database)
        proxy.lose_commit(is_done_first=is_committed, stays_down=False)
        transaction, fault = attempt(database, done)
        assert fault is (None if is_committed else Fault.UNREACHABLE)
        assert transaction.is_committed is is_committed
        assert counted(database) == (3 if is_committed else 2)
        assert done == (["done"] if is_committed else [])


@pytest.mark.parametrize("is_committed", [True, False])
def test_a_commit_that_nothing_is_known_of_is_looked_up_later(
    far: Postgres, proxy: LossyProxy, *, is_committed: bool
) -> None:
    """While the server is away its outcome is unknown; then, what follows a commit is done once, or never."""
    with closing(far.open()) as connection:
        database, done = Database(far, connection, "boot-1", Published()), list[str]()
        counted(database)
        proxy.lose_commit(is_done_first=is_committed)
        transaction, fault = attempt(database, done)
        assert (fault, transaction.is_committed, done) == (Fault.UNKNOWN, None, [])
        with pytest.raises(EngineError):
            database.resolve(transaction)
        with pytest.raises(EngineError):
            counted(database)
        proxy.mend()
        wait_until(lambda: far.error is None)
        assert database.resolve(transaction) is is_committed
        assert done == (["done"] if is_committed else [])
        assert counted(database) == (3 if is_committed else 2)
        assert database.resolve(transaction) is is_committed
        assert done == (["done"] if is_committed else [])


def is_resolved(database: Database, transaction: Transaction) -> bool:
    """Return whether a commit is known to be in force; it must not be known to be undone."""
    try:
        assert database.resolve(transaction)
    except EngineError:
        return False
    return True


def test_a_commit_that_the_server_has_not_read_is_undecided(engine: Postgres, postgres_url: str) -> None:
    """It is not taken for undone and repeated: the server may still do it, once."""
    with closing(engine.open()) as connection, psycopg.connect(postgres_url, autocommit=True) as other:
        other.execute("CREATE TABLE numbers (number int)")
        database, transactions = Database(engine, connection, "boot-1", Published()), list[Transaction]()
        (backend,) = connection.execute("SELECT pg_backend_pid()").rows[0]

        def commits() -> None:
            with database.transaction(durable=True) as transaction:
                transactions.append(transaction)
                transaction.connection.execute("INSERT INTO numbers VALUES (1)")
                os.kill(backend, signal.SIGSTOP)
                connection._timeout_s = 0.5

        try:
            with pytest.raises(EngineError) as refused:
                commits()
            assert refused.value.fault is Fault.UNKNOWN
            wait_until(lambda: engine.error is None)
            with pytest.raises(EngineError):
                database.resolve(transactions[0])
            assert transactions[0].is_committed is None
        finally:
            os.kill(backend, signal.SIGCONT)
        connection._timeout_s = PATIENCE_S

        wait_until(lambda: is_resolved(database, transactions[0]))
        assert other.execute("SELECT number FROM numbers").fetchall() == [(1,)]


@pytest.mark.parametrize("is_committed", [True, False])
async def test_a_change_of_keys_waits_for_its_outcome(
    tmp_path: Path, far: Postgres, proxy: LossyProxy, monkeypatch: pytest.MonkeyPatch, *, is_committed: bool
) -> None:
    """In force, it is acknowledged with the new key after all; else the old key is the only one."""
    monkeypatch.setattr(keyring, "_OUTCOME_TIMEOUT_S", PATIENCE_S)
    with opened(tmp_path / "state", engine=far) as state:
        old = await state.ring.add("web", caller=ALICE)
        proxy.lose_commit(is_done_first=is_committed, after=b"UPDATE ring")
        changing = asyncio.create_task(state.ring.rotate(old.key.id, grace_s=0, caller=ALICE))
        await until(lambda: state._database.is_undecided)
        proxy.mend()
        if is_committed:
            new = await changing
            assert new.secret is not None
            assert state.ring.verify(new.secret.encode()) == KeyOwner(new.key.id, "web")
        else:
            with pytest.raises(RingUnavailable, match="nothing is changed"):
                await changing
            assert old.secret is not None
            assert state.ring.verify(old.secret.encode()) == KeyOwner(old.key.id, "web")
        wait_until(lambda: state.engine.error is None)
        assert state.ring.generation == state.reader.keys()[0] == (2 if is_committed else 1)


def test_a_start_that_fails_says_so_once(
    postgres: Server, postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It does not try again. A database that belongs to somebody else answers, and says what is missing."""
    postgres.execute("ALTER DATABASE {} OWNER TO postgres", str(conninfo_to_dict(postgres_url)["dbname"]))
    for url, says in (
        (postgres_url, "Make the user the owner of the database"),
        ("postgresql://relayd@/x?host=/nowhere", "does not answer"),
    ):
        with closing(Postgres(url)) as engine, pytest.raises(StateUnreachable, match=says):  # noqa: SIM117
            with as_state_errors(engine):
                engine.open()
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://relayd:s3cret@/x?port=none&host=/nowhere", "not the URL of a PostgreSQL database"),
        # Passwords that are not percent-encoded end where a part of the address begins.
        ("postgresql://relayd:p@s3cret@127.0.0.1:1/x", "is percent-encoded"),
        ("postgresql://relayd:p/s3cret@127.0.0.1:1/x", "is percent-encoded"),
        ("postgresql://relayd:1/s3cret@127.0.0.1:1/x", "is percent-encoded"),
        ("postgresql://relayd:s3cret@/x?host=/nowhere", r"'x' at /nowhere:5432 does not answer"),
        ("postgresql://relayd:s3cret@/x?colour=red", "not the URL of a PostgreSQL database"),
    ],
)
def test_the_password_is_in_no_message(url: str, says: str) -> None:
    """Messages name the database and its host; a URL that can't be read is not repeated."""

    def open_it() -> None:
        with closing(Postgres(url)) as engine, as_state_errors(engine):
            engine.open()

    with pytest.raises(StateUnreachable, match=says) as refused:
        open_it()
    assert "s3cret" not in str(refused.value)


def test_a_reader_without_a_connection_shuts_nobody_out(engine: Postgres, postgres: Server) -> None:
    """The server has none to spare for a query: the writer, which has its own, is not taken for cut off."""
    with closing(engine.open()) as connection:
        database = Database(engine, connection, "boot-1", Published())
        postgres.execute("ALTER ROLE relayd CONNECTION LIMIT 1")
        try:
            with (
                pytest.raises(EngineError, match="too many connections"),
                engine.reading(lambda: False, PATIENCE_S),
            ):
                pytest.fail("it began")
            assert engine.error is None
            assert counted(database) == 1
        finally:
            postgres.execute("ALTER ROLE relayd CONNECTION LIMIT -1")


def test_a_name_that_is_not_found_is_waited_for_by_one(
    engine: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While the writer's look-up of the server's name hangs, which nothing bounds, all others fail."""
    connection, is_found, connect = engine.open(), threading.Event(), engine._connect

    def look_up(*, is_writer: bool) -> postgres_engine._Raw:
        assert is_found.wait(PATIENCE_S)
        return connect(is_writer=is_writer)

    monkeypatch.setattr(engine, "_connect", look_up)
    with closing(connection):
        connection.close()
        waiting = threading.Thread(target=connection.execute, args=["SELECT 1"])
        try:
            with monkeypatch.context() as context:
                context.setattr(postgres_engine, "TIMEOUT_S", 0.1)
                waiting.start()
                wait_until(lambda: engine.error is not None)
            with pytest.raises(EngineError, match="no answer in time"):
                engine.breaker.check()
        finally:
            is_found.set()
            waiting.join(PATIENCE_S)
        wait_until(lambda: engine.error is None)


def test_a_server_that_only_reads_now_is_left(engine: Postgres) -> None:
    """A fenced primary keeps its connections: the next transaction looks for the server that writes."""
    with closing(engine.open()) as connection:
        database = Database(engine, connection, "boot-1", Published())
        connection.execute("SET default_transaction_read_only = on")
        assert counted(database) == 1

        def breaks() -> None:
            with database.transaction(durable=True) as transaction:
                transaction.connection.execute("SET transaction_read_only = on")
                transaction.next_seq()

        with pytest.raises(EngineError, match="read-only") as refused:
            breaks()
        assert refused.value.fault is Fault.UNREACHABLE
        assert connection.is_broken
        assert counted(database) == 2


def test_a_value_that_no_repetition_makes_fit_is_its_own_fault(engine: Postgres) -> None:
    """An index entry is bounded: what is too long for it is dropped, not tried for ever."""
    text = "".join(hashlib.sha256(str(number).encode()).hexdigest() for number in range(200))
    with closing(engine.open()) as connection, pytest.raises(EngineError) as refused:
        connection.execute("INSERT INTO stored_objects VALUES (?, 'web', NULL, 'responses', '')", (text,))
    assert refused.value.fault is Fault.DATA


def test_a_breaker_without_a_thread_for_its_probe_stays_closed(
    engine: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing would ever ask the server again."""

    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as context:
        context.setattr(threading.Thread, "start", refuse)
        engine.breaker.open(engine.unreachable("away"))
    engine.breaker.check()
    assert engine.error is None


def test_a_connection_that_can_t_be_set_up_is_closed(
    engine: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server gets it back at once, also while the error is kept."""
    made: list[psycopg.Connection] = []

    class Refused(postgres_engine._Raw):
        def execute(self, *_: object, **__: object) -> NoReturn:
            made.append(self)
            raise psycopg.OperationalError("refused")

    monkeypatch.setattr(postgres_engine, "_Raw", Refused)
    with pytest.raises(EngineError, match="refused"):
        engine.open()
    assert [raw.closed for raw in made] == [True]


def test_the_size_of_the_log_is_not_that_of_the_statistics(engine: Postgres, postgres_url: str) -> None:
    """Those count rows twice that one session wrote and analysed: half of the log would be removed."""
    with closing(engine.open()) as connection:
        database = Database(engine, connection, "boot-1", Published())
        log = RequestLog(database, lambda: None, lambda: 0.0, lambda *_: None, lambda _: None)
        for number in range(100):
            record = a_record(number)
            log.started(record)
            log.ended(as_ended(record))
        log.drain(until=math.inf)
        connection.execute("ANALYZE requests")
        (pid,) = connection.execute("SELECT pg_backend_pid()").rows[0]
    with psycopg.connect(postgres_url, autocommit=True) as other:
        # Its statistics are there when it is gone.
        gone = "SELECT count(*) FROM pg_stat_activity WHERE pid = %s"
        wait_until(lambda: other.execute(gone, (pid,)).fetchone() == (0,))
        size = other.execute("SELECT sum(pg_column_size(requests.*)) FROM requests").fetchone()
    assert size is not None
    with closing(engine.open()) as connection:
        assert connection.used_bytes() == pytest.approx(int(size[0]) + 100 * 200, rel=0.01)


def test_without_a_url_psycopg_is_not_imported() -> None:
    """SQLite costs no more memory and time than before there was another engine."""
    program = "import sys, relayd.commands.serve, relayd.server; print('psycopg' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
