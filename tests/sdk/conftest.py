"""What the clients of `/v1` share: the daemons, and where `llm` is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.daemon import KEY, PROVIDER_KEY, Daemon
from tests.sdk.harness import V1
from tests.support.upstream import fault_upstream
from tests.wire import HOST


def _serve(tmp_path_factory: pytest.TempPathFactory, heartbeat_s: float) -> Iterator[V1]:
    upstream = fault_upstream(PROVIDER_KEY)
    settings = {"chat.heartbeat_s": heartbeat_s, "upstream.base_url": upstream.base_url}
    with Daemon(tmp_path_factory.mktemp("v1"), settings=settings) as daemon:
        yield V1(f"http://{HOST}:{daemon.port}/v1", KEY, upstream)


@pytest.fixture(scope="session")
def v1(tmp_path_factory: pytest.TempPathFactory) -> Iterator[V1]:
    """A daemon without heartbeats: one that is sent early decides that a stream begins with status 200."""
    yield from _serve(tmp_path_factory, 3600)


@pytest.fixture(scope="session")
def beating_v1(tmp_path_factory: pytest.TempPathFactory) -> Iterator[V1]:
    """A daemon that fills a tenth of a second of silence."""
    yield from _serve(tmp_path_factory, 0.1)


@pytest.fixture
def llm(request: pytest.FixtureRequest) -> Path:
    """The program `llm`; skips the test unless it is installed and there is time for it."""
    request.getfixturevalue("only_large")
    program = Path(__file__).parents[2] / ".venv" / "llm" / "bin" / "llm"
    if not program.is_file():
        pytest.skip("needs llm: scripts/clients")
    return program
