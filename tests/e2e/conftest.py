"""The daemon and the browsers that end-to-end tests share: each start costs a second of processor time."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.e2e.daemon import Daemon
from tests.support.browser import Browser
from tests.support.browsers import BROWSERS, running


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon in front of a demo upstream, with its usual settings; tests leave it as they found it."""
    settings = {"upstream.max_retries": 0}
    with Daemon(tmp_path_factory.mktemp("daemon"), settings=settings) as shared:
        yield shared


@pytest.fixture(scope="module", params=BROWSERS)
def browser(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Each browser in turn, headless, its profile empty."""
    with running(request.param, tmp_path_factory.mktemp(request.param)) as started:
        yield started
