"""The systemd service that reads a relayd.toml: what it gives its daemon, which differs from a shell's."""

from __future__ import annotations

import re
import shlex
import stat
import subprocess
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dotenv import dotenv_values

from relayd.commands.unit_credentials import Credential, unit_credentials
from relayd.config.sources import SECRETS

_SHOWN = (
    *("ExecStart", "Environment", "EnvironmentFiles", "StateDirectory", "WorkingDirectory"),
    *("TriggeredBy", "Listen"),
)
_LISTEN = re.compile(r"\[?([^]]*)\]?:(\d+) \(Stream\)")
_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class InstalledService:
    """What systemd gives the daemon of a unit.

    Attributes:
        unit: `relayd.service`.
        env: its environment, as far as it concerns the configuration.
        cwd: its working directory.
        credentials: where its credentials come from, by their names.
        listening: addresses of the sockets that systemd opens for it.
        hidden: its files of environment variables that this user may not read; `env` is without them.
    """

    unit: str
    env: Mapping[str, str]
    cwd: Path
    credentials: Mapping[str, Credential]
    listening: Sequence[tuple[str, int]]
    hidden: Sequence[Path]


def installed_service(config: Path) -> InstalledService | None:
    """Return the service that reads this file; None if none is installed, or systemd does not run.

    `/etc/relayd/relayd.toml` belongs to relayd.service, `/etc/relayd/team.toml` to relayd@team.service.
    """
    unit = "relayd.service" if config.stem == "relayd" else f"relayd@{config.stem}.service"
    shown = _properties(unit)
    if f" --config {config} " not in "".join(shown["ExecStart"]):
        return None
    env: dict[str, str] = {}
    for name in "".join(shown["StateDirectory"]).split()[:1]:
        env["STATE_DIRECTORY"] = f"/var/lib/{name}"
    for assignment in shlex.split(" ".join(shown["Environment"])):
        name, _, value = assignment.partition("=")
        env[name] = value
    hidden = []
    for file in shown["EnvironmentFiles"]:
        path = Path(file.rpartition(" (")[0])
        try:
            env |= _environment_file(path)
        except PermissionError:
            hidden.append(path)
    sockets = [name for name in "".join(shown["TriggeredBy"]).split() if name.endswith(".socket")]
    return InstalledService(
        unit,
        env,
        Path("".join(shown["WorkingDirectory"]) or "/"),
        unit_credentials(_systemctl("cat", unit), unit.partition("@")[2].removesuffix(".service"), SECRETS),
        [
            (address[1], int(address[2]))
            for name in sockets
            for listen in _properties(name)["Listen"]
            if (address := _LISTEN.fullmatch(listen))
        ],
        hidden,
    )


def _environment_file(path: Path) -> dict[str, str]:
    """Return the variables in a file; none if it is not there. Raises PermissionError."""
    try:
        # Path.is_file() in a directory that is closed to this user: an error in Python 3.11, False in 3.14.
        if not stat.S_ISREG(path.stat().st_mode):
            return {}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    found = dotenv_values(path, interpolate=False)
    return {name: value for name, value in found.items() if value is not None}


def _properties(unit: str) -> Mapping[str, list[str]]:
    """Return the values of each property of a unit; empty if it is not there."""
    values = defaultdict[str, list[str]](list)
    for line in _systemctl("show", unit, f"--property={','.join(_SHOWN)}"):
        name, _, value = line.partition("=")
        values[name].append(value)
    return values


def _systemctl(*words: str) -> list[str]:
    """Return the lines of systemctl's answer; none if it has none."""
    try:
        done = subprocess.run(  # noqa: S603 - fixed words, and a unit's name
            ["systemctl", "--no-pager", *words],  # noqa: S607 - found as the person's shell finds it
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines()
