"""The relay that most tests of this directory break."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster.harness import Machine, machines


@pytest.fixture
def streams() -> int:
    """How many streams are open at a time."""
    return 200


@pytest.fixture
def relay(tmp_path: Path, postgres_url: str) -> Iterator[list[Machine]]:
    """Machines that share a database."""
    with machines(tmp_path, 3, {"state.url": postgres_url}) as made:
        yield made
