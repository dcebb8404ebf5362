"""OpenSSH's server for one user, reached without a port: ssh starts it itself, as its proxy command."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.support.programs import PATH

_RUN_DIRECTORY = Path("/run/sshd")


class SshServer:
    """A server that knows one key, and an `ssh` for the environment that knows the server.

    Args:
        directory: gets keys, configuration and logs.
        name: what the server is called.
        options: more lines of sshd_config(5).
        is_known: whether its host key is among the known ones.
        passphrase: of the user's key.
        client_options: more lines of ssh_config(5).
    """

    def __init__(
        self,
        directory: Path,
        name: str = "vps1",
        *,
        options: Mapping[str, str] | None = None,
        is_known: bool = True,
        passphrase: str = "",
        client_options: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.log = directory / "sshd.log"
        directory.mkdir()
        if os.geteuid() == 0:
            # The Debian package leaves it to the service, and sshd of root does not start without it.
            _RUN_DIRECTORY.mkdir(mode=0o755, exist_ok=True)
        host_key, user_key = directory / "host", directory / "user"
        _make_key(host_key, "")
        _make_key(user_key, passphrase)
        known = directory / "known"
        if is_known:
            known.write_text(f"{name} {host_key.with_suffix('.pub').read_text()}")
        sshd = {
            "HostKey": host_key,
            "AuthorizedKeysFile": user_key.with_suffix(".pub"),
            "StrictModes": "no",
            "UsePAM": "no",
            "PidFile": "none",
            "PermitRootLogin": "yes",
            "PasswordAuthentication": "no",
            "KbdInteractiveAuthentication": "no",
        }
        server_config = directory / "sshd_config"
        server_config.write_text(_lines({**sshd, **(options or {})}))
        program = shutil.which("sshd", path=PATH)
        ssh = {
            "ProxyCommand": f"{program} -i -f {server_config} -E {self.log}",
            "User": pwd.getpwuid(os.geteuid()).pw_name,
            "IdentityFile": user_key,
            "IdentitiesOnly": "yes",
            "IdentityAgent": "none",
            "UserKnownHostsFile": known,
            "GlobalKnownHostsFile": "none",
            "LogLevel": "ERROR",
        }
        client_config = directory / "ssh_config"
        client_config.write_text(_lines({**ssh, **(client_options or {})}))
        # ssh takes the home directory from the user database, whatever HOME says.
        self.path = f"{directory / 'bin'}:{os.environ['PATH']}"
        wrapper = directory / "bin/ssh"
        wrapper.parent.mkdir()
        wrapper.write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {client_config} "$@"\n')
        wrapper.chmod(0o755)


def _make_key(file: Path, passphrase: str) -> None:
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-C", "", "-f", str(file)], check=True
    )


def _lines(options: Mapping[str, object]) -> str:
    return "".join(f"{name} {value}\n" for name, value in options.items())
