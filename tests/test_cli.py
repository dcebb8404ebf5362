"""Behaviour of `relayd.cli`: usage, exit statuses, and quiet ends."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from relayd import __version__
from tests.admin.harness import admin_api
from tests.commands.harness import run
from tests.wire import PATIENCE_S

_RELAYD = [sys.executable, "-m", "relayd"]


def test_the_version_is_told() -> None:
    """`--version` needs no daemon."""
    assert run("--version").out == f"relayd {__version__}\n"


@pytest.mark.parametrize(("words", "says"), [((), "usage: relayd"), (("keys",), "usage: relayd keys")])
def test_without_a_command_the_help_is_shown(words: tuple[str, ...], says: str) -> None:
    """As with --help."""
    assert run(*words) == run(*words, "--help")
    assert run(*words).out.startswith(says)
    assert run(*words).status == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("frobnicate",), "frobnicate"),
        (("keys", "rotate"), "NAME"),
        (("keys", "rotate", "default", "--grace", "1"), "30s, 10m, 2h or 7d"),
        (("keys", "extend", "id"), "1h"),
        (("log", "--since", "5y"), "30s, 10m, 2h or 7d"),
        (("log", "--sinc", "5m"), "--sinc"),
        (("status", "extra"), "extra"),
        (("serve", "--socket", "x"), "--socket"),
    ],
)
def test_wrong_usage_is_2_and_says_what_is_meant(words: tuple[str, ...], says: str) -> None:
    """On stderr, with nothing on stdout; no option may be abbreviated."""
    ran = run(*words)
    assert (ran.status, ran.out) == (2, "")
    assert says in ran.err


@pytest.mark.parametrize(
    "words",
    [
        *("status", "keys list", "keys add web", "keys rotate web", "keys extend id 1h", "keys undo web"),
        *("clients list", "clients add web", "clients set web --note x", "clients remove web"),
        *("keys revoke id", "log", "log -f", "cancel id", "pause", "resume", "reload", "drain"),
    ],
)
@pytest.mark.parametrize("more", [(), ("--json",)])
def test_without_a_daemon_it_is_3_and_one_line_names_the_socket(
    words: str, more: tuple[str, ...], tmp_path: Path
) -> None:
    """Every command that asks the daemon, with and without --json."""
    ran = run(*words.split(), *more, "--socket", str(tmp_path / "none.sock"))
    assert (ran.status, ran.out) == (3, "")
    assert len(ran.err.splitlines()) == 1
    assert str(tmp_path / "none.sock") in ran.err


def test_the_socket_comes_from_the_environment_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the daemon's own configuration has it."""
    monkeypatch.setenv("RELAYD_ADMIN__SOCKET", str(tmp_path / "elsewhere.sock"))
    assert "elsewhere.sock" in run("status").err


async def test_a_reader_of_our_output_that_leaves_ends_us_in_silence(tmp_path: Path) -> None:
    """`relayd log | head -1`: no traceback, and the status of a death by SIGPIPE."""
    async with admin_api(tmp_path) as api:
        api.log(3000, user_agent="u" * 100)
        await api.logged(6001)
        program = [*_RELAYD, "log", "--since", "300d", "--json", "--socket", str(api.socket)]
        process = await asyncio.create_subprocess_exec(
            *program, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        assert process.stderr is not None
        await process.stdout.readline()
        process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]  # no public way
        told = await asyncio.wait_for(process.stderr.read(), 60)
        assert (await asyncio.wait_for(process.wait(), 60), told) == (141, b"")


@pytest.mark.parametrize(
    ("output", "told"),
    [
        (">&-", "Bad file descriptor. Send it to another file.\n"),
        ("> /dev/full", "No space left on device. Send it to another file.\n"),
        ("<&- >&- 2>&-", ""),
    ],
)
async def test_an_answer_that_cannot_be_written_is_a_failure_in_one_line(
    output: str, told: str, tmp_path: Path
) -> None:
    """A full disk, or streams that the shell has closed: 1, what happened, and no traceback."""
    async with admin_api(tmp_path) as api:
        process = await asyncio.create_subprocess_exec(
            *("bash", "-c", f"{sys.executable} -m relayd status --socket {api.socket} {output}"),
            stderr=asyncio.subprocess.PIPE,
        )
        _, error = await asyncio.wait_for(process.communicate(), PATIENCE_S)
        assert process.returncode == 1
        assert error.decode() == (told and f"relayd: The output could not be written: {told}")


@pytest.mark.parametrize("program", [["relayd", "log", "-f"], ["tui", "--plain"]], ids=" ".join)
async def test_a_reader_that_leaves_ends_following_at_once(program: list[str], tmp_path: Path) -> None:
    """`relayd log -f | head -1` ends with head, though nothing more happens in the log."""
    async with admin_api(tmp_path) as api:
        api.log(3)
        await api.logged(7)
        process = await asyncio.create_subprocess_exec(
            *[sys.executable, "-m", *program, "--socket", str(api.socket)],
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        await asyncio.wait_for(process.stdout.readline(), PATIENCE_S)
        process._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]  # no public way
        told = await asyncio.wait_for(process.stderr.read(), PATIENCE_S)
        assert await asyncio.wait_for(process.wait(), PATIENCE_S) in {1, 141}
        assert told == b""


async def test_ctrl_c_ends_following_in_silence(tmp_path: Path) -> None:
    """No traceback; 130, as shells expect."""
    async with admin_api(tmp_path) as api:
        api.log(1)
        await api.logged(3)
        process = await asyncio.create_subprocess_exec(
            *[*_RELAYD, "log", "-f", "--socket", str(api.socket)],
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        await asyncio.wait_for(process.stdout.readline(), 60)
        process.send_signal(signal.SIGINT)
        _, told = await asyncio.wait_for(process.communicate(), 60)
        assert (process.returncode, told) == (130, b"")


def test_a_command_imports_nothing_heavy(tmp_path: Path) -> None:
    """Asking a daemon is quick, and so is the app's first paint: no part of the server, no HTTP library."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *_RELAYD[1:], "status", "--socket", str(tmp_path / "none")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 3
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "relayd.admin.client" in loaded
    heavy = {"tornado", "pydantic", "openai", "httpx2", "aiohttp", "prometheus_client", "textual", "sqlite3"}
    assert heavy & loaded == set()


def test_building_the_parser_imports_nothing_heavy() -> None:
    """`relayd --help` is at hand at once."""
    program = (
        "import sys, relayd.cli\n"
        "try: relayd.cli.main(['--help'])\n"
        "except SystemExit: print('MODULES', *sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.partition("MODULES")[2].split())
    assert {"asyncio", "msgspec", "tornado", "pydantic", "openai"} & loaded == set()
