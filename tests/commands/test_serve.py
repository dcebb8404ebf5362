"""`relayd serve` up to where it serves; what follows is proved in tests/e2e with real processes."""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import threading
import time
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

import pytest

from relayd.commands.serve import run
from relayd.config import load
from relayd.server import Server
from relayd.state.directory import StateDirectory
from relayd.state.errors import StateBusy
from tests.e2e.daemon import Daemon, command, environment
from tests.wire import HOST

_KEY = "the-key-of-the-serve-tests"


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A directory and an environment of its own; logging as it was before."""
    monkeypatch.chdir(tmp_path)
    for name in ("RELAYD_CONFIG", "OPENAI_API_KEY", "STATE_DIRECTORY", "XDG_STATE_HOME", "LISTEN_PID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AUTHORIZATION_KEY", _KEY)
    monkeypatch.setenv("SERVER_PORT", "0")
    loggers = [logging.getLogger(name) for name in ("", "relayd", "tornado.general")]
    before = [(logger.handlers[:], logger.level) for logger in loggers]
    yield
    for logger, (handlers, level) in zip(loggers, before, strict=True):
        logger.handlers[:], logger.level = handlers, level


def _refused(
    capsys: pytest.CaptureFixture[str],
    config: Path | None = None,
    *,
    demo: bool = True,
    demo_without_key: bool = False,
) -> str:
    """The one sentence with which the start is refused."""
    assert run(Namespace(config=config, demo=demo, demo_without_key=demo_without_key, workers=None)) == 1
    told = capsys.readouterr()
    assert told.out == ""
    assert _KEY not in told.err
    assert "Traceback" not in told.err
    return told.err


def test_a_faulty_configuration_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every fault of every source, with its place; nothing was made."""
    config = tmp_path / "other.toml"
    config.write_text("[server]\nworkers = true\nprot = 1\n")
    monkeypatch.setenv("RELAYD_LOG__LEVEL", "loud")
    level, workers, unknown = sorted(_refused(capsys, config).splitlines())
    assert level.startswith('environment: RELAYD_LOG__LEVEL (log.level) is "loud", but must be ')
    assert workers.startswith("other.toml:2: server.workers is true")
    assert unknown.startswith("other.toml:3: unknown key server.prot; did you mean server.port?")
    assert [path.name for path in tmp_path.iterdir()] == ["other.toml"]


def test_a_configuration_that_is_not_there_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file that was named must exist."""
    assert "none.toml" in _refused(capsys, tmp_path / "none.toml")


def test_without_a_provider_key_there_is_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    """The sentence says how to give a key, and how to try without one."""
    told = _refused(capsys, demo=False)
    assert "OPENAI_API_KEY" in told
    assert "relayd serve --demo" in told


def test_a_taken_port_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Host, port, what the system said, and what to set."""
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        monkeypatch.setenv("SERVER_PORT", port)
        told = _refused(capsys)
    assert told.startswith(f"relayd cannot listen on {HOST} port {port}: ")
    assert f"{HOST} port {port}: Address already in use by " in told
    assert f"(pid {os.getpid()}); stop that first, or set server.host and server.port" in told


def test_another_relayd_at_the_port_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By its process id, so that it can be stopped."""
    (tmp_path / "other").mkdir()
    with Daemon(tmp_path / "other") as other:
        monkeypatch.setenv("SERVER_PORT", str(other.port))
        assert f"Address already in use by another relayd (pid {other.pid}); stop" in _refused(capsys)


def test_without_its_database_systemd_does_not_give_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The end comes late enough for any number of restarts (at most 5 in 10 s); a person does not wait."""
    sleep, slept_s = time.sleep, []

    def sleep_less(duration_s: float) -> None:
        if duration_s < 1:  # other threads' own
            sleep(duration_s)
        else:
            slept_s.append(duration_s)

    monkeypatch.setattr("time.sleep", sleep_less)
    monkeypatch.setenv("RELAYD_STATE__URL", f"postgresql://relayd@/relayd?host={tmp_path}")
    monkeypatch.setenv("OPENAI_API_KEY", _KEY)
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert "does not answer" in _refused(capsys, demo=False)
    assert slept_s == []
    monkeypatch.setenv("NOTIFY_SOCKET", f"{tmp_path}/notify")
    assert "does not answer" in _refused(capsys, demo=False)
    assert slept_s == [10.0]


def test_a_mistyped_key_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """One that looks like relayd's own and is not: nothing serves with it."""
    for mistyped in ("rly_AAAAAAAA_" + "B" * 49, "rly_AAAAAAAA_" + "B" * 30):
        monkeypatch.setenv("AUTHORIZATION_KEY", mistyped)
        told = _refused(capsys)
        assert told.startswith("AUTHORIZATION_KEY ")
        assert "mistyped" in told
        assert mistyped not in told


def test_a_demo_does_not_use_the_database_of_real_relays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They would accept its keys; it is said how to start it apart, and that works."""
    monkeypatch.setenv("RELAYD_STATE__URL", "postgresql://relayd@127.0.0.1:1/relayd")
    told = _refused(capsys)
    assert told.startswith("demo: it would share keys")
    assert _refused(capsys, demo=False, demo_without_key=True) == told
    env = dict.fromkeys(re.findall(r"(RELAYD_STATE__\w+)=", told), "")
    assert sorted(env) == ["RELAYD_STATE__URL", "RELAYD_STATE__URL_FILE"]
    settings = load(cli={}, config_path=None, env={"HOME": str(tmp_path), **env}, cwd=tmp_path)
    assert settings.state.url.get_secret_value() == ""


def test_a_demo_has_its_own_keys(tmp_path: Path) -> None:
    """Its state directory is its own unless one is named; `relayd status` finds it all the same."""
    env = environment(tmp_path, {"SERVER_PORT": "0", "AUTHORIZATION_KEY": _KEY})
    daemon = subprocess.Popen(
        command("serve", "--demo"), cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True
    )
    assert daemon.stderr is not None
    deadline = threading.Timer(60, daemon.kill)
    deadline.start()
    try:
        line = next(line for line in daemon.stderr if "serving on" in line)
        status = subprocess.run(
            command("status"), cwd=tmp_path, env=env, capture_output=True, timeout=60, check=False
        )
    finally:
        deadline.cancel()
        daemon.terminate()
        daemon.communicate(timeout=60)
    assert f"state {tmp_path}/.local/state/relayd-demo " in line
    assert status.returncode == 0
    assert not (tmp_path / ".local/state/relayd").exists()


def test_the_lock_outlives_a_thread_that_still_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A disk that hangs at the stop: no other daemon may start until the process has ended."""
    disk_answers, states = threading.Event(), []

    async def stop(server: Server, *_: object) -> int:
        state = server._state
        states.append(state)
        state._writer.call(disk_answers.wait)
        assert not state.close(0.0)
        return 1

    monkeypatch.setattr(Server, "run", stop)
    monkeypatch.setenv("RELAYD_STATE_DIR", str(tmp_path / "state"))
    try:
        _refused(capsys)
        with pytest.raises(StateBusy):
            StateDirectory(tmp_path / "state")
    finally:
        disk_answers.set()
        for state in states:
            state._writer._thread.join(60)
            state.close()
