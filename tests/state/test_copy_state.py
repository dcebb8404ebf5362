"""The copy from SQLite to PostgreSQL: whole, verified, and never used before it is."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import msgspec
import psycopg
import pytest

from relayd.state import copy_state as module
from relayd.state.budget import NANO, Demand, Use
from relayd.state.copy_state import Copied, Progress, copy_state
from relayd.state.directory import StateDirectory
from relayd.state.errors import StateBusy, StateDamaged, StateOtherFormat, StateUnreachable
from relayd.state.key_store import load_ring
from relayd.state.postgres import Postgres
from relayd.state.sqlite import Sqlite
from relayd.state.state import State
from relayd.state.stored_objects import Owner
from tests.state.harness import ALICE, a_record, as_ended, opened
from tests.support.postgres import Postgres as Server
from tests.wire import wait_until

_STEP_ROWS = 100
_REQUESTS = 250
_TABLES = {
    *("audit", "clients", "idempotency", "keys", "lost", "meta", "requests"),
    *("reservations", "ring", "stored_objects", "usage", "windows"),
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SQLite file with something in every table."""
    path = tmp_path_factory.mktemp("filled") / "state" / "relayd.db"
    with opened(path.parent) as state:
        asyncio.run(_fill(state))
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "INSERT INTO lost VALUES (1000000, 'boot-1', '2026-11-27T00:00:00.000Z', 3, 'full')"
        )
        connection.execute("UPDATE clients SET note = 'Zoë 😀' || char(0) || 'x' WHERE name = 'web'")
        # In an order that a locale would change.
        for name in ("Ärger", "ab", "a-c", "B", "_"):
            connection.execute("INSERT INTO stored_objects VALUES (?, 'web', NULL, 'response', '')", (name,))
    return path


