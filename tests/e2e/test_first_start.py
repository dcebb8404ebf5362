"""The first start makes a key and shows it once: on the terminal, or in a file that only its owner reads."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import select
import stat
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from relayd.state.directory import StateDirectory
from relayd.state.keys import looks_wrong
from relayd.state.state import State
from tests.e2e.daemon import Daemon, command, environment
from tests.support.programs import require
from tests.wire import ask, body, until

_SECRET = re.compile(r"rly_[0-9A-Za-z]{8}_[0-9A-Za-z]{49}")
_TRY = re.compile(r"^ +(?:key=|curl -N ).*\n", re.MULTILINE)
_QUICK = body("demo:deltas=1")
_GONE = "timeout 60 sh -c 'while test -e {}; do sleep 0.1; done'"
_ANSWER_END = '{"done":true,"error":false,"content":"[DONE]"}'


def _pasted(shown: str, home: Path, env: dict[str, str] | None = None) -> list[str]:
    """What a shell prints when the lines that the daemon shows are pasted, and the last of them once more."""
    require("curl")
    lines = _TRY.findall(shown)
    assert lines, shown
    again = f"{_GONE.format(home / 'state/first-key')}\n{lines[-1]}"
    shell = subprocess.run(
        ["bash", "-euc", "".join(lines) + again],
        env=environment(home, env or {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return shell.stdout.splitlines()


def _everything_but_the_key_file(daemon: Daemon) -> bytes:
    files = [path for path in daemon.state_dir.iterdir() if path.name != "first-key" and not path.is_socket()]
    return daemon.stderr.encode() + b"".join(path.read_bytes() for path in files)


async def test_without_a_terminal_the_first_key_is_in_a_file(tmp_path: Path) -> None:
    """Mode 0600, named on stderr and in the status until the key was used, then gone; and nowhere else."""
    with Daemon(tmp_path, env={"AUTHORIZATION_KEY": ""}) as daemon:
        path = daemon.state_dir / "first-key"
        key = path.read_text().strip()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(daemon.state_dir.stat().st_mode) == 0o700
        assert _SECRET.fullmatch(key)
        assert not looks_wrong(key.encode())
        assert str(path) in daemon.stderr
        reminder = (await daemon.admin.status()).first_key
        assert reminder is not None
        assert reminder.startswith(f"in {path} until it is used, at most 23h ")
        assert _pasted(daemon.stderr, tmp_path).count(_ANSWER_END) == 2
        await until(lambda: not path.exists())
        assert (await daemon.admin.status()).first_key is None
        assert daemon.stop() == 0
        written = len(daemon.stderr)
    # The stored ring wins over another key in the environment of a later start.
    other = "another-key-that-is-long-enough"
    with Daemon(tmp_path, env={"AUTHORIZATION_KEY": other}) as daemon:
        assert (await ask(daemon.port, key, _QUICK)).status == 200
        assert (await ask(daemon.port, other, _QUICK)).status == 401
        assert "AUTHORIZATION_KEY is not in the key ring and is ignored" in daemon.stderr
        assert not path.exists()
        assert "first authorization key" not in daemon.stderr[written:]
        daemon.stop()
    for secret in (key, other):
        assert secret.encode() not in _everything_but_the_key_file(daemon)


async def test_a_first_key_that_nobody_used_is_deleted_after_a_day(tmp_path: Path) -> None:
    """Also if relayd was not running at that time; the key itself goes on working."""
    with Daemon(tmp_path, env={"AUTHORIZATION_KEY": ""}) as daemon:
        path = daemon.state_dir / "first-key"
        key = path.read_text().strip()
        assert daemon.stop() == 0
        os.utime(path, (0, time.time() - 86_400))
        daemon.start()
        await until(lambda: not path.exists())
        assert (await ask(daemon.port, key, _QUICK)).status == 200


async def test_on_a_terminal_the_first_key_is_shown_once(tmp_path: Path) -> None:
    """It is shown with a line that works when pasted, and written into no file; the next start is silent."""
    with _on_a_terminal(tmp_path) as shown:
        key = _SECRET.search(shown)
        assert key is not None
        assert "shown only this once" in shown
        assert _pasted(shown, tmp_path).count(_ANSWER_END) == 2
    state_dir = tmp_path / "state"
    assert not (state_dir / "first-key").exists()
    with _on_a_terminal(tmp_path) as shown:
        assert _SECRET.search(shown) is None
        assert _pasted(shown, tmp_path, {"AUTHORIZATION_KEY": key[0]}).count(_ANSWER_END) == 2
    written = b"".join(path.read_bytes() for path in state_dir.iterdir() if not path.is_socket())
    assert key[0].encode() not in written


@contextmanager
def _on_a_terminal(home: Path) -> Iterator[str]:
    """A demo daemon whose stderr is a terminal; yields what it said until it served."""
    ours, its = pty.openpty()
    env = {"RELAYD_STATE_DIR": str(home / "state"), "SERVER_PORT": "0"}
    process = subprocess.Popen(
        command("serve", "--demo"),
        cwd=home,
        env=environment(home, env),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=its,
    )
    os.close(its)
    try:
        yield _read_until(ours, "curl -N", process)
    finally:
        process.terminate()
        process.wait(20)
        os.close(ours)


def _read_until(terminal: int, text: str, process: subprocess.Popen[bytes]) -> str:
    shown, deadline = "", time.monotonic() + 60
    while text not in shown or not shown.endswith("\n"):
        assert time.monotonic() < deadline, shown
        assert process.poll() is None, shown
        if select.select([terminal], [], [], 0.05)[0]:
            shown += os.read(terminal, 1 << 16).decode().replace("\r\n", "\n")
    return shown


async def test_a_first_key_that_cannot_be_saved_is_not_the_end(tmp_path: Path) -> None:
    """The daemon serves, says so, and the command it names makes a key that works."""
    daemon = Daemon(tmp_path, env={"AUTHORIZATION_KEY": ""})
    (daemon.state_dir / "first-key").mkdir(parents=True)
    daemon.state_dir.chmod(0o700)
    with daemon:
        assert "could not be saved" in daemon.stderr
        assert (await ask(daemon.port, await _key_as_advised(daemon), _QUICK)).status == 200


async def test_a_first_start_that_was_killed_early_leaves_a_way_to_a_key(tmp_path: Path) -> None:
    """Its key was stored and never shown: the next start names a command, until some key was used."""
    daemon = Daemon(tmp_path, env={"AUTHORIZATION_KEY": ""})
    killed = State.open(
        StateDirectory(daemon.state_dir), boot_id="boot", keep_days=1, max_mib=10, on_commit=lambda _: None
    )
    killed.ring.ensure_initial_key(None)
    killed.close()
    with daemon:
        assert (await ask(daemon.port, await _key_as_advised(daemon), _QUICK)).status == 200
        assert daemon.stop() == 0
        written = len(daemon.stderr)
        daemon.start()
        assert "make another" not in daemon.stderr[written:]
        daemon.stop()


async def _key_as_advised(daemon: Daemon) -> str:
    """Return the key that the command makes which the daemon named."""
    advice = re.search(r"make another: \S*relayd (.*)", daemon.stderr)
    assert advice is not None, daemon.stderr
    key = _SECRET.search(await asyncio.to_thread(_output_of, daemon, advice[1]))
    assert key is not None
    return key[0]


def _output_of(daemon: Daemon, words: str) -> str:
    """What a command says of this daemon."""
    done = subprocess.run(
        command(*words.split(), "--socket", str(daemon.state_dir / "admin.sock")),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout
