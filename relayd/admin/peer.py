"""Who is at the other end of a Unix socket, as the kernel tells it."""

from __future__ import annotations

import pwd
import socket
import struct
from pathlib import Path

from relayd.state.records import Peer

# struct ucred of unix(7): pid, uid, gid.
_UCRED = struct.Struct("iII")
# proc(5): the kernel's value for a process that no login began.
_NO_LOGIN_UID = 0xFFFFFFFF


def credentials(connection: socket.socket) -> tuple[int, int]:
    """Process id and user id of who connected.

    Raises:
        OSError: the connection is closed.
    """
    option = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    pid, uid, _gid = _UCRED.unpack(option)
    return pid, uid


def as_peer(pid: int, uid: int, proc: Path = Path("/proc")) -> Peer:
    """The same with the login name. Asks the user database, which may block.

    Where the kernel's audit says that somebody else logged in and became this user (sudo, su), both
    are named: `root (alice)`.
    """
    logged_in = _login_uid(proc / str(pid) / "loginuid")
    login = _name(uid)
    if logged_in is not None and logged_in != uid:
        login = f"{login} ({_name(logged_in)})"
    return Peer(uid, pid, login)


def _login_uid(file: Path) -> int | None:
    try:
        uid = int(file.read_text())
    except (OSError, ValueError):
        return None
    return None if uid == _NO_LOGIN_UID else uid


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
