"""The daemon of a server, by a real ssh and sshd."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock, Mock, patch

import pytest

from relayd.admin.client import AdminClient, AnswerUnknown, Denied, NoDaemon, Unreachable
from tests.admin.harness import admin_api
from tests.support.programs import needs
from tests.support.ssh_server import SshServer
from tests.tui.tmux import Tmux, needs_tmux
from tests.wire import PATIENCE_S, until
from tui.host_link import HostClient, HostLink, connected
from tui.hosts import HERE, Host, HostError, known_hosts, remembered

needs_sshd = needs("ssh", "sshd")
VPS1 = Host("vps1")


@pytest.mark.parametrize(
    ("text", "host", "arguments", "server"),
    [
        ("vps1", Host("vps1"), ["vps1"], "vps1"),
        ("ada@vps1.example.org:2222", Host("ada@vps1.example.org", 2222), ["-p", "2222"], "vps1.example.org"),
        ("[2001:db8::1]:22", Host("[2001:db8::1]", 22), ["-p", "22"], "[2001:db8::1]"),
        ("ada@corp@vps1", Host("ada@corp@vps1"), ["ada@corp@vps1"], "vps1"),
    ],
)
def test_a_host_is_written_as_ssh_takes_it(text: str, host: Host, arguments: list[str], server: str) -> None:
    """User, name or address, and port; the header has the server alone."""
    assert Host.parse(text) == host
    assert host.arguments[: len(arguments)] == arguments
    assert host.server == server
    assert str(host) == text


@pytest.mark.parametrize(
    "text", ["", "-oProxyCommand=x", "a b", "vps1:0", "vps1:70000", "a@", "vps1/x", "2001::1"]
)
def test_what_is_no_host_is_refused(text: str) -> None:
    """Above all what ssh would take for an option."""
    with pytest.raises(ValueError, match=r"server|port"):
        Host.parse(text)


def test_known_hosts_are_each_there_once() -> None:
    """This machine, then those of the command line, then those of earlier runs, if they can be understood."""
    assert known_hosts([VPS1], ["vps2", "vps1", "no host"]) == [HERE, VPS1, Host("vps2")]
    assert remembered(VPS1, ["vps2", "vps1"]) == ["vps1", "vps2"]


@asynccontextmanager
async def link(server: SshServer, path: Path | str = "") -> AsyncIterator[HostClient]:
    """A client by ssh."""
    async with connected(VPS1, str(path), {**os.environ, "PATH": server.path}) as client:
        yield client


@needs_sshd
async def test_a_broken_link_and_a_daemon_that_restarts_are_told_apart_and_mended(tmp_path: Path) -> None:
    """A daemon that is down is named with its server; ssh that was killed is started again by itself."""
    server = SshServer(tmp_path / "ssh")
    path = tmp_path / "state/admin.sock"
    async with admin_api(tmp_path), link(server, path) as client:
        private = client.socket.parent
        assert private.stat().st_mode & 0o777 == 0o700
        first = (await client.status()).boot_id
        [ssh] = _children("ssh")
        os.kill(ssh, signal.SIGKILL)
        # Until ssh is back, each question says what is broken; none of them hangs.
        await until(lambda: ssh not in _children("ssh"))
        assert await _answered(client) == first
    async with link_to_stopped(server, tmp_path, path) as client:
        with pytest.raises(NoDaemon, match=f"No relayd answers at {path} on vps1"):
            await client.status()
        async with admin_api(tmp_path, boot_id="next"):
            assert await _answered(client) == "next"
    assert not private.exists()
    assert _children("ssh") == []


@asynccontextmanager
async def link_to_stopped(server: SshServer, home: Path, path: Path) -> AsyncIterator[HostClient]:
    """A client of a daemon that was there when ssh looked for its socket."""
    async with admin_api(home):
        way = link(server, path)
        client = await way.__aenter__()
    try:
        yield client
    finally:
        await way.__aexit__(None, None, None)


async def _answered(client: AdminClient) -> str:
    """Ask until there is an answer; returns the boot id."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            try:
                return (await client.status()).boot_id
            except (Unreachable, NoDaemon):
                await asyncio.sleep(0.01)


def _children(name: str, parent: int | None = None) -> list[int]:
    """The processes of this name that a process has started, this one unless it is given."""
    parent = parent or os.getpid()
    pids = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    return [int(pid) for pid in pids if Path(f"/proc/{pid}/comm").read_text().strip() == name]


