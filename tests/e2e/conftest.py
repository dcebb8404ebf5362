"""The daemon that end-to-end tests share: each start costs a second of processor time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.daemon import Daemon


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon in front of a demo upstream, with its usual settings; tests leave it as they found it."""
    settings = {"upstream.max_retries": 0}
    with Daemon(tmp_path_factory.mktemp("daemon"), settings=settings) as shared:
        yield shared
