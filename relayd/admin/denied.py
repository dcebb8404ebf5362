"""Why a user may not use the admin socket, and the command that mends it."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from pathlib import Path

_GROUP_MAY_ENTER = 0o010


def explain(socket: Path) -> str:
    """Name who asks, which path stops them, the permission that is missing, and what to do."""
    uid = os.geteuid()
    who = f"You are {_user(uid)} (uid {uid})"
    barrier = _barrier(socket)
    what, wanted = ("use", "read and write") if barrier == socket else ("enter", "search (x)")
    try:
        info = barrier.stat()
    except OSError as error:
        return f"{who}, and {barrier} can't be looked at: {error.strerror}."
    owner, group, mode = _user(info.st_uid), _group(info.st_gid), stat.S_IMODE(info.st_mode)
    said = (
        f"{who}, and may not {what} {barrier}: {wanted} permission is missing "
        f"(owner {owner}, group {group}, mode {mode:04o})."
    )
    if mode & _GROUP_MAY_ENTER or (barrier == socket and mode & 0o060):
        return f"{said} Join the group and log in again: sudo usermod -aG {group} {_user(uid)}"
    return (
        f"{said} Act as the owner: sudo -u {owner} relayd --help. Or set admin.group in relayd.toml, "
        f"restart relayd, and join that group: sudo usermod -aG GROUP {_user(uid)}"
    )


def _barrier(socket: Path) -> Path:
    """The first directory on the way that can't be entered, else the socket itself."""
    for directory in reversed(socket.absolute().parents):
        if not os.access(directory, os.X_OK):
            return directory
    return socket


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
