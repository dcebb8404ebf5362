"""Tests for relayd.config.files: paths and what is behind them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from relayd.config.errors import Findings
from relayd.config.files import Here, is_present, is_regular, read_text

NOBODY = 65534
HERE = Here(Path("/some dir"), Path("/home/me"))

PATHS = [
    ("", None),
    ("a", Path("/some dir/a")),
    ("../a", Path("/some dir/../a")),
    ("/a", Path("/a")),
    ("~", Path("/home/me")),
    ("~/a", Path("/home/me/a")),
    ("~//a", Path("/home/me/a")),
    ("~you/a", "~you/a"),
    ("a~", Path("/some dir/a~")),
    ("a\0", "a\0"),
]


@pytest.mark.parametrize(("text", "path"), PATHS)
def test_paths(text: str, path: Path | str | None) -> None:
    """Relative paths start at the working directory, `~/` at the home; what is no path stays text."""
    assert HERE.path(text) == path


def test_presence(tmp_path: Path) -> None:
    """Only what is surely absent counts as absent."""
    (tmp_path / "file").touch()
    (tmp_path / "loop").symlink_to("loop")
    assert is_present(tmp_path / "file")
    assert is_present(tmp_path / "loop")
    assert not is_present(tmp_path / "none")
    assert not is_present(tmp_path / "file" / "below")
    assert not is_present(Path("\0"))
    assert is_regular(tmp_path / "file")
    assert not is_regular(tmp_path)
    assert not is_regular(tmp_path / "none")


def _expire(*_: object) -> None:
    raise TimeoutError


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Fail what blocks in a system call for longer."""
    before = signal.signal(signal.SIGALRM, _expire)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_a_pipe_is_not_opened(tmp_path: Path) -> None:
    """A named pipe is refused without waiting for its writer."""
    os.mkfifo(tmp_path / "pipe")
    findings = Findings()
    with at_most(5):
        assert read_text(tmp_path / "pipe", "pipe", findings, key="k") is None
    assert [(p.where, p.message, p.key) for p in findings.problems] == [
        ("pipe", "this file is not a regular file.", "k")
    ]


@contextmanager
def without_privilege() -> Iterator[None]:
    """Act as a user who is not root, as far as files are concerned."""
    was = os.geteuid()
    os.seteuid(NOBODY if was == 0 else was)
    try:
        yield
    finally:
        os.seteuid(was)


def test_no_permission() -> None:
    """A file that may not be read says so, and counts as present even where its directory is closed."""
    with TemporaryDirectory() as name:
        directory = Path(name)
        directory.chmod(0o755)
        (directory / "open").touch(0o644)
        (directory / "secret").touch(0o000)
        closed = directory / "closed"
        closed.mkdir()
        (closed / "relayd.toml").touch()
        closed.chmod(0o000)
        with without_privilege():
            seen = Findings()
            assert read_text(directory / "open", "open", seen) == ""
            assert read_text(directory / "secret", "secret", seen) is None
            assert read_text(closed / "relayd.toml", "closed", seen) is None
            assert is_present(closed / "relayd.toml")
            assert is_regular(closed / "relayd.toml")
        closed.chmod(0o700)
    denied = "this file cannot be read: Permission denied."
    assert [(p.where, p.message) for p in seen.problems] == [("secret", denied), ("closed", denied)]
