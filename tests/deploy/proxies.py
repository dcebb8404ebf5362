"""The proxies of docs/deploy, run as they stand there but for ports, certificates and times."""

from __future__ import annotations

import os
import re
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.e2e.daemon import closed_port
from tests.support.certificates import certificate
from tests.support.programs import PATH
from tests.wire import HOST

DOCS = Path(__file__).parents[2] / "docs" / "deploy"
NAME = "relay.example.com"
_START_S = 60.0


@dataclass(frozen=True, slots=True)
class Front:
    """A running proxy."""

    port: int
    """Where it speaks TLS."""
    plain_port: int
    authority: Path
    """The certificate of the authority that signed its own."""

    def tls(self, *protocols: str) -> ssl.SSLContext:
        """A client's context that trusts it and offers these protocols."""
        context = ssl.create_default_context(cafile=str(self.authority))
        context.set_alpn_protocols(list(protocols))
        return context


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a proxy is started with."""

    home: Path
    backends: Sequence[int]
    port: int
    plain_port: int
    idle_s: int
    """Stands for the 60 s that the configuration gives a silent connection."""
    spoiled: dict[str, str]
    """What a careless hand changed: pattern and replacement."""

    def edited(self, name: str, changes: dict[str, str]) -> str:
        """Return the file of the docs for so many relays, with the right ports and these changes."""
        if len(self.backends) == 1:
            ports = {r"127\.0\.0\.1:3666": f"{HOST}:{self.backends[0]}"}
        else:
            name = f"postgresql/{name}"
            ports = {
                rf"192\.0\.2\.1{number}:3666": f"{HOST}:{port}"
                for number, port in enumerate(self.backends, 1)
            }
        return _edited(name, ports | changes | self.spoiled)


@contextmanager
def front(
    kind: str, home: Path, *backends: int, idle_s: int = 60, spoiled: dict[str, str] | None = None
) -> Iterator[Front]:
    """Run a proxy before one or two ports of this machine.

    Args:
        kind: nginx, caddy or haproxy.
        home: an empty directory.
        backends: the ports that it passes requests on to.
        idle_s: takes the place of its 60 s.
        spoiled: further changes, pattern and replacement, to see what comes of them.
    """
    plan = _Plan(home, backends, closed_port(), closed_port(), idle_s, spoiled or {})
    command, authority = _COMMANDS[kind](plan)
    with (home / "log").open("wb") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=_environment(home)
        )
    try:
        _wait_until_it_serves(process, plan, authority)
        yield Front(plan.port, plan.plain_port, authority)
    finally:
        process.kill()
        process.wait(10)


def _nginx(plan: _Plan) -> tuple[list[str], Path]:
    chain, key = _certificate(plan.home)
    site = plan.edited(
        "nginx.conf",
        {
            r"listen 443 ": f"listen {HOST}:{plan.port} ",
            r"listen 80;": f"listen {HOST}:{plan.plain_port};",
            r"listen \[::\]:.*;": "",
            r"/etc/letsencrypt\S+fullchain\.pem": str(chain),
            r"/etc/letsencrypt\S+privkey\.pem": str(key),
            r"60s": f"{plan.idle_s}s",
        },
    )
    (plan.home / "site.conf").write_text(site)
    user = "user root;" if os.getuid() == 0 else ""
    main = f"{user} daemon off; master_process off; pid {plan.home}/pid; events {{}}\n"
    main += f"http {{ access_log off; client_body_temp_path {plan.home}/body; include site.conf; }}\n"
    (plan.home / "nginx.conf").write_text(main)
    command = ["nginx", "-p", str(plan.home), "-e", "stderr", "-c", str(plan.home / "nginx.conf")]
    return command, chain


def _caddy(plan: _Plan) -> tuple[list[str], Path]:
    site = plan.edited("Caddyfile", {})
    if plan.idle_s != 60:
        # Caddy waits without a limit; give it one, to see that heartbeats hold it off.
        wait = f"{{\n transport http {{\n read_timeout {plan.idle_s}s\n }}\n}}"
        site = site.replace(f":{plan.backends[0]}", f":{plan.backends[0]} {wait}")
    # No address of the file is changed: these options only move Caddy off the privileged ports, and
    # let it sign for the name itself.
    options = (
        f"{{\n admin off\n local_certs\n skip_install_trust\n http_port {plan.plain_port}\n"
        f" https_port {plan.port}\n default_bind {HOST}\n storage file_system {plan.home}/store\n}}\n"
    )
    (plan.home / "Caddyfile").write_text(options + site)
    command = ["caddy", "run", "--adapter", "caddyfile", "--config", str(plan.home / "Caddyfile")]
    return command, plan.home / "store/pki/authorities/local/root.crt"


def _haproxy(plan: _Plan) -> tuple[list[str], Path]:
    chain, key = _certificate(plan.home)
    pem = plan.home / "site.pem"
    pem.write_text(chain.read_text() + key.read_text())
    config = plan.edited(
        "haproxy.cfg",
        {
            r"bind :443": f"bind {HOST}:{plan.port}",
            r"bind :80": f"bind {HOST}:{plan.plain_port}",
            r"/etc/haproxy/\S+\.pem": str(pem),
            r"(?m)^    (log /dev/log|user|group) .*\n": "",
            r"60s": f"{plan.idle_s}s",
        },
    )
    (plan.home / "haproxy.cfg").write_text(config)
    return ["haproxy", "-db", "-f", str(plan.home / "haproxy.cfg")], chain


_COMMANDS: dict[str, Callable[[_Plan], tuple[list[str], Path]]] = {
    "nginx": _nginx,
    "caddy": _caddy,
    "haproxy": _haproxy,
}


def _environment(home: Path) -> dict[str, str]:
    return {"PATH": PATH, "HOME": str(home), "XDG_DATA_HOME": str(home), "XDG_CONFIG_HOME": str(home)}


def _edited(name: str, changes: dict[str, str]) -> str:
    """The file of the docs, with each change made at least once."""
    text = (DOCS / name).read_text()
    for pattern, replacement in changes.items():
        text, count = re.subn(pattern, replacement, text)
        assert count, f"{name} no longer has {pattern}"
    return text


def _certificate(home: Path) -> tuple[Path, Path]:
    certificate(home, f"DNS:{NAME}", days=30)
    return home / "chain.pem", home / "key.pem"


def _wait_until_it_serves(process: subprocess.Popen[bytes], plan: _Plan, authority: Path) -> None:
    deadline = time.monotonic() + _START_S
    while True:
        assert process.poll() is None, (plan.home / "log").read_text()
        try:
            context = ssl.create_default_context(cafile=str(authority))
            with (
                socket.create_connection((HOST, plan.port), timeout=5) as sock,
                context.wrap_socket(sock, server_hostname=NAME),
            ):
                return
        except OSError:
            assert time.monotonic() < deadline, (plan.home / "log").read_text()
            time.sleep(0.05)
