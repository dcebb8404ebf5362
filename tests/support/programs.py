"""The programs of Debian that tests use; a test without its program is skipped."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

_POSTGRES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
PATH = ":".join([os.environ["PATH"], "/usr/sbin", *map(str, reversed(_POSTGRES))])
"""Where they are looked for: some are not on the path of a user."""
PACKAGES = {
    "/usr/lib/cni/dnsname": "golang-github-containernetworking-plugin-dnsname",
    "caddy": "caddy",
    "chromium": "chromium",
    "crun": "crun",
    "curl": "curl",
    "debootstrap": "debootstrap",
    "docker-compose": "docker-compose",
    "fish": "fish",
    "git": "git",
    "haproxy": "haproxy",
    "ip": "iproute2",
    "iptables": "iptables",
    "jq": "jq",
    "nginx": "nginx",
    "node": "nodejs",
    "openssl": "openssl",
    "podman": "podman",
    "postgres": "postgresql",
    "ssh": "openssh-client",
    "sshd": "openssh-server",
    "strace": "strace",
    "systemctl": "systemd",
    "systemd-analyze": "systemd",
    "tmux": "tmux",
    "zsh": "zsh",
}
"""A program, and the package that has it."""


def reason(*programs: str) -> str:
    """Return why a test cannot run: the missing programs and their packages; empty if all are there."""
    missing = [program for program in programs if shutil.which(program, path=PATH) is None]
    packages = " ".join(dict.fromkeys(PACKAGES[program] for program in missing))
    return f"needs {' and '.join(missing)}; on Debian: apt install {packages}" if missing else ""


def require(*programs: str) -> None:
    """Skip the test that calls this if a program is missing."""
    if why := reason(*programs):
        pytest.skip(why)


def needs(*programs: str) -> pytest.MarkDecorator:
    """Return a mark that skips a test if a program is missing."""
    return pytest.mark.skipif(bool(why := reason(*programs)), reason=why)
