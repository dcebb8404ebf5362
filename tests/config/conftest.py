"""What the tests of the configuration share."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.config.room import Room


@pytest.fixture
def room() -> Iterator[Room]:
    """A room of one's own, at a short path: the admin socket's has to fit into 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="room") as directory:
        yield Room(Path(directory))
