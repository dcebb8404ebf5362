"""Two releases on one database: the older one lives with the tables of the newer one, or refuses them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import psycopg
import pytest

from relayd.state.errors import StateOtherFormat
from relayd.state.postgres import Postgres
from relayd.state.schema import MIGRATIONS
from relayd.state.state import State
from tests.e2e.daemon import Daemon
from tests.state.harness import ALICE, a_record, as_ended, opened
from tests.wire import wait_until

_OURS = len(MIGRATIONS)


def _upgrade(url: str, oldest_reader: int) -> None:
    """Change the tables as a newer release would, which says how old a relayd may be that uses them."""
    with psycopg.connect(url) as newer:
        newer.execute("CREATE TABLE shades (id TEXT PRIMARY KEY)")
        newer.execute("ALTER TABLE requests ADD COLUMN shade TEXT NOT NULL DEFAULT 'grey'")
        newer.execute("ALTER TABLE keys ADD COLUMN shade TEXT")
        for name, value in (("version", _OURS + 1), ("oldest_reader", oldest_reader)):
            newer.execute("UPDATE meta SET value = %s WHERE name = %s", (value, name))


async def _use(state: State, number: int) -> None:
    """Make a key and a record, and find both again."""
    made = await state.ring.add(f"client-{number}", caller=ALICE)
    assert made.secret is not None
    assert state.ring.verify(made.secret.encode()) is not None
    record = a_record(number)
    state.log.started(record)
    state.log.ended(as_ended(record))
    wait_until(lambda: not state.log.queued)
    found = state.reader.get(record.id)
    assert found is not None
    assert found.outcome is record.outcome


async def test_an_older_release_goes_on_with_the_tables_of_a_newer_one(
    tmp_path: Path, postgres_url: str
) -> None:
    """One that runs, and one that starts; what the newer one added stays."""
    with opened(tmp_path / "1", engine=Postgres(postgres_url)) as state:
        await _use(state, 1)
        _upgrade(postgres_url, oldest_reader=_OURS)
        await _use(state, 2)
    with opened(tmp_path / "2", engine=Postgres(postgres_url)) as state:
        await _use(state, 3)
        assert len(state.ring.keys()) == 3
    with psycopg.connect(postgres_url) as newer:
        assert newer.execute("SELECT DISTINCT shade FROM requests").fetchall() == [("grey",)]
        version = newer.execute("SELECT value FROM meta WHERE name = 'version'").fetchone()
    assert version == (_OURS + 1,)


def test_an_older_release_refuses_tables_that_it_would_spoil(postgres_url: str) -> None:
    """It does not start, says why, and changes nothing."""
    with closing(Postgres(postgres_url)) as engine, closing(engine.open()):
        pass
    _upgrade(postgres_url, oldest_reader=_OURS + 1)
    with closing(Postgres(postgres_url)) as engine, pytest.raises(StateOtherFormat, match="a newer relayd"):
        engine.open()


def test_an_older_release_that_runs_stops_before_it_spoils_the_tables(
    tmp_path: Path, postgres_url: str
) -> None:
    """It drains as on SIGTERM, and says why."""
    with Daemon(tmp_path, settings={"state.url": postgres_url}) as daemon:
        _upgrade(postgres_url, oldest_reader=_OURS + 1)
        assert daemon.wait() == 0
        assert "A newer relayd changed the tables" in daemon.stderr


def test_many_that_start_at_once_make_the_tables_once(postgres_url: str) -> None:
    """On an empty database; each of them can use it."""

    def open_and_close(_number: int) -> None:
        with closing(Postgres(postgres_url)) as engine, closing(engine.open()) as connection:
            assert connection.version() == _OURS

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(open_and_close, range(4)))
