"""relayd as a systemd service: its group, its units, and the commands that start them."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from relayd.init.console import InitError

ADMIN_GROUP = "relayd-admin"

_UNITS = Path(__file__).parents[1] / "deploy"
# What the shipped units say, to be replaced.
_PROGRAM = "/opt/relayd/current/bin/relayd"
_LISTEN = "ListenStream=127.0.0.1:3666"
# How relayd@.service, one of several instances, differs from relayd.service: `relayd@team` reads
# /etc/relayd/team.toml, and listens where that says instead of on a socket unit.
_INSTANCE = {
    "for chat completions": "for chat completions, %i",
    "Requires=relayd.socket\nAfter=network-online.target relayd.socket\n": "After=network-online.target\n",
    "/etc/relayd/relayd.toml": "/etc/relayd/%i.toml",
    "/etc/relayd/openai_api_key": "/etc/relayd/%i.openai_api_key",
    "Directory=relayd\n": "Directory=relayd-%i\n",
    "/run/relayd/": "/run/relayd-%i/",
}
# What ProtectHome=yes hides from the service.
_HIDDEN = ("/home/", "/root/", "/run/user/")
_COMMAND_TIMEOUT_S = 120


@dataclass(frozen=True, slots=True)
class Machine:
    """Where the service goes.

    Attributes:
        root: `/`, or the directory of an image that is being made, where nothing is started.
        program: what the service runs.
    """

    root: Path
    program: Path

    @property
    def is_live(self) -> bool:
        """Whether systemd runs here, and can start the service now."""
        return self.root == Path("/") and Path("/run/systemd/system").is_dir()

    def inside(self, path: str) -> Path:
        """Return a path of the machine as seen from here."""
        return self.root / path.lstrip("/")


def program(argv0: str) -> Path:
    """Return the program that the service is to run: this one, by the name that it was called by."""
    own = Path(sys.prefix) / "bin" / "relayd"
    called = Path(shutil.which(argv0) or own)
    # A link in /usr/local/bin stays right when the release behind it changes.
    return called if called.resolve() == own.resolve() else own


def refuse_hidden(chosen: Path) -> None:
    """Raise InitError if the program is in a home directory, where the service cannot see it."""
    if str(chosen.resolve()).startswith(_HIDDEN):
        raise InitError(
            f"relayd is in {chosen.resolve().parent}, which a service cannot see. Install it for the whole "
            "machine first: sudo scripts/install in its clone, or for a wheel sudo env PIPX_HOME=/opt/pipx "
            "PIPX_BIN_DIR=/usr/local/bin pipx install relayd-….whl"
        )


def files(machine: Machine, *, host: str, port: int) -> dict[Path, str]:
    """Return the files of the group and the units, with this address in the socket unit."""
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    socket_unit = (_UNITS / "relayd.socket").read_text(encoding="utf-8")
    service_unit = (_UNITS / "relayd.service").read_text(encoding="utf-8")
    service_unit = instance_unit = service_unit.replace(_PROGRAM, str(machine.program))
    for alone, instance in _INSTANCE.items():
        instance_unit = instance_unit.replace(alone, instance)
    units = machine.inside("/etc/systemd/system")
    return {
        machine.inside("/etc/sysusers.d/relayd.conf"): f"g {ADMIN_GROUP} - -\n",
        units / "relayd.socket": socket_unit.replace(_LISTEN, f"ListenStream={address}"),
        units / "relayd.service": service_unit,
        units / "relayd@.service": instance_unit,
    }


def commands(machine: Machine) -> list[list[str]]:
    """Return what starts the service, now and at every boot; for an image, at its first boot."""
    if not machine.is_live:
        return [["systemctl", f"--root={machine.root}", "enable", "relayd.socket", "relayd.service"]]
    return [
        ["systemd-sysusers", "/etc/sysusers.d/relayd.conf"],
        ["systemctl", "daemon-reload"],
        ["systemctl", "enable", "relayd.socket", "relayd.service"],
        ["systemctl", "restart", "relayd.socket", "relayd.service"],
    ]


def run_all(commands: Sequence[Sequence[str]]) -> None:
    """Run these commands in order. Raises InitError with the words of the one that fails."""
    for words in commands:
        try:
            done = subprocess.run(  # noqa: S603 - fixed words
                words, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise InitError(f"{' '.join(words)} failed: {error}") from error
        if done.returncode != 0:
            reason = (done.stderr or done.stdout).strip() or f"status {done.returncode}"
            raise InitError(f"{' '.join(words)} failed: {reason} (see: journalctl -u relayd -n 20)")
