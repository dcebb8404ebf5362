"""The admin socket as a file: its permissions, its peers, and the reason why a user may not connect."""

from __future__ import annotations

import fcntl
import grp
import os
import pwd
import shlex
import socket
import stat
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from relayd.state.records import Peer

# unix(7): sun_path has room for 108 bytes, the last of them zero.
_MAX_PATH_BYTES = 107
_BACKLOG = 128
_OTHERS_MAY_WRITE = 0o022
# unix(7): struct ucred is pid, uid, gid.
_UCRED = struct.Struct("iII")
# proc(5): the kernel's value for a process that no login began.
_NO_LOGIN_UID = 0xFFFFFFFF


class AdminSocketError(Exception):
    """The admin socket can't be opened; the text says where, why and what to do."""


class AdminSocket:
    """A listening Unix socket that removes its file when it is closed, if the file is still its own."""

    def __init__(self, path: Path, listening: socket.socket) -> None:
        self.path = path
        self.socket = listening
        self._identity = _identity(path)

    def close(self) -> None:
        """Stop listening and remove the file; a second call does nothing."""
        if self.socket.fileno() < 0:
            return
        # The file first: as long as a client can find it, it can connect.
        if _identity(self.path) == self._identity:
            self.path.unlink(missing_ok=True)
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_admin_socket(path: Path, *, group: str, state_dir: Path) -> AdminSocket:
    """Listen at `path`, mode 0600 in a 0700 directory; with a group, 0660 in 0750.

    A file left behind by a daemon that died is replaced; the socket of a living daemon is not.

    Args:
        path: of the socket.
        group: name of the Unix group that may connect too; empty for none.
        state_dir: the one directory that is made private without asking.

    Raises:
        AdminSocketError: a sentence with what to do.
    """
    length = len(os.fsencode(path))
    if length > _MAX_PATH_BYTES:
        raise AdminSocketError(
            f"The path of the admin socket has {length} bytes, but Unix allows {_MAX_PATH_BYTES}: {path}. "
            "Set admin.socket to a shorter one, such as /run/relayd/admin.sock."
        )
    try:
        gid = grp.getgrnam(group).gr_gid if group else None
    except KeyError as error:
        raise AdminSocketError(f"admin.group is {group!r}, but this machine has no such group.") from error
    try:
        _make_private(path, gid, state_dir)
        with _directory_lock(path.parent):
            _remove_stale(path)
            return AdminSocket(path, _listen(path, gid))
    except OSError as error:
        raise AdminSocketError(
            f"The admin socket {path} can't be opened: {error.strerror or error}. "
            "Give relayd's user the directory, or set admin.socket to a path in another one."
        ) from error


def _make_private(path: Path, gid: int | None, state_dir: Path) -> None:
    directory = path.parent
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = directory.stat()
    mode = stat.S_IMODE(info.st_mode)
    wanted = 0o700 if gid is None else 0o750
    if info.st_uid != os.geteuid():
        raise AdminSocketError(
            f"The directory {directory} of the admin socket belongs to another user (uid {info.st_uid}), who "
            "could replace the socket. Set admin.socket to a path in a directory of relayd's user."
        )
    if mode & ~wanted:
        holds_only_the_socket = all(entry == path for entry in directory.iterdir())
        is_ours = holds_only_the_socket or directory.resolve() == state_dir.resolve()
        if mode & _OTHERS_MAY_WRITE or not is_ours:
            raise AdminSocketError(
                f"The directory {directory} of the admin socket is open to others (mode {mode:04o}). "
                f"Give the socket a directory of its own: set admin.socket to {directory}/relayd/admin.sock"
            )
    if gid is not None and info.st_gid != gid:
        os.chown(directory, -1, gid)
    if mode != wanted:
        directory.chmod(wanted)


