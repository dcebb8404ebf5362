"""Runs async tests on uvloop through pytest-tornasync, strictly: see `tests.support.loop`."""

from __future__ import annotations

import codecs
import gc
import inspect
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.e2e.daemon import Daemon
from tests.support.loop import TestLoop, VirtualClockLoop
from tests.support.postgres import Postgres

# The same examples everywhere, and as long as the machine takes for them: a busy one may stand still
# between any two lines.
settings.register_profile(
    "suite", deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("suite")
# Loaded here: in a test that gives up root's rights the first use would fail if only root can read Python's
# library, and Python remembers that a codec is unknown.
codecs.lookup("utf-8-sig")
# Until all is imported, which garbage only slows down: a third of the collection's time.
gc.disable()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Let attacks and loads be larger than the suite has time for, and daemons have several processes."""
    parser.addoption(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="how many processes serve in the tests of tests/e2e",
    )
    parser.addoption(
        "--size", choices=("small", "large"), default="small", help="large: also what takes long"
    )


@pytest.fixture
def large(request: pytest.FixtureRequest) -> bool:
    """Whether attacks and loads have their full size."""
    return bool(request.config.getoption("--size") == "large")


@pytest.fixture(scope="session")  # so that nothing is started before
def only_large(request: pytest.FixtureRequest) -> None:
    """Skip the test that asks for this in the ordinary suite."""
    if request.config.getoption("--size") != "large":
        pytest.skip("it takes long: --size large")


def pytest_configure(config: pytest.Config) -> None:
    """Name the markers of async tests; pytest-tornasync reads `timeout`."""
    Daemon.workers = config.getoption("--workers")
    config.addinivalue_line("markers", "virtual_clock: its time passes only while all wait")
    config.addinivalue_line(
        "markers", "timeout(seconds): how long this async test may take (default: --async-test-timeout)"
    )


def pytest_itemcollected(item: pytest.Item) -> None:
    """Give every async test the loop: without it, pytest-tornasync would make one and never close it."""
    if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
        item.fixturenames.append("io_loop")


def pytest_collection_finish() -> None:
    """Leave what is imported out of the collections that each async test ends with: they cost 0.1 s else."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """Give a test a directory with a short path: that of a Unix socket has at most 107 bytes (unix(7)).

    pytest's own directory names the user, two counters and the test, which leaves too few of them for
    `.local/state/relayd-demo/admin.sock`.
    """
    with tempfile.TemporaryDirectory(prefix="relayd-", ignore_cleanup_errors=True) as directory:
        yield Path(directory)


@pytest.fixture
def io_loop(request: pytest.FixtureRequest) -> Iterator[TestLoop]:
    """The loop of one async test; ask for it to call `expect_error`."""
    is_virtual = request.node.get_closest_marker("virtual_clock") is not None
    loop = TestLoop(VirtualClockLoop) if is_virtual else TestLoop()
    yield loop
    loop.close()


@pytest.fixture(scope="session")
def postgres_of_worker() -> Iterator[Postgres]:
    """The server that this process's tests share; tests ask for `postgres`."""
    with Postgres() as server:
        yield server


@pytest.fixture
def postgres(postgres_of_worker: Postgres) -> Iterator[Postgres]:
    """PostgreSQL; the test may stop, kill and freeze it."""
    yield postgres_of_worker
    postgres_of_worker.thaw()
    postgres_of_worker.start()


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """An empty database of the test's own, as the role that owns it."""
    name = postgres.create_database()
    yield postgres.url(name)
    postgres.thaw()
    postgres.start()
    postgres.drop_database(name)
