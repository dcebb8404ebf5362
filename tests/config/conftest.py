"""What the tests of the configuration share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.config.harness import ConfigHarness


@pytest.fixture
def harness() -> Iterator[ConfigHarness]:
    """An empty working directory at a short path: that of the admin socket has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="config") as directory:
        yield ConfigHarness(Path(directory))
