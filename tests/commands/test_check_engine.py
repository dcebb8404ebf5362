"""What `relayd check` and `relayd doctor` find about a PostgreSQL database."""

from __future__ import annotations

import re
from contextlib import closing

import psycopg
import pytest

from relayd.commands.check_engine import check_engine
from relayd.findings import Finding, Severity
from relayd.state.postgres import Postgres
from tests.support.postgres import Postgres as Server


def _found(url: str) -> dict[str, Finding]:
    with closing(Postgres(url)) as engine:
        return {finding.where: finding for finding in check_engine(engine)}


def test_a_good_database_is_good(postgres_url: str) -> None:
    """Empty or with the tables of a relay; nothing is changed by looking."""
    found = _found(postgres_url)
    # A busy machine is slow to answer, and the tests' server has no fsync.
    assert list(found) == ["database", "latency", "clock", "durability", "tables"]
    assert {found[where].severity for where in ("database", "clock", "tables")} == {Severity.OK}
    assert "is PostgreSQL " in found["database"].message
    assert re.fullmatch(r"A round trip takes \d+\.\d ms\.", found["latency"].message)
    assert "when it starts" in found["tables"].message
    with closing(Postgres(postgres_url)) as engine, closing(engine.open()):
        pass
    assert "as this relayd needs them" in _found(postgres_url)["tables"].message


@pytest.mark.parametrize(
    ("statement", "where", "words"),
    [
        ("CREATE TABLE keys (a integer)", "tables", "of another program"),
        ("CREATE TABLE unfinished_copy (a integer)", "tables", "run relayd migrate-state again"),
    ],
)
def test_tables_that_relayd_cannot_use_are_an_error(
    postgres_url: str, statement: str, where: str, words: str
) -> None:
    """In the words of the start that would fail."""
    with psycopg.connect(postgres_url) as connection:
        connection.execute(statement.encode())
    finding = _found(postgres_url)[where]
    assert finding.severity is Severity.ERROR
    assert words in finding.message


def test_a_role_that_may_not_make_tables_is_an_error(postgres: Server, postgres_url: str) -> None:
    """As the role of a database that belongs to another."""
    name = str(psycopg.conninfo.conninfo_to_dict(postgres_url)["dbname"])
    postgres.execute("REVOKE CREATE ON SCHEMA public FROM pg_database_owner", database=name)
    finding = _found(postgres_url)["tables"]
    assert (finding.severity, "ALTER DATABASE" in finding.remedy) == (Severity.ERROR, True)


def test_commits_that_a_crash_can_take_back_are_a_warning(postgres_url: str) -> None:
    """Such as those of the server of the tests, which has no fsync."""
    finding = _found(postgres_url)["durability"]
    assert (finding.severity, finding.remedy) == (Severity.WARNING, "set fsync = on")


def test_clocks_that_differ_are_a_warning(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Days, minutes and the ends of keys would differ between the machines."""
    monkeypatch.setattr("time.time", lambda: 1_800_000_000.0)
    finding = _found(postgres_url)["clock"]
    assert (finding.severity, "differ by" in finding.message) == (Severity.WARNING, True)


def test_a_standby_is_an_error() -> None:
    """It only reads; the primary says that its commits are on the disks of both."""
    with Server(settings={"fsync": "on"}) as primary:
        name = primary.create_database()
        alone = _found(primary.url(name))["durability"]
        assert (alone.severity, "no standby has to have it" in alone.message) == (Severity.OK, True)
        with primary.standby() as standby:
            assert "of a standby" in _found(primary.url(name))["durability"].message
            for url in (standby.url(name), f"{standby.url(name)}&target_session_attrs=any"):
                found = _found(url)["database"]
                assert (found.severity, "is a standby" in found.message) == (Severity.ERROR, True)


def test_a_search_path_without_a_schema_is_an_error(postgres_url: str) -> None:
    """There is none to name."""
    finding = _found(f"{postgres_url}&options=-csearch_path%3Dnowhere")["tables"]
    assert (finding.severity, "search_path" in finding.message) == (Severity.ERROR, True)


def test_a_server_that_does_not_answer_is_an_error(postgres: Server, postgres_url: str) -> None:
    """Stopped or frozen, with the reason and without the password."""
    postgres.stop()
    (found,) = _found(postgres_url.replace("relayd@", "relayd:a-password@")).values()
    assert found.severity is Severity.ERROR
    assert "does not answer" in found.message
    assert "a-password" not in str(found)
    postgres.start()
    with postgres.frozen():
        (found,) = _found(postgres_url).values()
    assert found.severity is Severity.ERROR
