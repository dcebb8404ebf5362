"""Who is at the other end of a Unix socket, as the kernel tells it."""

from __future__ import annotations

import pwd
import socket
import struct
from functools import partial
from pathlib import Path

from relayd.admin.offload import Offload
from relayd.state.records import Peer

# struct ucred of unix(7): pid, uid, gid.
_UCRED = struct.Struct("iII")
# proc(5): the kernel's value for a process that no login began.
_NO_LOGIN_UID = 0xFFFFFFFF
_MAX_NAMES = 1000


class PeerBook:
    """Knows the login names of those who connect; each is looked up once, because that may block.

    Args:
        threads: where names are looked up.
        proc: the process file system.
    """

    def __init__(self, threads: Offload, proc: Path = Path("/proc")) -> None:
        self._threads = threads
        self._proc = proc
        self._names: dict[int, str] = {}

    async def of(self, connection: socket.socket) -> Peer:
        """The process that connected, with its user's login name.

        Where the kernel's audit says that somebody else logged in and became this user (sudo, su), both
        are named: `root (alice)`.

        Raises:
            OSError: the connection is closed.
        """
        pid, uid = credentials(connection)
        logged_in = _login_uid(self._proc / str(pid) / "loginuid")
        login = await self._name(uid)
        if logged_in is not None and logged_in != uid:
            login = f"{login} ({await self._name(logged_in)})"
        return Peer(uid, pid, login)

    async def _name(self, uid: int) -> str:
        if uid not in self._names:
            if len(self._names) >= _MAX_NAMES:
                self._names.clear()
            self._names[uid] = await self._threads.run(partial(_user_name, uid))
        return self._names[uid]


def credentials(connection: socket.socket) -> tuple[int, int]:
    """Process id and user id of who connected.

    Raises:
        OSError: the connection is closed.
    """
    option = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _gid = _UCRED.unpack(option)
    return pid, uid


def _login_uid(file: Path) -> int | None:
    try:
        uid = int(file.read_text())
    except (OSError, ValueError):
        return None
    return None if uid == _NO_LOGIN_UID else uid


def _user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
