"""Puts relayd in place as a systemd service: its group, its units, and their start."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from relayd.init.files import PUBLIC_MODE, write

ADMIN_GROUP = "relayd-admin"

_UNITS = Path(__file__).parents[1] / "deploy"
_NAMES = ("relayd.socket", "relayd.service", "relayd@.service")
_PROGRAM = "/opt/relayd/current/bin/relayd"
"""How the units name the program; replaced by where it is."""
_LISTEN = "ListenStream=127.0.0.1:3666"
# What ProtectHome=yes hides from the service.
_HIDDEN = ("/home/", "/root/", "/run/user/")


class ServiceError(Exception):
    """relayd can't be put in place as a service; the text says why and what to do."""


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
        """A path of the machine, seen from here."""
        return self.root / path.lstrip("/")


def program(argv0: str) -> Path:
    """What the service is to run: this program, under the name by which it is called.

    Args:
        argv0: how this process was called.
    """
    own = Path(sys.prefix) / "bin" / "relayd"
    called = Path(shutil.which(argv0) or own)
    # A link in /usr/local/bin stays right when the release behind it changes.
    return called if called.resolve() == own.resolve() else own


def refuse_hidden(chosen: Path) -> None:
    """Refuse a program that the service could not see.

    Raises:
        ServiceError: it is in somebody's home.
    """
    if str(chosen.resolve()).startswith(_HIDDEN):
        raise ServiceError(
            f"relayd is in {chosen.resolve().parent}, which a service can't see. Install it for the whole "
            "machine first: sudo scripts/install in its clone, or for a wheel sudo env PIPX_HOME=/opt/pipx "
            "PIPX_BIN_DIR=/usr/local/bin pipx install relayd-….whl"
        )


def install(machine: Machine, *, host: str, port: int) -> list[Path]:
    """Write the group's and the units' files; returns them.

    Args:
        machine: where to.
        host: the address that the socket listens on.
        port: its port.

    Raises:
        OSError: a file can't be written.
    """
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    files = {machine.inside("/etc/sysusers.d/relayd.conf"): f"g {ADMIN_GROUP} - -\n"}
    for name in _NAMES:
        unit = (_UNITS / name).read_text(encoding="utf-8")
        unit = unit.replace(_PROGRAM, str(machine.program)).replace(_LISTEN, f"ListenStream={address}")
        files[machine.inside("/etc/systemd/system") / name] = unit
    for path, text in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write(path, text, mode=PUBLIC_MODE)
    return list(files)


def commands(machine: Machine) -> list[list[str]]:
    """What makes the service start, now and at every boot; on an image, at its first boot."""
    if not machine.is_live:
        return [["systemctl", f"--root={machine.root}", "enable", "relayd.socket", "relayd.service"]]
    return [
        ["systemd-sysusers", "/etc/sysusers.d/relayd.conf"],
        ["systemctl", "daemon-reload"],
        ["systemctl", "enable", "relayd.socket", "relayd.service"],
        ["systemctl", "restart", "relayd.socket", "relayd.service"],
    ]


def carry_out(wanted: Sequence[Sequence[str]]) -> None:
    """Run these commands in order.

    Raises:
        ServiceError: one of them failed, in its own words.
    """
    for words in wanted:
        try:
            done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)  # noqa: S603 - fixed words
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ServiceError(f"{' '.join(words)} failed: {error}") from error
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip() or f"status {done.returncode}"
            raise ServiceError(f"{' '.join(words)} failed: {said} (see: journalctl -u relayd -n 20)")
