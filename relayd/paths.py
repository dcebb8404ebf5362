"""Where relayd keeps its files unless the configuration names another place."""

from __future__ import annotations

import os
import pwd
from collections.abc import Mapping
from pathlib import Path


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
