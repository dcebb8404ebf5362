"""The wheel as pipx installs it into an empty home, its dependencies from the registry; then a first day."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import time
import urllib.request
import venv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from proving.provider import PROVIDER_KEY, provider
from proving.roots import ProofFailed, Supplies, call
from proving.terminal import at_terminal

_TOP = Path(__file__).parents[2]
_START_S = 60.0


def prove(supplies: Supplies, home: Path) -> None:
    """Build, install, then do what a person does first."""
    person = home / "home"
    person.mkdir()
    env = _environment(supplies, person)
    relayd, tui = _installed(home, person, env)
    with provider() as url:
        port = _free_port()
        at_terminal(
            [relayd, "init"],
            [
                ("provider's address", f"{url}\n"),
                ("Listen on", f"127.0.0.1:{port}\n"),
                ("provider's key", f"{PROVIDER_KEY}\n"),
            ],
            env=env,
            cwd=person,
        )
        with _daemon([relayd, "serve"], person, env):
            key = (person / ".local/state/relayd/first-key").read_text().strip()
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/chat",
                b'{"messages":[{"role":"user","content":"hi"}]}',
                {"Authorization": key},
            )
            with urllib.request.urlopen(request, timeout=30) as answer:  # noqa: S310 - the address stands above
                if b'"content":"[DONE]"' not in answer.read():
                    raise ProofFailed("no whole answer came")
            print("--- relayd serve answers", flush=True)
            if "completed" not in call([relayd, "log"], env=env):
                raise ProofFailed("relayd log does not list it")
            print("--- relayd log lists it", flush=True)
    seen = at_terminal([tui, "--demo"], [("LIVE", "Q")], env=env, cwd=person, shown=False)
    print(f"--- relayd-tui --demo drew {len(seen)} characters, and quit on Q", flush=True)


def _environment(supplies: Supplies, person: Path) -> dict[str, str]:
    """Nothing but a PATH, a terminal, a home with nothing in it, and the way to the registry."""
    registry = {f"PIP_{name.upper().replace('-', '_')}": value for name, value in supplies.pip.items()}
    return {
        "PATH": "/usr/bin:/bin",
        "HOME": str(person),
        "TERM": "xterm-256color",
        "LANG": "C.UTF-8",
    } | registry


def _installed(home: Path, person: Path, env: Mapping[str, str]) -> tuple[str, str]:
    """Where pipx put the two programs."""
    call(["git", "-c", "safe.directory=*", "clone", "--quiet", "--no-local", str(_TOP), str(home / "clone")])
    venv.create(home / "tools", with_pip=True)
    tool = home / "tools" / "bin"
    call([str(tool / "python"), "-m", "pip", "install", "--quiet", "pipx"], env=env)
    call(
        [
            str(tool / "python"),
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "-w",
            str(home),
            str(home / "clone"),
        ],
        env=env,
    )
    (wheel,) = home.glob("*.whl")
    began = time.monotonic()
    print(call([str(tool / "pipx"), "install", "--python", sys.executable, str(wheel)], env=env), end="")
    took_s = time.monotonic() - began
    print(f"--- {wheel.name}, {wheel.stat().st_size / 1000:.0f} kB, installed in {took_s:.0f} s", flush=True)
    programs = person / ".local" / "bin"
    return str(programs / "relayd"), str(programs / "relayd-tui")


@contextmanager
def _daemon(words: list[str], person: Path, env: Mapping[str, str]) -> Iterator[None]:
    """Run it until it serves; it must end well when it is told to."""
    told = person / "stderr"
    with told.open("wb") as stderr:
        process = subprocess.Popen(words, env=env, cwd=person, stdin=subprocess.DEVNULL, stderr=stderr)
    try:
        deadline = time.monotonic() + _START_S
        while "serving on" not in told.read_text():
            if time.monotonic() > deadline or process.poll() is not None:
                raise ProofFailed(f"it does not serve: {told.read_text()}")
            time.sleep(0.05)
        print(told.read_text(), end="", flush=True)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        status = process.wait(60)
    if status != 0:
        raise ProofFailed(f"the daemon ended with {status}")


def _free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
    return port
