"""The relays that are compared: how each is installed, started and asked."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import venv
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from benchmark.programs import CannotRunError

KEY = "bench-key-of-the-benchmark-0001"
ROOT = Path(__file__).resolve().parents[2]
_CACHE = ROOT / ".bench"
"""Where peers and older versions are installed; git ignores it."""
_INSTALL_TIMEOUT_S = 1200
_PYPI = {
    "ferrogw": ["ferrogw==1.5.10"],
    "litellm": ["litellm[proxy]==1.106.2"],
    # It imports yaml without declaring it.
    "openai-forward": ["openai-forward==0.8.1", "pyyaml==6.0.3"],
}
_PORTKEY = {
    "private": True,
    "dependencies": {"@portkey-ai/gateway": "1.15.2"},
    # With later ones every request ends in "TypeError: immutable".
    "overrides": {"@hono/node-server": "1.13.7", "hono": "4.9.7"},
}


@dataclass(frozen=True, slots=True)
class Start:
    """How to start one relay, and how to ask it."""

    command: list[str]
    env: dict[str, str] = field(default_factory=dict)
    path: str = "/v1/chat/completions"
    headers: dict[str, str] = field(default_factory=lambda: {"Authorization": f"Bearer {KEY}"})
    body: dict[str, Any] = field(default_factory=lambda: {"model": "gpt-4o-mini", "stream": True})


@dataclass(frozen=True, slots=True)
class Relay:
    """One column of the table.

    Args:
        name: the column's title.
        install: makes sure that the relay is there and returns its version; raises CannotRunError.
        start: given a folder for this run, the relay's port and the upstream's port.
        share: the share of the load's streams, for a relay that saturates far below the others.
        start_timeout_s: how long it may take to listen.
        python: the interpreter that has this version of relayd; None for other relays.
    """

    name: str
    install: Callable[[], str]
    start: Callable[[Path, int, int], Start]
    share: float = 1.0
    start_timeout_s: float = 30.0
    python: Path | None = None


def relayd(name: str, python: Path) -> Relay:
    """Return the relayd that this interpreter has installed."""

    def start(folder: Path, port: int, upstream: int) -> Start:
        env = {
            "OPENAI_API_KEY": KEY,
            "AUTHORIZATION_KEY": KEY,
            "SERVER_PORT": str(port),
            "RELAYD_STATE_DIR": str(folder / "state"),
            "RELAYD_UPSTREAM__BASE_URL": f"http://127.0.0.1:{upstream}/v1",
            "RELAYD_SERVER__MAX_STREAMS": "10000",
            "RELAYD_SERVER__MAX_STREAMS_PER_ADDRESS": "10000",
        }
        command = [str(python), "-m", "relayd", "serve"]
        return Start(command, env, path="/chat", body={"model": "gpt-4o-mini"})

    def version() -> str:
        return _output([str(python), "-c", "import relayd; print(relayd.__version__)"])

    return Relay(name, version, start, python=python)


def this_tree() -> Relay:
    """Return the relayd of this tree."""
    return relayd("relayd", Path(sys.executable))


def before(tree_or_revision: str) -> Relay:
    """Return the relayd of another checkout that has a `.venv`, or of a git revision.

    Raises:
        CannotRunError: there is no such checkout or revision, or it cannot be installed.
    """
    tree = Path(tree_or_revision)
    if not tree.is_dir():
        tree = _revision(tree_or_revision)
    python = tree.resolve() / ".venv/bin/python"
    if not python.exists():
        raise CannotRunError(f"{tree} has no .venv; run its scripts/venv first.")
    return relayd("before", python)


def _revision(revision: str) -> Path:
    """Return a copy of a git revision with its own virtual environment."""
    commit = _output(["git", "-C", str(ROOT), "rev-parse", "--verify", f"{revision}^{{commit}}"])
    tree = _CACHE / f"before-{commit[:12]}"
    if not tree.exists():
        tree.parent.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=_CACHE) as name:
            archive = Path(name) / "tree.tar"
            _output(["git", "-C", str(ROOT), "archive", "-o", str(archive), commit])
            with tarfile.open(archive) as tar:
                tar.extractall(Path(name) / "tree", filter="data")
            (Path(name) / "tree").rename(tree)
    _output([str(tree / "scripts/venv"), "run"])
    return tree


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


def _nginx_version() -> str:
    if shutil.which("nginx") is None:
        raise CannotRunError("nginx is not installed; on Debian: apt install nginx-light")
    said = subprocess.run(["nginx", "-v"], capture_output=True, text=True, check=True).stderr
    return said.strip().rpartition("/")[2]


def _nginx(folder: Path, port: int, upstream: int) -> Start:
    conf = folder / "nginx.conf"
    conf.write_text(_NGINX_CONF.format(folder=folder, port=port, upstream=upstream))
    return Start(["nginx", "-e", "stderr", "-c", str(conf)])


def _ferrogw(folder: Path, port: int, upstream: int) -> Start:
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
    return Start([str(_CACHE / "ferrogw/bin/ferrogw"), "serve"], env)


def _openai_forward(_folder: Path, port: int, upstream: int) -> Start:
    forward = [{"base_url": f"http://127.0.0.1:{upstream}", "route": "/", "type": "openai"}]
    env = {"FORWARD_CONFIG": json.dumps(forward), "OPENAI_API_KEY": "", "FORWARD_KEY": ""}
    return Start([str(_CACHE / "openai-forward/bin/aifd"), "run", "--port", str(port)], env)


def _portkey(_folder: Path, port: int, upstream: int) -> Start:
    script = _CACHE / "portkey/node_modules/@portkey-ai/gateway/build/start-server.js"
    headers = {
        "Authorization": f"Bearer {KEY}",
        "x-portkey-provider": "openai",
        "x-portkey-custom-host": f"http://127.0.0.1:{upstream}/v1",
    }
    return Start(["node", str(script), "--headless", f"--port={port}"], headers=headers)


def _litellm(folder: Path, port: int, upstream: int) -> Start:
    conf = folder / "config.yaml"
    conf.write_text(
        "model_list:\n"
        "  - model_name: gpt-4o-mini\n"
        "    litellm_params:\n"
        "      model: openai/gpt-4o-mini\n"
        f"      api_base: http://127.0.0.1:{upstream}/v1\n"
        f"      api_key: {KEY}\n"
        "litellm_settings:\n  telemetry: false\n"
        f"general_settings:\n  master_key: {KEY}\n"
    )
    command = [str(_CACHE / "litellm/bin/litellm"), "--config", str(conf), "--port", str(port)]
    env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    return Start([*command, "--host", "127.0.0.1", "--telemetry", "False"], env)


def _from_pypi(name: str) -> str:
    folder, wanted = _CACHE / name, _PYPI[name]
    stamp = folder / "installed.txt"
    if not stamp.exists() or stamp.read_text() != "\n".join(wanted):
        venv.create(folder, with_pip=True)
        _output([str(folder / "bin/python"), "-m", "pip", "install", "-q", *wanted])
        stamp.write_text("\n".join(wanted))
    return wanted[0].partition("==")[2]


def _from_npm() -> str:
    if shutil.which("npm") is None:
        raise CannotRunError("Node is not installed; on Debian: apt install nodejs npm")
    folder, wanted = _CACHE / "portkey", json.dumps(_PORTKEY, indent=1)
    stamp = folder / "installed.json"
    if not stamp.exists() or stamp.read_text() != wanted:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text(wanted)
        _output(["npm", "install", "--prefix", str(folder), "--no-audit", "--no-fund", "--ignore-scripts"])
        stamp.write_text(wanted)
    return "1.15.2"


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


PEERS = (
    Relay("ferrogw", partial(_from_pypi, "ferrogw"), _ferrogw),
    Relay("nginx", _nginx_version, _nginx),
)
MORE_PEERS = (
    Relay("openai-forward", partial(_from_pypi, "openai-forward"), _openai_forward, start_timeout_s=60),
    Relay("portkey", _from_npm, _portkey),
    # It saturates near 700 deltas a second: a full load would measure its queue.
    Relay("litellm", partial(_from_pypi, "litellm"), _litellm, share=0.2, start_timeout_s=120),
)


def environment(start: Start) -> dict[str, str]:
    """Return the relay's environment: little of ours, so that no setting of this shell counts."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return kept | start.env


class AdminConnection(http.client.HTTPConnection):
    """HTTP to the admin socket of a running relayd."""

    def __init__(self, path: Path) -> None:
        super().__init__("relayd", timeout=10)
        self._path = path

    def connect(self) -> None:
        """Connect to the Unix socket."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))

    def ask(self, method: str, target: str, body: object = None, **headers: str) -> Any:
        """Return the document that relayd answers with."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        self.request(method, target, None if body is None else json.dumps(body), sent)
        response = self.getresponse()
        answer = response.read()
        if response.status != http.client.OK:
            raise RuntimeError(f"{method} {target} was answered with {response.status}: {answer[:200]!r}")
        return json.loads(answer)
