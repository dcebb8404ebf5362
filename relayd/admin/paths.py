"""Where the daemon's socket and database are, by the rules of its configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from relayd.admin.schema import EngineKind, Status
from relayd.paths import default_state_dir, demo_state_dir

SERVICE_DIRS = (Path("/run/relayd"), Path("/var/lib/relayd"))
"""Where systemd's `RuntimeDirectory=relayd` and `StateDirectory=relayd` are."""
DATABASE = "relayd.db"
SOCKET = "admin.sock"


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


def known_database(status: Status) -> Path | None:
    """Return the path of the database of the daemon that told this status; None if it is a server."""
    return Path(status.state_dir) / DATABASE if status.engine.kind is EngineKind.SQLITE else None


def _exists(path: Path) -> bool:
    """Return whether the path exists and may be seen."""
    try:
        return path.exists()
    except OSError:
        return False
