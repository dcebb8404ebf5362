"""Files that the configuration names: where paths lead, and what cannot be read."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.config.harness import ConfigHarness

NOBODY = 65534


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("a", "{cwd}/a"),
        ("../a", "{cwd}/../a"),
        ("/a", "/a"),
        ("~", "{cwd}/home"),
        ("~/a", "{cwd}/home/a"),
        ("~//a", "{cwd}/home/a"),
        ("a~", "{cwd}/a~"),
    ],
)
def test_paths(harness: ConfigHarness, text: str, path: str) -> None:
    """Relative paths begin at the working directory, `~/` at the home directory."""
    assert harness.load(f"state_dir = '{text}'").state_dir == Path(path.format(cwd=harness.cwd))


def _expire(*_: object) -> None:
    raise TimeoutError


def test_a_pipe_is_not_opened(harness: ConfigHarness) -> None:
    """A named pipe is refused without waiting for its writer."""
    os.mkfifo(harness.cwd / "relayd.toml")
    before = signal.signal(signal.SIGALRM, _expire)
    signal.alarm(5)
    try:
        assert harness.problems() == ["relayd.toml: this file is not a regular file."]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _without_privilege() -> Iterator[None]:
    """Act as a user who is not root, as far as files are concerned."""
    user = os.geteuid()
    os.seteuid(NOBODY if user == 0 else user)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("closed", ["etc/relayd.toml", "etc"])
def test_a_file_without_permission_is_told(harness: ConfigHarness, closed: str) -> None:
    """A file that may not be read, or that is in a closed directory, is named instead of passed over."""
    harness.cwd.chmod(0o755)
    path = harness.write("etc/relayd.toml", "")
    (harness.cwd / closed).chmod(0o000)
    with _without_privilege():
        problems = harness.problems()
    path.parent.chmod(0o700)
    assert problems == ["etc/relayd.toml: this file cannot be read: Permission denied."]
