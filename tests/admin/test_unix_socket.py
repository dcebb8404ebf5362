"""The admin socket: no other user can reach it, and no other daemon steals it."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from relayd.admin.unix_socket import AdminSocket, AdminSocketError, identify_peer, open_admin_socket

_NOBODY = 65534
_AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")


def _open(home: Path, group: str = "") -> AdminSocket:
    return open_admin_socket(home / "state" / "admin.sock", group=group, state_dir=home / "state")


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_socket_is_0600_in_a_0700_directory_under_any_umask(tmp_path: Path) -> None:
    """The modes do not depend on the umask, and the umask is as before afterwards."""
    before = os.umask(0)
    try:
        with _open(tmp_path) as admin_socket:
            assert (_mode(admin_socket.path), _mode(admin_socket.path.parent)) == (0o600, 0o700)
        assert os.umask(0) == 0
    finally:
        os.umask(before)


def test_a_group_opens_the_directory_and_the_socket_to_it_alone(tmp_path: Path) -> None:
    """With `admin.group` the directory is 0750 and the socket 0660, both of that group."""
    gid = os.getgid()
    with _open(tmp_path, group=grp.getgrgid(gid).gr_name) as admin_socket:
        assert (_mode(admin_socket.path), _mode(admin_socket.path.parent)) == (0o660, 0o750)
        assert admin_socket.path.stat().st_gid == admin_socket.path.parent.stat().st_gid == gid


def test_an_unknown_group_is_named(tmp_path: Path) -> None:
    """A group that the machine does not have stops the start in words."""
    with pytest.raises(AdminSocketError, match="no-such-group"):
        _open(tmp_path, group="no-such-group")


def test_the_state_directory_is_closed_to_others(tmp_path: Path) -> None:
    """A state directory that others may read becomes 0700."""
    (tmp_path / "state").mkdir(mode=0o755)
    with _open(tmp_path) as admin_socket:
        assert _mode(admin_socket.path.parent) == 0o700


def test_a_directory_that_holds_other_things_is_not_closed_but_refused(tmp_path: Path) -> None:
    """Closing somebody's home would surprise: the sentence names a directory to use instead."""
    shared = tmp_path / "shared"
    shared.mkdir(mode=0o755)
    (shared / "page.html").touch()
    with pytest.raises(AdminSocketError, match=rf"set admin\.socket to {shared}/relayd/"):
        open_admin_socket(shared / "admin.sock", group="", state_dir=tmp_path / "state")
    assert _mode(shared) == 0o755


def test_a_directory_that_others_may_write_is_refused(tmp_path: Path) -> None:
    """There the socket could be replaced, or was laid out as a trap."""
    (tmp_path / "state").mkdir()
    (tmp_path / "state").chmod(0o1777)
    with pytest.raises(AdminSocketError, match="open to others") as refused:
        _open(tmp_path)
    assert "chmod" not in str(refused.value)


@_AS_ROOT
def test_a_directory_of_another_user_is_refused(tmp_path: Path) -> None:
    """Its owner could put a socket of their own in the place of the daemon's, whatever its mode."""
    (tmp_path / "state").mkdir(mode=0o700)
    os.chown(tmp_path / "state", _NOBODY, _NOBODY)
    with pytest.raises(AdminSocketError, match=rf"belongs to another user \(uid {_NOBODY}\)"):
        _open(tmp_path)


def test_a_path_too_long_for_a_socket_is_said_in_words(tmp_path: Path) -> None:
    """The sentence has the length, the limit and the setting to change."""
    long = tmp_path / ("d" * 120) / "admin.sock"
    with pytest.raises(AdminSocketError, match=r"allows 107.*admin\.socket"):
        open_admin_socket(long, group="", state_dir=tmp_path)


def test_a_socket_left_by_a_dead_daemon_is_replaced(tmp_path: Path) -> None:
    """No process answers there, so it is free."""
    (tmp_path / "state").mkdir(mode=0o700)
    path = tmp_path / "state" / "admin.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with _open(tmp_path) as admin_socket, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(admin_socket.path))


def test_a_client_that_finds_the_socket_can_connect(tmp_path: Path) -> None:
    """The file is there no sooner than connections are accepted, at any of 300 starts."""
    path = tmp_path / "state" / "admin.sock"
    refused: list[OSError] = []

    def connect_at_once() -> None:
        with socket.socket(socket.AF_UNIX) as client:
            while not path.exists():
                pass
            try:
                client.connect(str(path))
            except OSError as error:
                refused.append(error)

    for _ in range(300):
        client = threading.Thread(target=connect_at_once)
        client.start()
        with _open(tmp_path):
            client.join()
    assert not refused


def test_a_living_daemons_socket_is_not_stolen(tmp_path: Path) -> None:
    """The second start is refused in words, and the first one's socket still works."""
    with _open(tmp_path) as first:
        with pytest.raises(AdminSocketError, match="already serves"):
            _open(tmp_path)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(first.path))


