"""Files that `init` writes: whole, and private from their first instant."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from relayd.files import write_file
from relayd.init.install import keep_old


def test_a_secret_is_private_and_whole_whatever_stood_there(tmp_path: Path) -> None:
    """Mode 0600 under any umask, over an open file too; nothing is left beside it."""
    path = tmp_path / "key"
    path.write_text("old")
    path.chmod(0o666)
    before = os.umask(0)
    try:
        write_file(path, "new", mode=0o600)
    finally:
        os.umask(before)
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_a_link_in_its_place_is_replaced_not_followed(tmp_path: Path) -> None:
    """What the link leads to stays as it was."""
    target, path = tmp_path / "target", tmp_path / "key"
    target.write_text("precious")
    path.symlink_to(target)
    write_file(path, "new", mode=0o600)
    assert target.read_text() == "precious"
    assert not path.is_symlink()


def test_where_it_cannot_be_put_nothing_is_left(tmp_path: Path) -> None:
    """A directory stands in its place: the error comes through, the half file goes."""
    path = tmp_path / "key"
    path.mkdir()
    (path / "x").touch()
    with pytest.raises(OSError, match="directory"):
        write_file(path, "new", mode=0o600)
    assert list(tmp_path.iterdir()) == [path]


def test_every_old_file_is_kept_under_a_name_of_its_own(tmp_path: Path) -> None:
    """A second replacement does not cover the first one's copy."""
    path = tmp_path / "relayd.toml"
    assert keep_old(path) is None
    for number, name in enumerate(("relayd.toml.old", "relayd.toml.old2", "relayd.toml.old3")):
        path.write_text(str(number))
        assert keep_old(path) == tmp_path / name
        assert (tmp_path / name).read_text() == str(number)
