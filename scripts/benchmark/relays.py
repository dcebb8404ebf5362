"""The relays that are compared: how each is installed, started and asked."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import venv
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from benchmark import postgresql
from benchmark.programs import CannotRunError

KEY = "bench-key-of-the-benchmark-0001"
ROOT = Path(__file__).resolve().parents[2]
_CACHE = ROOT / ".bench"
"""Where everything is installed; git ignores it."""
_INSTALL_TIMEOUT_S = 1200
_FERROGW = "1.5.10"
_BOUND = 1_000_000
_BOUNDS = [
    ("requests", "minute"),
    ("tokens", "minute"),
    ("tokens", "day"),
    ("tokens", "month"),
    ("usd", "day"),
    ("usd", "month"),
]
OPENAI_PATH = "/v1/chat/completions"
OPENAI_BODY = {"model": "gpt-4o-mini", "stream": True}


@dataclass(frozen=True, slots=True)
class Start:
    """How to start one relay, and how to ask it."""

    command: list[str]
    env: dict[str, str] = field(default_factory=dict)
    path: str = OPENAI_PATH
    headers: dict[str, str] = field(default_factory=lambda: {"Authorization": f"Bearer {KEY}"})
    body: dict[str, Any] = field(default_factory=OPENAI_BODY.copy)


@dataclass(frozen=True, slots=True)
class Relay:
    """One column of the table.

    Args:
        name: the column's title.
        version: what is compared.
        start: given a folder for this run, the relay's port and the upstream's port.
        setup: a command of relayd's to run once it listens; empty: none.
        database: given the same folder and a core, run what the relay keeps its state in.
    """

    name: str
    version: str
    start: Callable[[Path, int, int], Start]
    setup: Sequence[str] = ()
    database: Callable[[Path, int], AbstractContextManager[None]] = lambda _folder, _core: nullcontext()


def this_tree() -> Relay:
    """Return the relayd of this tree, with what is changed and not yet committed."""
    identity = ["-c", "user.name=bench", "-c", "user.email=bench@localhost"]
    changed = _output(["git", "-C", str(ROOT), *identity, "stash", "create"])
    return _relayd("relayd", ".bench/now", changed or "HEAD")


def before(revision: str) -> Relay:
    """Return the relayd of a git revision."""
    return _relayd("before", ".bench/old", revision)


def _relayd(name: str, folder: str, revision: str) -> Relay:
    """Return the relayd of a revision.

    Every version gets the same kind of place: a clean copy, compiled, in a path of the same length, and an
    environment with the locked packages only, which versions with the same lock share.

    Raises:
        CannotRunError: there is no such revision, or it cannot be installed.
    """
    tree = ROOT / folder
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    archive = tree / "tree.tar"
    _output(["git", "-C", str(ROOT), "archive", "-o", str(archive), revision])
    with tarfile.open(archive) as tar:
        tar.extractall(tree, filter="data")
    python = str(
        _environment("relayd", ["--require-hashes", "--no-deps", "-r", str(tree / "requirements.txt")])
    )
    _output([python, "-m", "compileall", "-q", str(tree / "relayd"), str(tree / "tui")])
    env = {"PYTHONPATH": str(tree)}

    def start(folder: Path, port: int, upstream: int) -> Start:
        settings = {
            "OPENAI_API_KEY": KEY,
            "AUTHORIZATION_KEY": KEY,
            "SERVER_PORT": str(port),
            "RELAYD_STATE_DIR": str(folder / "state"),
            "RELAYD_UPSTREAM__BASE_URL": f"http://127.0.0.1:{upstream}/v1",
            "RELAYD_SERVER__MAX_STREAMS": "10000",
            "RELAYD_SERVER__MAX_STREAMS_PER_ADDRESS": "10000",
        }
        command = [python, "-m", "relayd", "serve"]
        return Start(command, env | settings, path="/chat", body={"model": "gpt-4o-mini"})

    commit = _output(["git", "-C", str(ROOT), "rev-parse", "--short", f"{revision}^{{commit}}"])
    return Relay(name, commit, start)


def at_v1(relayd: Relay) -> Relay:
    """Return the same relayd, asked in OpenAI's protocol."""
    return _changed(relayd, "/v1", lambda start, _: replace(start, path=OPENAI_PATH, body=OPENAI_BODY))


def on_postgresql(relayd: Relay) -> Relay:
    """Return the same relayd, which keeps its state in a PostgreSQL of this machine."""
    shared = _changed(
        relayd,
        "PostgreSQL",
        lambda start, folder: replace(start, env=start.env | {"RELAYD_STATE__URL": postgresql.url(folder)}),
    )
    return replace(shared, database=postgresql.running)


