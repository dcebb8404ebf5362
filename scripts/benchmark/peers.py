"""The relays that are compared: what each is, how it is started, how it is asked."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

KEY = "bench-key-of-the-benchmark-0001"
ROOT = Path(__file__).resolve().parents[2]
HOME = ROOT / ".bench"
"""Where peers are installed; git does not see it."""


@dataclass(frozen=True, slots=True)
class Start:
    """How one run of a relay begins."""

    command: list[str]
    env: dict[str, str] = field(default_factory=dict)
    path: str = "/v1/chat/completions"
    headers: dict[str, str] = field(default_factory=lambda: {"Authorization": f"Bearer {KEY}"})
    body: dict[str, Any] = field(default_factory=lambda: {"model": "gpt-4o-mini", "stream": True})


@dataclass(frozen=True, slots=True)
class Peer:
    """One relay.

    Args:
        start: given its folder for this run, its port and the upstream's port.
        share: of the load's streams that it gets, where it saturates far below the others.
        start_timeout_s: how long it may take to listen.
    """

    name: str
    start: Callable[[Path, int, int], Start]
    share: float = 1.0
    start_timeout_s: float = 30.0


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


def _nginx(folder: Path, port: int, upstream: int) -> Start:
    conf = folder / "nginx.conf"
    conf.write_text(_NGINX_CONF.format(folder=folder, port=port, upstream=upstream))
    return Start(["nginx", "-e", "stderr", "-c", str(conf)])


def _relayd(folder: Path, port: int, upstream: int) -> Start:
    env = {
        "OPENAI_API_KEY": KEY,
        "AUTHORIZATION_KEY": KEY,
        "SERVER_PORT": str(port),
        "RELAYD_STATE_DIR": str(folder / "state"),
        "RELAYD_UPSTREAM__BASE_URL": f"http://127.0.0.1:{upstream}/v1",
        "RELAYD_SERVER__MAX_STREAMS": "10000",
        "RELAYD_SERVER__MAX_STREAMS_PER_ADDRESS": "10000",
    }
    return Start([sys.executable, "-m", "relayd", "serve"], env, path="/chat", body={"model": "gpt-4o-mini"})


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
    return Start([str(HOME / "ferrogw/bin/ferrogw"), "serve"], env)


def _openai_forward(_folder: Path, port: int, upstream: int) -> Start:
    forward = [{"base_url": f"http://127.0.0.1:{upstream}", "route": "/", "type": "openai"}]
    env = {"FORWARD_CONFIG": json.dumps(forward), "OPENAI_API_KEY": "", "FORWARD_KEY": ""}
    return Start([str(HOME / "openai-forward/bin/aifd"), "run", "--port", str(port)], env)


def _portkey(_folder: Path, port: int, upstream: int) -> Start:
    script = HOME / "portkey/node_modules/@portkey-ai/gateway/build/start-server.js"
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
    command = [str(HOME / "litellm/bin/litellm"), "--config", str(conf), "--port", str(port)]
    env = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"}
    return Start([*command, "--host", "127.0.0.1", "--telemetry", "False"], env)


RELAYD = Peer("relayd", _relayd)


def before(tree: Path) -> Peer:
    """Relayd as it is in another checkout, to measure a change beside what was there before it."""

    def start(folder: Path, port: int, upstream: int) -> Start:
        start = _relayd(folder, port, upstream)
        return replace(start, env=start.env | {"PYTHONPATH": str(tree.resolve())})

    return Peer("before", start)


PEERS = (
    Peer("nginx", _nginx),
    Peer("ferrogw", _ferrogw),
    Peer("openai-forward", _openai_forward, start_timeout_s=60),
    Peer("portkey", _portkey),
    # It saturates near 700 deltas a second: a full load would measure its queue.
    Peer("litellm", _litellm, share=0.2, start_timeout_s=120),
)


def environment(start: Start) -> dict[str, str]:
    """What the relay's process gets: little from here, so that no setting of this shell counts."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return kept | start.env