@needs_sshd
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"options": {"AllowStreamLocalForwarding": "no"}},
            "Set `AllowStreamLocalForwarding yes` in its sshd_config",
        ),
        (
            {"options": {"AuthorizedKeysFile": "none"}},
            "did not let you in. Check user name and key: ssh vps1",
        ),
        ({"options": {"ForceCommand": "true"}}, "needs a shell there"),
        (
            {"is_known": False, "client_options": {"StrictHostKeyChecking": "yes"}},
            "Look at the key once: ssh vps1",
        ),
        ({"client_options": {"ProxyCommand": "none", "Hostname": "::bad::"}}, "Check the name"),
    ],
    ids=["forwarding forbidden", "not let in", "no shell", "host key", "no such host"],
)
async def test_a_server_that_can_not_be_used_says_why(
    tmp_path: Path, options: Mapping[str, Any], says: str
) -> None:
    """The sentence names the server and what to do."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "admin.sock"))
        listening.listen()
        with pytest.raises(HostError) as caught:
            async with link(SshServer(tmp_path / "ssh", **options), tmp_path / "admin.sock"):
                pass
    assert says in str(caught.value)
    assert "vps1" in str(caught.value)


@needs_sshd
async def test_a_server_without_relayd_and_a_machine_without_ssh_say_so(tmp_path: Path) -> None:
    """Each with what to do."""
    with pytest.raises(HostError, match=r"There is no relayd on vps1: .* name its socket: --socket PATH"):
        async with link(SshServer(tmp_path / "ssh"), tmp_path / "admin.sock"):
            pass
    with pytest.raises(HostError, match="apt install openssh-client"):
        async with connected(VPS1, "", {"PATH": str(tmp_path)}):
            pass


async def test_a_change_that_was_sent_is_not_taken_for_one_that_the_server_refused() -> None:
    """Only the one connection that is open can be the one that was refused; else the outcome is unknown."""
    way = HostLink(VPS1, "", {})
    way.path = "/run/relayd/admin.sock"
    expected = 0
    open_ones: list[asyncio.StreamWriter] = []

    async def refuse(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        open_ones.append(writer)
        if len(open_ones) == expected:
            way.failures += 1
            while open_ones:
                open_ones.pop().close()

    client = HostClient(way)
    server = await asyncio.start_unix_server(refuse, way.socket)
    with (
        patch.object(HostLink, "ready", AsyncMock()),
        patch.object(HostLink, "_runs", return_value=True),
        patch.object(HostLink, "_ask", AsyncMock(return_value=["stale", way.path])),
    ):
        expected = 1
        with pytest.raises(NoDaemon):
            await client.pause()
        expected = 2
        told = await asyncio.gather(client.status(), client.pause(), return_exceptions=True)
    assert [type(one) for one in told] == [NoDaemon, AnswerUnknown]
    server.close()
    await way.close()


async def test_what_a_server_says_of_itself_can_not_reach_the_terminal_as_codes() -> None:
    """Names of owners and paths come from there."""
    way = HostLink(VPS1, "", {})
    answer = ["denied", "me", "-rw-", "\x1b]0;x\x07", "root", "/x"]
    with (
        patch.object(HostLink, "_runs", return_value=True),
        patch.object(HostLink, "_ask", AsyncMock(side_effect=[answer, answer[:2]])),
    ):
        way.failures = 1
        for _ in range(2):
            told = await way.explain(NoDaemon(""), 0, is_only=True)
            assert isinstance(told, Denied)
            assert "You are me on vps1" in str(told)
            assert str(told).isprintable()
    await way.close()


async def test_what_ssh_leaves_behind_does_not_hold_the_app(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy command may keep ssh's pipes: asyncio then waits for them, long after the end of ssh."""
    monkeypatch.setattr("tui.host_link.END_WITHIN_S", 0.01)
    forever = asyncio.Event()
    ssh = Mock(returncode=None, wait=forever.wait)
    ssh.stderr.readline = forever.wait
    ssh.stdout.read = lambda _: forever.wait()
    ssh.terminate = lambda: setattr(ssh, "returncode", -signal.SIGTERM)
    way = HostLink(VPS1, "", {})
    async with asyncio.timeout(PATIENCE_S):
        with (
            patch.object(HostLink, "_start", AsyncMock(return_value=ssh)),
            patch.object(HostLink, "_ask", AsyncMock(side_effect=HostError("no"))),
            pytest.raises(HostError, match="no"),
        ):
            await way.connect(may_ask=False)
        await way.close()
    ssh.kill.assert_not_called()