@contextmanager
def _directory_lock(directory: Path) -> Iterator[None]:
    """Hold a lock on the directory, so that two starting daemons do not both replace a stale socket."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _remove_stale(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise AdminSocketError(f"{path} is not a socket, and the admin socket must go there; move it away.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # Non-blocking: a living daemon whose backlog is full answers EAGAIN instead of making us wait.
        probe.setblocking(False)  # noqa: FBT003 - the standard library's signature
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except FileNotFoundError:
            return
        except BlockingIOError:
            pass
    raise AdminSocketError(
        f"Another relayd already serves the admin socket {path}. Stop it first, or give this one "
        "a state_dir (and admin.socket) of its own."
    )


def _listen(path: Path, gid: int | None) -> socket.socket:
    # Under a name of one byte, which fits wherever `path` does, until connections are accepted: a client
    # that finds the socket at its path can connect.
    unready = path.with_name("+")
    unready.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.setblocking(False)  # noqa: FBT003 - as above
        # bind(2) makes the file with this mask: there is no instant at which others could connect.
        before = os.umask(0o177)
        try:
            listening.bind(str(unready))
        finally:
            os.umask(before)
        if gid is not None:
            # A service that runs as this group already may be forbidden to change owners at all.
            if unready.stat().st_gid != gid:
                os.chown(unready, -1, gid)
            unready.chmod(0o660)
        listening.listen(_BACKLOG)
        unready.rename(path)
    except BaseException:
        listening.close()
        raise
    return listening


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        info = path.lstat()
    except FileNotFoundError:
        return None
    return info.st_dev, info.st_ino


def identify_peer(connection: socket.socket, proc: Path = Path("/proc")) -> Peer:
    """Return the process that connected and its user's login name. May block on the user database.

    If the kernel's audit says that another user logged in and became this one (sudo, su), the name
    has both: `root (alice)`.

    Raises:
        OSError: the connection is closed.
    """
    option = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _gid = _UCRED.unpack(option)
    login = _user_name(uid)
    login_uid = _login_uid(proc / str(pid) / "loginuid")
    if login_uid is not None and login_uid != uid:
        login = f"{login} ({_user_name(login_uid)})"
    return Peer(uid, pid, login)


def _login_uid(file: Path) -> int | None:
    try:
        uid = int(file.read_text())
    except (OSError, ValueError):
        return None
    return None if uid == _NO_LOGIN_UID else uid


def explain_denial(path: Path) -> str:
    """Say why this user may not use the socket: which path, which permission, and the command that helps."""
    user = _user_name(os.geteuid())
    you = f"You are {user} (uid {os.geteuid()})"
    barrier = _first_barrier(path)
    what, needed = ("use", "read and write") if barrier == path else ("enter", "search (x)")
    try:
        info = barrier.stat()
    except OSError as error:
        return f"{you}, and {barrier} can't be looked at: {error.strerror}."
    owner, group, mode = _user_name(info.st_uid), _group_name(info.st_gid), stat.S_IMODE(info.st_mode)
    reason = (
        f"{you}, and may not {what} {barrier}: {needed} permission is missing "
        f"(owner {owner}, group {group}, mode {mode:04o})."
    )
    # The system looks at one class alone: an owner has no use of what the group may do.
    if info.st_uid == os.geteuid():
        right = "u+rw" if barrier == path else "u+x"
        return f"{reason} It is yours: chmod {right} {shlex.quote(str(barrier))}"
    enough = stat.S_IRGRP | stat.S_IWGRP if barrier == path else stat.S_IXGRP
    if mode & enough == enough:
        return f"{reason} Join the group and log in again: sudo usermod -aG {group} {user}"
    return (
        f"{reason} Act as the owner: {_as_user(owner, path)} -- or set admin.group in relayd.toml, "
        f"restart relayd, and join that group: sudo usermod -aG GROUP {user}"
    )


def _as_user(user: str, path: Path) -> str:
    """Return the running command as another user would type it; sudo keeps neither environment nor PATH."""
    program = Path(sys.argv[0]).absolute()
    command = [str(program)]
    if program.name == "__main__.py":
        command = [sys.executable, "-m", program.parent.name]
    arguments = sys.argv[1:]
    if "--socket" not in arguments:
        arguments += ["--socket", str(path)]
    return f"sudo -u {user} {shlex.join([*command, *arguments])}"


def _first_barrier(path: Path) -> Path:
    """Return the first directory on the way that can't be entered, else the path itself."""
    parents = reversed(path.absolute().parents)
    return next((directory for directory in parents if not os.access(directory, os.X_OK)), path)


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
