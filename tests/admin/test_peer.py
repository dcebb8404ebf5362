"""Behaviour of `relayd.admin.peer`: the kernel's word on who connected."""

from __future__ import annotations

import os
import pwd
import socket
from pathlib import Path

from relayd.admin.peer import as_peer, credentials


def test_the_credentials_are_those_of_the_process_that_connected() -> None:
    """Process and user id come from the kernel, not from anything that is sent."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert credentials(ours) == (os.getpid(), os.getuid())


def test_a_peer_has_its_login_name(tmp_path: Path) -> None:
    """The user id's name in the user database."""
    peer = as_peer(4242, 0, proc=tmp_path)
    assert (peer.uid, peer.pid, peer.login) == (0, 4242, pwd.getpwuid(0).pw_name)


def test_a_user_without_a_name_is_told_by_number(tmp_path: Path) -> None:
    """Containers often have such users."""
    assert as_peer(1, 3_999_999_999, proc=tmp_path).login == "3999999999"


def test_whoever_became_root_is_named_beside_it(tmp_path: Path) -> None:
    """After sudo the audit says who logged in, as the kernel remembers it."""
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "loginuid").write_text("65534")
    assert as_peer(7, 0, proc=tmp_path).login == f"root ({pwd.getpwuid(65534).pw_name})"


def test_no_login_and_an_unreadable_one_are_left_out(tmp_path: Path) -> None:
    """A process that no login began, as a cron job's, is just its user."""
    for pid, text in ((1, "4294967295"), (2, ""), (3, "x")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "loginuid").write_text(text)
        assert as_peer(pid, 0, proc=tmp_path).login == "root"
