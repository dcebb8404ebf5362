"""Where things are: the admin socket, the database beside it, and what the app remembers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path


def state_dir(env: Mapping[str, str]) -> Path:
    """Where the daemon keeps its state, by CONTRACT section 2."""
    for name in ("RELAYD_STATE_DIR", "STATE_DIRECTORY"):
        if env.get(name):
            return Path(env[name].split(":")[0])
    if env.get("XDG_STATE_HOME"):
        return Path(env["XDG_STATE_HOME"]) / "relayd"
    return Path(env.get("HOME") or Path.home()) / ".local/state/relayd"


def socket_path(env: Mapping[str, str], given: str | None = None) -> Path:
    """The admin socket: as given, else from the environment, else in the state directory."""
    named = given or env.get("RELAYD_ADMIN__SOCKET")
    return Path(named) if named else state_dir(env) / "admin.sock"


def database_path(socket: Path) -> Path:
    """The daemon's database, where it stands beside its socket."""
    return socket.parent / "relayd.db"


def config_dir(env: Mapping[str, str]) -> Path:
    """Where the app remembers layout and filter."""
    base = env.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path(env.get("HOME") or Path.home()) / ".config") / "relayd"
