"""Installs the peers, pinned, each into its own folder under .bench; says why where one cannot be."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

from benchmark.peers import HOME

_TIMEOUT_S = 1200
PINNED = {
    "litellm": ["litellm[proxy]==1.106.2"],
    "ferrogw": ["ferrogw==1.5.10"],
    # It imports yaml without asking for it.
    "openai-forward": ["openai-forward==0.8.1", "pyyaml==6.0.3"],
}
_PORTKEY = "1.15.2"
_PORTKEY_PACKAGE = {
    "private": True,
    "dependencies": {"@portkey-ai/gateway": _PORTKEY},
    # With later ones every request ends in "TypeError: immutable".
    "overrides": {"@hono/node-server": "1.13.7", "hono": "4.9.7"},
}


class CannotRun(Exception):
    """Why a peer has no figures; one sentence."""


def install(name: str) -> str:
    """Make sure that a peer is there; return its version.

    Raises:
        CannotRun: it cannot be installed here.
    """
    if name == "nginx":
        return _nginx()
    if name == "portkey":
        return _portkey()
    return _from_pypi(name)


def _nginx() -> str:
    if shutil.which("nginx") is None:
        if shutil.which("apt-get") is None or os.geteuid() != 0:
            raise CannotRun("nginx is not installed; on Debian: apt install nginx-light")
        _run(["apt-get", "install", "-y", "-qq", "--no-install-recommends", "nginx-light"])
    said = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr
    return said.strip().rpartition("/")[2]


def _portkey() -> str:
    if shutil.which("npm") is None or shutil.which("node") is None:
        raise CannotRun("Node is not installed; on Debian: apt install nodejs npm")
    folder = HOME / "portkey"
    wanted = json.dumps(_PORTKEY_PACKAGE, indent=1)
    stamp = folder / "installed.json"
    if not stamp.exists() or stamp.read_text() != wanted:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text(wanted)
        _run(["npm", "install", "--no-audit", "--no-fund", "--ignore-scripts"], folder)
        stamp.write_text(wanted)
    return _PORTKEY


def _from_pypi(name: str) -> str:
    folder, wanted = HOME / name, PINNED[name]
    stamp = folder / "installed.txt"
    if not stamp.exists() or stamp.read_text() != "\n".join(wanted):
        venv.create(folder, with_pip=True)
        _run([str(folder / "bin/python"), "-m", "pip", "install", "-q", *wanted])
        stamp.write_text("\n".join(wanted))
    return wanted[0].partition("==")[2]


def _run(command: list[str], folder: Path | None = None) -> None:
    print(f"installing: {' '.join(command)}", file=sys.stderr, flush=True)
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise CannotRun(f"{command[0]} did not end within {_TIMEOUT_S} s") from None
    if done.returncode:
        lines = [line for line in (done.stderr or done.stdout).splitlines() if "WARNING" not in line]
        raise CannotRun(f"its installation failed: {' / '.join(lines[-2:])[:300] or 'no reason given'}")
