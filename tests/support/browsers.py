"""The browsers that are installed, for tests that hold in each of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.browser import Browser
from tests.support.chromium import chromium, running_chromium
from tests.support.firefox import firefox, running_firefox

BROWSERS = ("chromium", "firefox")


@contextmanager
def running(name: str, home: Path) -> Iterator[Browser]:
    """Start one of them in an empty directory; skips the test where it is not installed."""
    if name == "chromium":
        if chromium() is None:
            pytest.skip("Chromium is not installed")
        with running_chromium(home) as browser:
            yield browser
    else:
        if firefox() is None:
            pytest.skip("Firefox is not installed (Debian: firefox-esr)")
        with running_firefox(home) as other:
            yield other
