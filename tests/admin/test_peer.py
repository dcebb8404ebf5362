"""Behaviour of `relayd.admin.peer`: the kernel's word on who connected."""

from __future__ import annotations

import os
import pwd
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from relayd.admin.offload import Offload
from relayd.admin.peer import PeerBook, credentials


@asynccontextmanager
async def _peers(proc: Path) -> AsyncIterator[tuple[PeerBook, socket.socket]]:
    """A book, and a connection whose other end is this process."""
    threads = Offload("peers", 1)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield PeerBook(threads, proc), ours
    await threads.close()


def _log_in(proc: Path, uid: str) -> None:
    (proc / str(os.getpid())).mkdir(exist_ok=True)
    (proc / str(os.getpid()) / "loginuid").write_text(uid)


def test_the_credentials_are_those_of_the_process_that_connected() -> None:
    """Process and user id come from the kernel, not from anything that is sent."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert credentials(ours) == (os.getpid(), os.getuid())


async def test_a_peer_has_its_login_name(tmp_path: Path) -> None:
    """The user id's name in the user database; asked for again, the same."""
    async with _peers(tmp_path) as (book, connection):
        for _ in range(2):
            peer = await book.of(connection)
            assert (peer.uid, peer.pid) == (os.getuid(), os.getpid())
            assert peer.login == pwd.getpwuid(os.getuid()).pw_name


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is somebody whom others become")
@pytest.mark.parametrize(("uid", "named"), [("65534", "nobody"), ("3999999999", "3999999999")])
async def test_whoever_became_root_is_named_beside_it(uid: str, named: str, tmp_path: Path) -> None:
    """After sudo the audit says who logged in, by number where the number has no name."""
    _log_in(tmp_path, uid)
    async with _peers(tmp_path) as (book, connection):
        assert (await book.of(connection)).login == f"root ({named})"


@pytest.mark.parametrize("text", ["4294967295", "", "x", str(os.getuid())])
async def test_no_login_and_an_unreadable_one_are_left_out(text: str, tmp_path: Path) -> None:
    """A process that no login began, as a cron job's, is just its user."""
    _log_in(tmp_path, text)
    async with _peers(tmp_path) as (book, connection):
        assert (await book.of(connection)).login == pwd.getpwuid(os.getuid()).pw_name