def test_a_daemon_whose_backlog_is_full_is_alive_too(tmp_path: Path) -> None:
    """A socket that can't be connected to at once is not taken for stale."""
    (tmp_path / "state").mkdir(mode=0o700)
    path = tmp_path / "state" / "admin.sock"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(path))
        busy.listen(0)
        waiting.setblocking(False)  # noqa: FBT003 - the standard library's signature
        waiting.connect(str(path))
        with pytest.raises(AdminSocketError, match="already serves"):
            _open(tmp_path)


def test_something_else_in_its_place_is_left_alone(tmp_path: Path) -> None:
    """A file or a symbolic link at the socket's path is neither followed nor removed."""
    (tmp_path / "state").mkdir(mode=0o700)
    path = tmp_path / "state" / "admin.sock"
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(AdminSocketError, match="is not a socket"):
        _open(tmp_path)
    assert path.is_symlink()


def test_closing_removes_the_socket_only_while_it_is_its_own(tmp_path: Path) -> None:
    """A socket that another daemon has put in its place stays."""
    admin_socket = _open(tmp_path)
    admin_socket.path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(admin_socket.path))
        admin_socket.close()
        assert admin_socket.path.is_socket()
    admin_socket.path.unlink()
    with _open(tmp_path) as again:
        path = again.path
    assert not path.exists()


def test_of_many_daemons_that_start_at_once_one_gets_the_socket(tmp_path: Path) -> None:
    """All find the same stale socket; one replaces it, and the others are told that it is alive."""
    (tmp_path / "state").mkdir(mode=0o700)
    path = tmp_path / "state" / "admin.sock"
    for _ in range(20):
        with socket.socket(socket.AF_UNIX) as dead:
            path.unlink(missing_ok=True)
            dead.bind(str(path))
        doors, refused, ready = [], [], threading.Barrier(4)

        def start() -> None:
            ready.wait()  # noqa: B023 - the threads end within the turn
            try:
                doors.append(_open(tmp_path))  # noqa: B023
            except AdminSocketError as error:
                refused.append(error)  # noqa: B023

        threads = [threading.Thread(target=start) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(doors), len(refused)) == (1, 3)
        doors[0].close()


@_AS_ROOT
@pytest.mark.parametrize("name", ["admin.sock", "relayd.db", "first-key", ""])
def test_another_user_can_neither_reach_nor_read_what_is_in_the_directory(name: str, tmp_path: Path) -> None:
    """Not the socket, the database, the first key, or their names; tried as that user."""
    # pytest's own directories are 0700: the way to ours must not be what stops the other user.
    base = Path(tempfile.gettempdir())
    for parent in (tmp_path, *tmp_path.parents):
        if base in parent.parents:
            parent.chmod(0o755)
    with _open(tmp_path) as admin_socket:
        for file in ("relayd.db", "first-key"):
            (admin_socket.path.parent / file).touch(mode=0o644)
        tries = (
            "import os, socket, sys\n"
            "path, nobody = sys.argv[1], int(sys.argv[2])\n"
            "os.setgroups([]); os.setgid(nobody); os.setuid(nobody)\n"
            "ways = [lambda: open(path), lambda: os.listdir(path),\n"
            "        lambda: socket.socket(socket.AF_UNIX).connect(path)]\n"
            "for way in ways:\n"
            "    try: way()\n"
            "    except PermissionError: continue\n"
            "    except OSError as error: sys.exit(f'stopped by something else: {error}')\n"
            "    sys.exit('reached it')\n"
        )
        target = admin_socket.path.parent / name
        done = subprocess.run(
            [sys.executable, "-I", "-c", tries, str(target), str(_NOBODY)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            cwd="/",
        )
    assert (done.returncode, done.stderr) == (0, "")


def _login(proc: Path, login_uid: str) -> str:
    """Return the login of a peer whose process file system says this of it."""
    (proc / str(os.getpid())).mkdir()
    (proc / str(os.getpid()) / "loginuid").write_text(login_uid)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        return identify_peer(ours, proc).login


def test_a_peer_is_the_process_that_connected() -> None:
    """Process and user id come from the kernel, the name from the user database."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        peer = identify_peer(ours)
    assert (peer.uid, peer.pid) == (os.getuid(), os.getpid())
    assert peer.login.startswith(pwd.getpwuid(os.getuid()).pw_name)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root is a user that others become")
@pytest.mark.parametrize(("uid", "name"), [("65534", "nobody"), ("3999999999", "3999999999")])
def test_a_user_who_became_root_is_named_beside_it(uid: str, name: str, tmp_path: Path) -> None:
    """After sudo the audit says who logged in, by number if the number has no name."""
    assert _login(tmp_path, uid) == f"root ({name})"


@pytest.mark.parametrize("text", ["4294967295", "", "x", str(os.getuid())])
def test_no_login_and_an_unreadable_one_are_left_out(text: str, tmp_path: Path) -> None:
    """A process that no login began, as a cron job's, is just its user."""
    assert _login(tmp_path, text) == pwd.getpwuid(os.getuid()).pw_name