@pytest.fixture
def source(filled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's own copy of that file; a step of copying it is small."""
    monkeypatch.setattr(module, "_STEP_ROWS", _STEP_ROWS)
    shutil.copytree(filled.parent, tmp_path / "state")
    return tmp_path / "state" / "relayd.db"


async def _fill(state: State) -> None:
    state.ring.ensure_initial_key(None)
    web = await state.ring.add_client("web", {"usd_per_day": 0.1, "models": ["gpt-*"]}, caller=ALICE)
    assert web.key is not None
    await state.ring.rotate(web.key.id, grace_s=60, caller=replace(ALICE, idempotency_key="once"))
    state.ring.record_use(web.key.id, "203.0.113.7")
    state.stored_objects.add("resp_1", Owner("web", None, "responses", "2026-11-27T00:00:00.000Z"))
    client = state.ring.client("web")
    assert client is not None
    for number in range(2):
        most = Use(1, 100, NANO // 100)
        await state.budget.reserve(Demand(f"req-{number:06d}", client, web.key.id, "gpt-4o-mini", most, most))
    for number in range(1, _REQUESTS + 1):
        record = a_record(number)
        state.log.started(record)
        state.log.ended(as_ended(record, 502 if number % 3 == 0 else 200))
    await asyncio.to_thread(wait_until, lambda: not state.log.queued)


@pytest.fixture
def target(postgres_url: str) -> Iterator[Postgres]:
    """An empty database."""
    with closing(Postgres(postgres_url)) as engine:
        yield engine


def _copied(source: Path, target: Postgres) -> Copied:
    return copy_state(source, target, lambda _progress: None)


def _rows(connection: sqlite3.Connection | psycopg.Connection, table: str) -> set[tuple[object, ...]]:
    return {tuple(row) for row in connection.execute(f'SELECT * FROM "{table}"')}  # noqa: S608 - own table


def test_every_row_of_every_table_arrives(source: Path, target: Postgres, postgres_url: str) -> None:
    """What cannot be stored there, a NUL, is replaced as relayd itself does; nothing else is changed."""
    copied = _copied(source, target)
    assert set(copied.rows) == _TABLES
    assert min(copied.rows.values()) > 0
    assert copied.rows["requests"] == _REQUESTS
    assert not copied.is_continued
    with closing(sqlite3.connect(source)) as ours, psycopg.connect(postgres_url) as theirs:
        for table in _TABLES - {"meta", "clients"}:
            assert _rows(theirs, table) == _rows(ours, table), table
        assert _rows(theirs, "meta") >= _rows(ours, "meta")
        note = theirs.execute("SELECT note FROM clients WHERE name = 'web'").fetchone()
    assert note == ("Zoë \U0001f600\ufffdx",)


def test_the_copy_is_a_state_like_any_other(source: Path, target: Postgres) -> None:
    """The ring, the log and the use of a client are the same through the engine."""
    _copied(source, target)
    rings = []
    for engine in (Sqlite(source), target):
        with engine.reading(lambda: False, 60.0) as connection:
            ring = load_ring(connection)
            last = connection.execute("SELECT * FROM requests ORDER BY start_seq DESC LIMIT 3").rows
            used = connection.execute("SELECT * FROM windows ORDER BY client").rows
            rings.append((ring.generation, ring.digests, sorted(key.id for key in ring.keys), last, used))
    assert rings[0] == rings[1]
    with closing(target.open()):
        pass


@pytest.mark.parametrize("stop_at", ["read", "copied audit", "copied requests", "verified requests"])
def test_an_interrupted_copy_continues(
    source: Path, target: Postgres, postgres_url: str, stop_at: str
) -> None:
    """Wherever it ends: no relayd starts on a part of it, and what was committed is not copied again.

    Each step is told to the last row of each table.
    """

    def stop(progress: Progress) -> None:
        if f"{progress.step} {progress.table}".startswith(stop_at):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_state(source, target, stop)
    seen: list[Progress] = []
    if stop_at != "read":
        with pytest.raises(StateOtherFormat, match="run relayd migrate-state again"):
            target.open()
    copied = copy_state(source, target, seen.append)
    assert copied.is_continued == (stop_at != "read")
    last = {(progress.step, progress.table): progress for progress in seen}
    assert {progress.rows for progress in last.values()} >= {_REQUESTS}
    assert all(progress.rows == progress.of for progress in last.values())
    steps = [progress.rows for progress in seen if (progress.step, progress.table) == ("copied", "requests")]
    assert steps == {"copied requests": [200, 250], "verified requests": []}.get(stop_at, [100, 200, 250])
    with psycopg.connect(postgres_url) as theirs, closing(sqlite3.connect(source)) as ours:
        assert _rows(theirs, "requests") == _rows(ours, "requests")
    with closing(target.open()):
        pass


_CHILD = f"""
import sys
from pathlib import Path
from relayd.state import copy_state as module
from relayd.state.postgres import Postgres
module._STEP_ROWS = {_STEP_ROWS}
target = Postgres(sys.stdin.readline())
module.copy_state(Path(sys.argv[1]), target, lambda progress: print(progress, flush=True))
"""


def test_a_killed_copy_continues(source: Path, target: Postgres, postgres_url: str) -> None:
    """The server ends what a dead process had begun, and lets the next one in."""
    with subprocess.Popen(
        [sys.executable, "-c", _CHILD, str(source)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        print(postgres_url, file=child.stdin, flush=True)
        while "'copied', table='requests', rows=100" not in child.stdout.readline():
            assert child.poll() is None
        child.kill()
    assert _copied(source, target).is_continued
    with psycopg.connect(postgres_url) as theirs, closing(sqlite3.connect(source)) as ours:
        assert _rows(theirs, "requests") == _rows(ours, "requests")


def test_a_copy_of_what_has_changed_since_begins_again(
    source: Path, target: Postgres, postgres_url: str
) -> None:
    """After an interrupted copy the relay served from its file again: nothing of the older one is left."""

    def stop(progress: Progress) -> None:
        if progress.step == "copied" and progress.table == "requests":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy_state(source, target, stop)
    with psycopg.connect(postgres_url) as server:
        # Row by row, it would take too long for a large part.
        for table in _TABLES - {"meta"}:
            server.execute(f'CREATE RULE keep AS ON DELETE TO "{table}" DO INSTEAD NOTHING'.encode())
    with closing(sqlite3.connect(source)) as connection, connection:
        connection.execute("UPDATE requests SET deltas = 7 WHERE id = 'req-000001'")
        connection.execute("DELETE FROM stored_objects WHERE id = 'B'")
    assert not _copied(source, target).is_continued
    with psycopg.connect(postgres_url) as theirs, closing(sqlite3.connect(source)) as ours:
        for table in ("requests", "stored_objects"):
            assert _rows(theirs, table) == _rows(ours, table)


def test_what_something_else_wrote_is_found(source: Path, target: Postgres, postgres_url: str) -> None:
    """A row that differs when both sides are compared keeps the database from being used."""

    def spoil(progress: Progress) -> None:
        if progress == Progress("copied", "requests", _REQUESTS, _REQUESTS):
            with psycopg.connect(postgres_url) as other:
                other.execute("UPDATE requests SET deltas = 7 WHERE id = 'req-000001'")

    with pytest.raises(StateDamaged, match=r"The table requests .* \(250 rows and 250\)"):
        copy_state(source, target, spoil)
    with pytest.raises(StateOtherFormat):
        target.open()


def test_a_complete_copy_is_found(source: Path, target: Postgres) -> None:
    """The answer to its last commit was lost, so it is run again; nothing is copied once more."""
    copied = _copied(source, target)
    seen: list[Progress] = []
    again = copy_state(source, target, seen.append)
    assert again == msgspec.structs.replace(copied, is_continued=True)
    assert "copied" not in {progress.step for progress in seen}
    with closing(target.open()):
        pass


def test_a_complete_copy_that_nobody_used_is_made_again(
    source: Path, target: Postgres, postgres_url: str
) -> None:
    """The relay served from its file again, because it did not hear that the copy was complete."""
    _copied(source, target)
    with closing(sqlite3.connect(source)) as connection, connection:
        connection.execute("UPDATE requests SET deltas = 7 WHERE id = 'req-000001'")
    assert not _copied(source, target).is_continued
    with psycopg.connect(postgres_url) as theirs, closing(sqlite3.connect(source)) as ours:
        assert _rows(theirs, "requests") == _rows(ours, "requests")


def test_a_database_in_use_is_not_overwritten(
    source: Path, target: Postgres, postgres_url: str, tmp_path: Path
) -> None:
    """It stays as it is, also when the relay that used it has ended."""
    _copied(source, target)
    with opened(tmp_path / "user", engine=Postgres(postgres_url)):
        pass
    with pytest.raises(StateDamaged, match="has the state of a relay already"):
        _copied(source, target)


def test_a_database_of_another_program_is_not_touched(
    source: Path, target: Postgres, postgres_url: str
) -> None:
    """It has a table of a name that relayd needs, which is said."""
    with psycopg.connect(postgres_url, autocommit=True) as other:
        other.execute("CREATE TABLE windows (number INTEGER)")
        with pytest.raises(StateDamaged, match="has a table 'windows' of another program"):
            _copied(source, target)
        with pytest.raises(StateDamaged, match="has a table 'windows' of another program"):
            target.open()
        assert other.execute("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").fetchone() == (1,)


def test_a_daemon_that_uses_the_file_refuses_it(source: Path, target: Postgres) -> None:
    """And the other way round: while it is copied, no daemon may start."""
    with StateDirectory(source.parent), pytest.raises(StateBusy, match="Another relayd uses"):
        _copied(source, target)
    refused = []

    def start(_progress: Progress) -> None:
        with pytest.raises(StateBusy):
            StateDirectory(source.parent)
        refused.append(True)

    copy_state(source, target, start)
    assert refused


def test_a_server_that_is_gone_is_named(source: Path, target: Postgres, postgres: Server) -> None:
    """In one sentence, without the user and the password of the URL."""
    postgres.stop()
    with pytest.raises(StateUnreachable, match="does not answer"):
        _copied(source, target)
