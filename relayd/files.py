"""Where relayd keeps its files unless it is told another place, and how small ones are written."""

from __future__ import annotations

import contextlib
import os
import pwd
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path

SERVICE_DIRS = (Path("/run/relayd"), Path("/var/lib/relayd"))
"""Where systemd's `RuntimeDirectory=relayd` and `StateDirectory=relayd` are."""
DATABASE = "relayd.db"
SOCKET = "admin.sock"


def home_dir(env: Mapping[str, str]) -> Path:
    """Return `$HOME`, else the home directory in the user database, as in a service or a cron job."""
    home = Path(env.get("HOME", ""))
    if home.is_absolute():
        return home
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return Path("/")


def default_state_dir(env: Mapping[str, str]) -> tuple[Path, str]:
    """Return the state directory of this environment, and the variable that decided it.

    `$STATE_DIRECTORY` (systemd.exec(5)) may list several directories: the first is the service's own.
    A relative `$XDG_STATE_HOME` is ignored, as the XDG Base Directory Specification asks.
    """
    service = Path(env.get("STATE_DIRECTORY", "").split(":")[0])
    if service.is_absolute():
        return service, "STATE_DIRECTORY"
    xdg = Path(env.get("XDG_STATE_HOME", ""))
    if xdg.is_absolute():
        return xdg / "relayd", "XDG_STATE_HOME"
    return home_dir(env) / ".local/state/relayd", "HOME"


def demo_state_dir(state_dir: Path) -> Path:
    """Return the state directory of a demo, whose keys must never open a real relay."""
    return state_dir.with_name("relayd-demo")


def write_file(path: Path, text: str, *, mode: int) -> None:
    """Replace a file in one step, with its mode from the first instant.

    A symbolic link in its place is replaced, not followed. The directory must exist. Raises OSError.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            os.fchmod(descriptor, mode)  # whatever the umask
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        part.replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            part.unlink()
        raise


def state_dir(env: Mapping[str, str]) -> Path:
    """Return `$RELAYD_STATE_DIR`, else the default of this environment."""
    named = env.get("RELAYD_STATE_DIR")
    return Path(named).expanduser() if named else default_state_dir(env)[0]


def socket_path(
    env: Mapping[str, str], given: str | None = None, *, services: Sequence[Path] = SERVICE_DIRS
) -> Path:
    """Return the admin socket's path: as given, else `$RELAYD_ADMIN__SOCKET`, else in the state directory.

    If the environment names none and the user has no daemon of their own, it is the service's, or a demo's.
    """
    named = given or env.get("RELAYD_ADMIN__SOCKET")
    if named:
        return Path(named).expanduser()
    own = state_dir(env) / SOCKET
    is_chosen = env.get("RELAYD_STATE_DIR") or env.get("STATE_DIRECTORY")
    if is_chosen or _exists(own):
        return own
    # The service's socket itself may be out of sight: then the answer says which permission is missing.
    others = [service / SOCKET for service in services if _exists(service)]
    demo = demo_state_dir(own.parent) / SOCKET
    return next(iter(others), demo if _exists(demo) else own)


def database_path(env: Mapping[str, str], socket: Path, *, services: Sequence[Path] = SERVICE_DIRS) -> Path:
    """Return the path of the database of the daemon behind this socket: never that of another daemon.

    It is beside the socket. If the socket has a directory of its own, the database is in the service's state
    directory, or in the one that the environment names together with this socket.
    """
    places = [socket.parent / DATABASE]
    if socket.parent in services:
        places += [service / DATABASE for service in services]
    named = env.get("RELAYD_STATE_DIR")
    if named and env.get("RELAYD_ADMIN__SOCKET") and socket == socket_path(env):
        places.append(Path(named).expanduser() / DATABASE)
    return next(filter(_exists, places), places[0])


def _exists(path: Path) -> bool:
    """Return whether the path exists and may be seen."""
    try:
        return path.exists()
    except OSError:
        return False
