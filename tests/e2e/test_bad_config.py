"""A configuration that cannot work ends the real process with one clear sentence for each fault."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from relayd.cli import main
from relayd.config import load
from tests.e2e.daemon import KEY, PROVIDER_KEY, command, environment
from tests.wire import HOST

_DOCS = Path(__file__).parents[2] / "docs" / "configuration.md"
_CONSOLE = re.compile(r"^\*\*(\d+\. [^*]+)\*\*\n\n```console\n(.*?)```$", re.MULTILINE | re.DOTALL)
_RUN = re.compile(r"\$ ((?:[A-Z_]+=\S* )*)relayd check\n")


def _documented_faults() -> Iterator[tuple[str, str]]:
    """The ten faults of the docs: a name, and what a console shows."""
    yield from _CONSOLE.findall(_DOCS.read_text())


def _relayd(home: Path, *arguments: str, env: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        cwd=home,
        env=environment(home, env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_the_docs_tell_ten_faults() -> None:
    """None is lost by how they are found here."""
    assert len(list(_documented_faults())) == 10


@pytest.mark.parametrize(("name", "console"), _documented_faults())
def test_a_fault_ends_the_check_as_the_docs_show(
    tmp_path: Path,
    name: str,
    console: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """`relayd check` prints exactly that on stderr, and exits 1; run here, ten processes being dear."""
    shown, _, expected = console.partition("relayd check\n")
    assert expected, name
    for file in re.finditer(r"\$ cat (\S+)\n((?:(?!\$ ).*\n)*)", shown):
        (tmp_path / file[1]).write_text(file[2])
    run = _RUN.search(console)
    assert run is not None
    env = dict(pair.split("=", 1) for pair in run[1].split())
    monkeypatch.chdir(tmp_path)
    for known in os.environ:
        monkeypatch.delenv(known)
    for variable, value in environment(tmp_path, env).items():
        monkeypatch.setenv(variable, value)
    assert main(["check"]) == 1
    assert capsys.readouterr().err == expected


def test_all_faults_end_the_start_at_once(tmp_path: Path) -> None:
    """`relayd serve` tells every fault of every source, exits 1, and has made and opened nothing."""
    (tmp_path / "relayd.toml").write_text("[server]\nport = 70000\nprot = 1\n\n[keys]\ngrace_s = '1h'\n")
    env = {"RELAYD_LOG__LEVEL": "loud", "OPENAI_API_KEY": PROVIDER_KEY, "AUTHORIZATION_KEY": KEY}
    served = _relayd(tmp_path, "serve", env=env)
    assert served.returncode == 1
    assert served.stdout == ""
    level, port, unknown, grace = sorted(served.stderr.splitlines())
    assert level.startswith('environment: RELAYD_LOG__LEVEL (log.level) is "loud", but must be ')
    assert port.startswith("relayd.toml:2: server.port is 70000, but must be ")
    assert unknown == "relayd.toml:3: unknown key server.prot; did you mean server.port?"
    assert grace.startswith('relayd.toml:6: keys.grace_s is "1h", but must be ')
    assert [path.name for path in tmp_path.iterdir()] == ["relayd.toml"]


def test_a_provider_key_is_needed(tmp_path: Path) -> None:
    """Without one, the sentence names the ways to give it, and the demo."""
    served = _relayd(tmp_path, "serve", env={"AUTHORIZATION_KEY": KEY})
    assert served.returncode == 1
    assert served.stderr.startswith("provider key: it is missing; set OPENAI_API_KEY or openai_api_key_file")
    assert "relayd serve --demo" in served.stderr
    assert "Traceback" not in served.stderr


@pytest.mark.parametrize("option", ["--demo", "--demo-without-key"])
def test_a_demo_does_not_use_the_database_of_real_relays(tmp_path: Path, option: str) -> None:
    """They would accept its keys; it is said how to start it apart, and that works."""
    (tmp_path / "relayd.toml").write_text('[state]\nurl = "postgresql://relayd@127.0.0.1:1/relayd"\n')
    served = _relayd(tmp_path, "serve", option, env={})
    assert served.returncode == 1
    assert served.stderr.startswith("demo: it would share keys")
    assert "Traceback" not in served.stderr
    env = dict.fromkeys(re.findall(r"(RELAYD_STATE__\w+)=", served.stderr), "")
    assert sorted(env) == ["RELAYD_STATE__URL", "RELAYD_STATE__URL_FILE"]
    settings = load(cli={}, config_path=None, env={"HOME": str(tmp_path), **env}, cwd=tmp_path)
    assert settings.state.url.get_secret_value() == ""


def test_a_port_must_be_free(tmp_path: Path) -> None:
    """The sentence names host and port and what the system said; the state is left alone."""
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        served = _relayd(tmp_path, "serve", "--demo", env={"SERVER_PORT": port, "AUTHORIZATION_KEY": KEY})
    assert served.returncode == 1
    assert served.stderr.startswith(f"relayd cannot listen on {HOST} port {port}: ")
    assert "Traceback" not in served.stderr
    assert not (tmp_path / ".local").exists()


def test_a_mistyped_relayd_key_is_told_at_once(tmp_path: Path) -> None:
    """A key that looks like relayd's own, cut short: the start is refused, and the key is not repeated."""
    cut = "rly_AAAAAAAA_" + "B" * 30
    served = _relayd(tmp_path, "serve", "--demo", env={"SERVER_PORT": "0", "AUTHORIZATION_KEY": cut})
    assert served.returncode == 1
    assert served.stderr.startswith("AUTHORIZATION_KEY ")
    assert "mistyped" in served.stderr
    assert "Traceback" not in served.stderr
    assert cut not in served.stderr
