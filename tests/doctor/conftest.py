"""What every test of the doctor may ask for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.doctor.harness import NAME, SETTINGS, Tls
from tests.e2e.daemon import Daemon
from tests.support.certificates import certificate


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """A certificate for the site, and a context that trusts it."""
    return certificate(tmp_path_factory.mktemp("tls"), f"DNS:{NAME}", days=90)


@pytest.fixture(scope="session")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A relay with short heartbeats."""
    with Daemon(tmp_path_factory.mktemp("relay"), settings=SETTINGS) as running:
        yield running
