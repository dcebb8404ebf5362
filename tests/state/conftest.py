"""Runs the tests of the state on both engines."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.state.harness import PostgresDatabases, on_postgres
from tests.state.lossy_proxy import LossyProxy
from tests.support.postgres import Postgres


def pytest_configure(config: pytest.Config) -> None:
    """Name the marker of tests that look into the file of SQLite."""
    config.addinivalue_line("markers", "sqlite: of a module that runs on both engines, only on SQLite")


_SOON = {"test_instances", "test_keyring", "test_postgres", "test_processes", "test_request_log"}
"""Which modules always run on PostgreSQL too; the others only with `--size large`, to save a minute."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each test that uses `engine_kind` twice."""
    if "engine_kind" in metafunc.fixturenames:
        is_sqlite = metafunc.definition.get_closest_marker("sqlite") is not None
        is_large = metafunc.config.getoption("--size") == "large"
        is_soon = is_large or metafunc.module.__name__.rpartition(".")[2] in _SOON
        kinds = ["sqlite"] if is_sqlite or not is_soon else ["sqlite", "postgresql"]
        metafunc.parametrize("engine_kind", kinds, indirect=True, scope="function")


@pytest.fixture(scope="session")
def postgres_databases(postgres_of_worker: Postgres) -> PostgresDatabases:
    """Databases with the schema in them, copied for each test."""
    return PostgresDatabases(postgres_of_worker)


@pytest.fixture
def engine_kind(request: pytest.FixtureRequest) -> Iterator[str]:
    """Let the harness open this engine, wherever a test opens a state directory."""
    kind: str = request.param
    if kind == "sqlite":
        yield kind
        return
    with on_postgres(request.getfixturevalue("postgres_databases")):
        yield kind


@pytest.fixture
def proxy(tmp_path: Path, postgres: Postgres) -> Iterator[LossyProxy]:
    """A way to PostgreSQL that can lose the answer to a COMMIT."""
    with LossyProxy(tmp_path, postgres.directory) as proxy:
        yield proxy
