"""What every test of the doctor may ask for."""

from __future__ import annotations

import pytest

from tests.doctor.room import NAME, Tls
from tests.support.certificate import certificate


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Tls:
    """A certificate for the site, and who trusts it."""
    return certificate(tmp_path_factory.mktemp("tls"), f"DNS:{NAME}", days=90)