def test_a_shell_that_floods_is_named_and_left_without_a_trace(tmp_path: Path) -> None:
    """Its output was never read to the end, and the event loop told of that after its own end."""
    ssh = tmp_path / "ssh"
    ssh.write_text(f"#!/bin/sh\nseq {200_000}\nexec sleep {PATIENCE_S:.0f}\n")
    ssh.chmod(0o755)

    async def connect() -> None:
        async with connected(VPS1, "", {"PATH": f"{tmp_path}:{os.environ['PATH']}"}):
            pass

    untold = Mock()
    with patch("sys.unraisablehook", untold), pytest.raises(HostError, match="start-up files") as caught:
        asyncio.run(connect())
    del caught
    gc.collect()
    untold.assert_not_called()


@needs_tmux
@needs_sshd
async def test_switching_between_a_server_and_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the app is there, ssh asks; a lost link that needs its passphrase says so; no data is mixed.

    A server that was shown before can be forgotten.
    """
    server = SshServer(tmp_path / "ssh", is_known=False, passphrase="of the key")
    monkeypatch.setenv("PATH", server.path)
    home, local, remote = (tmp_path / name for name in ("home", "local", "remote"))
    (home / ".local/state").mkdir(parents=True)
    (home / ".local/state/relayd").symlink_to(local / "state")
    (home / ".config/relayd").mkdir(parents=True)
    (home / ".config/relayd/tui.json").write_text('{"hosts": ["gone.example"]}')
    for directory in (local, remote):
        directory.mkdir()
    arguments = ("--host", "vps1", "--socket", str(remote / "state/admin.sock"))
    async with admin_api(local) as here, admin_api(remote) as there:
        here.log(5)
        there.log(3)
        with Tmux(arguments, home, (80, 24)) as terminal:
            await terminal.until("Are you sure you want to continue connecting")
            terminal.type("yes\n")
            await _enter_passphrase(terminal, 1)
            await _shows(terminal, "vps1", "3 records")
            [ssh] = _children("ssh", terminal.pid)
            os.kill(ssh, signal.SIGKILL)
            await terminal.until(lambda screen: "DENIED" in screen and "press H and choose vps1" in screen)
            terminal.press("H")
            await terminal.until("(•) vps1 (now)")
            terminal.press("Right")
            await terminal.until("(•) gone.example")
            terminal.press("DC")
            await terminal.until(lambda screen: "gone" not in screen and "(•) vps1 (now)" in screen)
            terminal.press("Enter")
            await _enter_passphrase(terminal, 2)
            await _shows(terminal, "vps1", "3 records")
            terminal.press("H")
            await terminal.until("(•) vps1 (now)")
            terminal.press("Left", "Enter")
            await _shows(terminal, socket.gethostname()[:20].split(".")[0], "5 records")
            await until(lambda: _children("ssh", terminal.pid) == [])
            terminal.press("H")
            await terminal.until("(•) this machine (now)")
            terminal.press("Tab")
            terminal.type("vps1")
            terminal.press("Enter")
            await _asks_passphrase(terminal, 3)
            terminal.press("C-c")
            await _shows(terminal, "ssh to vps1", "5 records")
            terminal.press("Q")
            await terminal.ended()
    assert json.loads((home / ".config/relayd/tui.json").read_text())["hosts"] == ["vps1"]


async def _enter_passphrase(terminal: Tmux, asked: int) -> None:
    await _asks_passphrase(terminal, asked)
    terminal.type("of the key\n")


async def _asks_passphrase(terminal: Tmux, asked: int) -> None:
    """Wait until ssh has asked so often; what it asked before stands there too."""
    await terminal.until(lambda screen: screen.count("Enter passphrase for key") == asked)


async def _shows(terminal: Tmux, *texts: str) -> None:
    """Wait until the app is on a daemon, and shows all of these."""
    await terminal.until(lambda screen: all(text in screen for text in ("● LIVE", *texts)))
