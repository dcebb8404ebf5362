"""Debian's nginx in front of a daemon, as a person sets it up who changes nothing but the address."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_START_S = 60.0
_CONFIG = """
daemon off;
pid {home}/nginx.pid;
error_log {home}/error.log;
worker_processes 1;
events {{}}
http {{
    access_log off;
    client_body_temp_path {home}/body;
    proxy_temp_path {home}/proxy;
    fastcgi_temp_path {home}/fastcgi;
    uwsgi_temp_path {home}/uwsgi;
    scgi_temp_path {home}/scgi;
    server {{
        listen unix:{socket};
        location / {{ proxy_pass http://127.0.0.1:{port}; {more} }}
    }}
}}
"""


def nginx() -> str | None:
    """Where nginx is; None where it is not installed."""
    return shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")


@contextmanager
def running_nginx(home: Path, port: int, more: str = "") -> Iterator[Path]:
    """Start nginx in front of the daemon at this port; gives the socket where it listens.

    Args:
        home: an empty directory for all its files; its path must be short, for the socket's sake.
        port: of the daemon, on 127.0.0.1.
        more: directives for the one location.
    """
    program = nginx()
    assert program is not None
    config, listening = home / "nginx.conf", home / "nginx.sock"
    config.write_text(_CONFIG.format(home=home, socket=listening, port=port, more=more))
    with (home / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [program, "-p", str(home), "-c", str(config), "-e", str(home / "error.log")],
            stdin=subprocess.DEVNULL,
            stdout=stderr,
            stderr=stderr,
        )
    try:
        deadline = time.monotonic() + _START_S
        while not _answers(listening):
            assert process.poll() is None, (home / "stderr").read_text()
            assert time.monotonic() < deadline, "nginx does not start"
            time.sleep(0.01)
        yield listening
    finally:
        process.terminate()
        process.wait(60)


def _answers(listening: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        return sock.connect_ex(str(listening)) == 0
