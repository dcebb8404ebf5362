"""What `init` leaves behind: whole, private files, units that fit the machine, commands that start them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from relayd.files import write_file
from relayd.init.install import (
    InitError,
    SystemInstall,
    keep_old,
    program,
    refuse_hidden,
    run_all,
)


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
    for number, name in enumerate(("relayd.toml.old", "relayd.toml.old1", "relayd.toml.old2")):
        path.write_text(str(number))
        assert keep_old(path) == tmp_path / name
        assert (tmp_path / name).read_text() == str(number)


def _image(root: Path) -> SystemInstall:
    return SystemInstall(root, Path("/usr/local/bin/relayd"))


def test_the_units_name_the_program_and_the_address(tmp_path: Path) -> None:
    """They name where the program is and where the socket listens; nothing of the shipped values stays."""
    written = _image(tmp_path).unit_files("::1", 4000)
    units = tmp_path / "etc/systemd/system"
    services = [units / "relayd.service", units / "relayd@.service"]
    sysusers = tmp_path / "etc/sysusers.d/relayd.conf"
    assert set(written) == {sysusers, units / "relayd.socket", *services}
    assert "ListenStream=[::1]:4000\n" in written[units / "relayd.socket"]
    for path in services:
        assert "ExecStart=/usr/local/bin/relayd serve" in written[path]
        assert "/opt/relayd/" not in written[path]
    assert written[sysusers] == "g relayd-admin - -\n"


def test_a_command_that_fails_is_told_in_its_own_words() -> None:
    """What was run, what it said, where to look."""
    with pytest.raises(InitError, match=r"ls /nowhere-at-all failed: .*No such file.*journalctl"):
        run_all([["ls", "/nowhere-at-all"]])
    with pytest.raises(InitError, match="no-such-program failed"):
        run_all([["no-such-program"]])


def test_a_link_that_leads_to_this_program_is_what_the_service_runs(tmp_path: Path) -> None:
    """So that the unit stays right when the link moves to the next release."""
    link = tmp_path / "relayd"
    link.symlink_to(Path(sys.prefix) / "bin" / "relayd")
    assert program(str(link)) == link
    assert program("/some/other/relayd") == Path(sys.prefix) / "bin" / "relayd"


def test_a_program_in_a_home_is_refused_with_the_way_out(tmp_path: Path) -> None:
    """A service with ProtectHome could not see it; this is said before, not found in the journal."""
    link = tmp_path / "relayd"
    link.symlink_to("/root/venv/bin/relayd")
    said = r"relayd is in .*/bin, which a service cannot see.*scripts/install"
    for hidden in (Path("/home/someone/.local/bin/relayd"), link):
        with pytest.raises(InitError, match=said):
            refuse_hidden(hidden)
    refuse_hidden(Path("/usr/local/bin/relayd"))
