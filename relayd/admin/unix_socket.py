"""The admin socket as a file: a private directory, a mode from its first instant, never stolen."""

from __future__ import annotations

import fcntl
import grp
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

# unix(7): sun_path has room for 108 bytes, the last of them zero.
_MAX_PATH_BYTES = 107
_BACKLOG = 128
_OTHERS_MAY_WRITE = 0o022


class AdminSocketError(Exception):
    """The admin socket can't be opened; the text says where, why and what to do."""


class AdminSocket:
    """A listening Unix socket that removes its file when it is closed, if the file is still its own."""

    def __init__(self, path: Path, listening: socket.socket) -> None:
        self.path = path
        self.socket = listening
        self._identity = _identity(path)

    def close(self) -> None:
        """Stop listening and remove the file; harmless when repeated."""
        if self.socket.fileno() < 0:
            return
        # The file first: whoever finds it can still connect, whoever does not knows that we are gone.
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

    A file left behind by a daemon that died is replaced; one that a daemon answers at is not.

    Args:
        path: of the socket.
        group: name of the Unix group that may connect too; empty for none.
        state_dir: the one directory that is made private without asking.

    Raises:
        AdminSocketError: in words.
    """
    if len(os.fsencode(path)) > _MAX_PATH_BYTES:
        raise AdminSocketError(
            f"The path of the admin socket has {len(os.fsencode(path))} bytes, but Unix allows "
            f"{_MAX_PATH_BYTES}: {path}. Set admin.socket to a shorter one, such as /run/relayd/admin.sock."
        )
    try:
        gid = grp.getgrnam(group).gr_gid if group else -1
    except KeyError as error:
        raise AdminSocketError(f"admin.group is {group!r}, but this machine has no such group.") from error
    try:
        _make_private(path, gid, state_dir)
        with _alone_in(path.parent):
            _remove_stale(path)
            return AdminSocket(path, _listen(path, gid))
    except OSError as error:
        raise AdminSocketError(
            f"The admin socket {path} can't be opened: {error.strerror or error}. "
            "relayd must own its directory, or admin.socket name another."
        ) from error


def _make_private(path: Path, gid: int, state_dir: Path) -> None:
    directory = path.parent
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = directory.stat()
    mode = info.st_mode & 0o777
    wanted = 0o750 if gid >= 0 else 0o700
    if mode & ~wanted:
        alone = all(entry == path for entry in directory.iterdir())
        if mode & _OTHERS_MAY_WRITE or not (alone or directory.resolve() == state_dir.resolve()):
            raise AdminSocketError(
                f"The directory {directory} of the admin socket is open to others (mode {mode:04o}). "
                f"Give the socket a directory of its own with admin.socket, or close this one: "
                f"chmod {wanted:o} {directory}"
            )
    if gid >= 0 and info.st_gid != gid:
        os.chown(directory, -1, gid)
    if mode != wanted:
        directory.chmod(wanted)


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Hold a lock on the directory, so that two starting daemons do not both find a stale socket."""
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
        raise AdminSocketError(
            f"{path} is in the way of the admin socket and no socket itself; move it away."
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        # A daemon whose backlog is full is alive as well: then this says EAGAIN, and does not wait.
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


def _listen(path: Path, gid: int) -> socket.socket:
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listening.setblocking(False)  # noqa: FBT003 - as above
        # bind(2) makes the file with this mask: there is no instant at which others could connect.
        before = os.umask(0o177)
        try:
            listening.bind(str(path))
        finally:
            os.umask(before)
        if gid >= 0:
            # A service whose own group this is may be forbidden to change owners at all.
            if path.stat().st_gid != gid:
                os.chown(path, -1, gid)
            path.chmod(0o660)
        listening.listen(_BACKLOG)
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
