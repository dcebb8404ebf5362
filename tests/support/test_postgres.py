"""The server of the tests does what their names say."""

from __future__ import annotations

import psycopg
import pytest

from tests.support.postgres import Postgres


def _counted(url: str) -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(*) FROM kept").fetchone()
    assert row is not None
    return row[0]


def test_what_was_committed_survives_a_kill(postgres: Postgres, postgres_url: str) -> None:
    """Connections break at once, and the data is there after the next start."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS a")
        postgres.kill()
        with pytest.raises(psycopg.OperationalError):
            connection.execute("SELECT 1")
    with pytest.raises(psycopg.OperationalError):
        psycopg.connect(postgres_url)
    postgres.start()
    assert _counted(postgres_url) == 1


def test_a_frozen_server_answers_nothing_and_goes_on(postgres: Postgres, postgres_url: str) -> None:
    """The kernel takes what a client sends, so that only a limit of its own ends its wait."""
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        with postgres.frozen():
            connection.pgconn.send_query(b"CREATE TABLE kept ()")
            connection.pgconn.flush()
            connection.pgconn.consume_input()
            assert connection.pgconn.is_busy()
        result = connection.pgconn.get_result()
        assert result is not None
        assert result.status == psycopg.pq.ExecStatus.COMMAND_OK
        assert connection.pgconn.get_result() is None
    assert _counted(postgres_url) == 0


def test_a_promoted_standby_has_what_was_committed() -> None:
    """One URL names both servers, and leads to the one that takes writes."""
    with Postgres() as primary:
        name = primary.create_database()
        with primary.standby() as standby:
            url = primary.url(name, other=standby)
            with psycopg.connect(url) as connection:
                connection.execute("CREATE TABLE kept AS SELECT 1 AS a")
            primary.kill()
            standby.promote()
            assert _counted(url) == 1


def test_the_role_is_an_ordinary_one(postgres: Postgres) -> None:
    """What relayd may not do with a database of its own, it must not need."""
    with psycopg.connect(postgres.url(), autocommit=True) as relayd:
        may = relayd.execute(
            "SELECT rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls"
            " FROM pg_roles WHERE rolname = current_user"
        ).fetchone()
    assert may == (False, False, False, False, False)