def with_workers(relayd: Relay, count: int) -> Relay:
    """Return the same relayd with so many processes."""
    workers = {"RELAYD_SERVER__WORKERS": str(count)}
    return _changed(relayd, f"{count} workers", lambda start, _: replace(start, env=start.env | workers))


def with_bounds(relayd: Relay, name: str = "bounded") -> Relay:
    """Return the same relayd, whose client has every bound that counts, none of which it reaches."""
    bounds = [f"{unit}-per-{time}={_BOUND}" for unit, time in _BOUNDS]
    return replace(
        relayd, name=name, setup=["clients", "set", "default", *(f"--{bound}" for bound in bounds)]
    )


def _changed(relay: Relay, name: str, change: Callable[[Start, Path], Start]) -> Relay:
    """Return the same relay with another name, started in another way."""

    def start(folder: Path, port: int, upstream: int) -> Start:
        return change(relay.start(folder, port, upstream), folder)

    return replace(relay, name=name, start=start)


def _environment(name: str, pip_arguments: list[str]) -> Path:
    """Return the Python of a virtual environment that has just what pip is told to install."""
    wanted = [sys.version, *(Path(a).read_text() if a.endswith(".txt") else a for a in pip_arguments)]
    folder = _CACHE / f"{name}-{hashlib.sha256(repr(wanted).encode()).hexdigest()[:12]}"
    if not (folder / "installed").exists():
        venv.create(folder, clear=True, with_pip=True)
        _output([str(folder / "bin/python"), "-m", "pip", "install", "-q", *pip_arguments])
        (folder / "installed").touch()
    return folder / "bin/python"


_NGINX_CONF = """
daemon off;
worker_processes 1;
worker_rlimit_nofile 20000;
pid {folder}/nginx.pid;
error_log stderr;
events {{ worker_connections 10000; }}
http {{
  access_log off;
  client_body_temp_path {folder}; proxy_temp_path {folder}; fastcgi_temp_path {folder};
  uwsgi_temp_path {folder}; scgi_temp_path {folder};
  upstream provider {{ server 127.0.0.1:{upstream}; keepalive 512; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    keepalive_requests 1000000;
    location / {{
      proxy_pass http://provider;
      proxy_http_version 1.1;
      proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""


def nginx() -> Relay:
    """Return nginx as a bare proxy: the floor of what relaying costs.

    Raises:
        CannotRunError: it is not installed.
    """
    if shutil.which("nginx") is None:
        raise CannotRunError("nginx is not installed; on Debian: apt install nginx-light")
    said = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr

    def start(folder: Path, port: int, upstream: int) -> Start:
        conf = folder / "nginx.conf"
        conf.write_text(_NGINX_CONF.format(folder=folder, port=port, upstream=upstream))
        return Start(["nginx", "-e", "stderr", "-c", str(conf)])

    return Relay("nginx", said.strip().rpartition("/")[2], start)


def ferrogw() -> Relay:
    """Return a gateway in Go, from PyPI.

    Raises:
        CannotRunError: it cannot be installed.
    """
    program = _environment("ferrogw", [f"ferrogw=={_FERROGW}"]).parent / "ferrogw"

    def start(folder: Path, port: int, upstream: int) -> Start:
        conf = folder / "config.yaml"
        conf.write_text("strategy:\n  mode: single\ntargets:\n  - virtual_key: openai\n")
        env = {
            "GATEWAY_CONFIG": str(conf),
            "OPENAI_API_KEY": KEY,
            "OPENAI_BASE_URL": f"http://127.0.0.1:{upstream}",
            "PORT": str(port),
            "MASTER_KEY": KEY,
            # It refuses more than a few requests a second otherwise.
            "RATE_LIMIT_RPS": "1000000",
            "RATE_LIMIT_BURST": "1000000",
        }
        return Start([str(program), "serve"], env)

    return Relay("ferrogw", _FERROGW, start)


def _output(command: list[str]) -> str:
    """Return what a command printed.

    Raises:
        CannotRunError: it failed.
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise CannotRunError(f"{command[0]} did not end within {_INSTALL_TIMEOUT_S} s.") from None
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise CannotRunError(f"{' '.join(command[:4])} failed: {' / '.join(lines[-2:])[:300]}")
    return done.stdout.strip()


def environment(start: Start) -> dict[str, str]:
    """Return a program's environment: little of ours, so that no setting of this shell counts."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return kept | start.env
