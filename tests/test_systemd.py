"""`relayd.systemd`: the daemon as systemd starts it, with a socket, a notify socket and a watchdog."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from relayd.systemd import ServiceManager, SystemdError, inherited_sockets
from tests.e2e.daemon import KEY, PROVIDER_KEY, environment
from tests.wire import HOST, ask, body

# As systemd does it: the socket as descriptor 3, and the process id of who is to take it.
_LAUNCH = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "relayd", "serve", *sys.argv[2:]])
"""
_PATIENCE_S = 60.0


class Manager:
    """The receiving end of sd_notify."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind("\0" + address[1:] if address.startswith("@") else address)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    async def message(self) -> list[str]:
        """The lines of the next datagram."""
        loop = asyncio.get_running_loop()
        return (await asyncio.wait_for(loop.sock_recv(self._socket, 4096), _PATIENCE_S)).decode().split("\n")

    def heard(self) -> bytes:
        """A datagram that has come already; BlockingIOError where none has."""
        return self._socket.recv(4096)

    def forget(self) -> None:
        """Drop what has come already."""
        with suppress(BlockingIOError):
            while self.heard():
                pass

    async def until(self, line: str) -> list[str]:
        """The next datagram that holds this line."""
        while line not in (message := await self.message()):
            pass
        return message


@contextmanager
def _listening() -> Iterator[socket.socket]:
    with socket.create_server((HOST, 0)) as listening:
        yield listening


@contextmanager
def started(
    home: Path, listening: socket.socket, env: Mapping[str, str], *options: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a daemon as a service manager does; end it on leaving. Its stderr is added to `home/stderr`."""
    known = {"AUTHORIZATION_KEY": KEY, "OPENAI_API_KEY": PROVIDER_KEY, "LISTEN_FDS": "1"}
    with (home / "stderr").open("ab") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-c", _LAUNCH, str(listening.fileno()), *options],
            cwd=home,
            env=environment(home, known | dict(env)),
            stdin=subprocess.DEVNULL,
            stderr=stderr,
            pass_fds=[listening.fileno()],
        )
    try:
        yield process
    finally:
        process.kill()
        process.wait(_PATIENCE_S)


async def test_it_serves_on_the_socket_that_systemd_passes_and_says_when(tmp_path: Path) -> None:
    """READY when requests are answered, on the inherited socket alone; signs of life; STOPPING in the end."""
    address = f"@relayd-test-{os.getpid()}"
    env = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "300000"}
    with Manager(address) as manager, _listening() as listening:
        port = listening.getsockname()[1]
        with started(tmp_path, listening, env, "--demo") as process:
            ready = await manager.message()
            assert ready == ["READY=1", f"STATUS=serving on http://{HOST}:{port}"]
            assert (await ask(port, KEY, body("demo:interval_ms=0"))).status == 200
            await manager.until("WATCHDOG=1")
            process.send_signal(signal.SIGTERM)
            stopping = await manager.until("STOPPING=1")
            assert stopping[2] == "EXTEND_TIMEOUT_USEC=45000000"
            assert await asyncio.to_thread(process.wait, _PATIENCE_S) == 0
    assert f"serving on http://{HOST}:{port}" in (tmp_path / "stderr").read_text()


async def test_a_port_that_the_socket_unit_overrides_is_told(tmp_path: Path) -> None:
    """What is configured and not in force, where the daemon listens instead, and how to change that."""
    path = str(tmp_path / "notify")
    env = {"NOTIFY_SOCKET": path, "SERVER_PORT": "4000", "RELAYD_SERVER__HOST": HOST}
    with Manager(path) as manager, _listening() as listening:
        port = listening.getsockname()[1]
        with started(tmp_path, listening, env, "--demo"):
            await manager.until("READY=1")
        told = (tmp_path / "stderr").read_text()
        assert (
            "server.port 4000 (environment SERVER_PORT) is not in force: systemd listens for relayd, "
            f"at {HOST} port {port}." in told
        )
        assert "init --system" in told
        assert "server.host" not in told
        with started(tmp_path, listening, env | {"SERVER_PORT": str(port)}, "--demo"):
            await manager.until("READY=1")
        assert (tmp_path / "stderr").read_text().count("not in force") == 1


async def test_a_client_that_comes_during_a_restart_waits_and_is_served(tmp_path: Path) -> None:
    """The socket outlives the daemon: who connects between two runs is answered by the second."""
    path = str(tmp_path / "notify")
    with Manager(path) as manager, _listening() as listening:
        port = listening.getsockname()[1]
        with started(tmp_path, listening, {"NOTIFY_SOCKET": path}, "--demo") as process:
            await manager.until("READY=1")
            process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(process.wait, _PATIENCE_S) == 0
        waiting = asyncio.create_task(ask(port, KEY, body("demo:interval_ms=0")), name="early client")
        with started(tmp_path, listening, {"NOTIFY_SOCKET": path}, "--demo"):
            assert (await waiting).status == 200


async def test_the_loop_itself_gives_the_signs_of_life() -> None:
    """Pings come again and again while the loop turns, and end with the service."""
    address = f"@relayd-test-{os.getpid()}"
    with Manager(address) as manager:
        service = ServiceManager.from_environment({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "60000"})
        service.ready("here")
        assert await manager.message() == ["READY=1", "STATUS=here"]
        for _ in range(4):
            assert await manager.message() == ["WATCHDOG=1"]
        service.close()
        manager.forget()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(manager.message(), 0.1)


async def test_a_blocked_loop_gives_no_sign_of_life() -> None:
    """While the loop stands still for several periods, systemd hears nothing, and may act."""
    address = f"@relayd-test-blocked-{os.getpid()}"
    with Manager(address) as manager:
        service = ServiceManager.from_environment({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "60000"})
        service.ready("here")
        await manager.until("WATCHDOG=1")
        manager.forget()
        time.sleep(0.3)  # noqa: ASYNC251 - to block the loop is the test
        with pytest.raises(BlockingIOError):
            manager.heard()
        assert await manager.message() == ["WATCHDOG=1"]
        service.close()


@pytest.mark.parametrize("env", [{}, {"WATCHDOG_USEC": "1000"}, {"NOTIFY_SOCKET": "@nobody-listens-here"}])
async def test_without_systemd_nothing_is_said_and_nothing_breaks(env: dict[str, str]) -> None:
    """Where nobody listens, the daemon goes on."""
    service = ServiceManager.from_environment(env)
    service.ready("here")
    service.stopping(1)
    service.close()


@pytest.mark.parametrize(
    "env",
    [{}, {"LISTEN_FDS": "1"}, {"LISTEN_PID": "1", "LISTEN_FDS": "1"}, {"LISTEN_PID": "", "LISTEN_FDS": "1"}],
)
def test_descriptors_meant_for_another_process_are_left_alone(env: dict[str, str]) -> None:
    """Without LISTEN_PID of its own a process takes nothing (sd_listen_fds(3))."""
    assert inherited_sockets(env) == []


@pytest.mark.parametrize("number", ["", "x", "-1"])
def test_a_wrong_number_of_descriptors_is_refused_in_words(number: str) -> None:
    """The sentence names the variable."""
    with pytest.raises(SystemdError, match="LISTEN_FDS"):
        inherited_sockets({"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": number})


async def test_a_socket_of_another_kind_is_refused_in_words(tmp_path: Path) -> None:
    """A datagram socket where a listening one should be stops the start with a sentence, not a traceback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wrong:
        wrong.bind((HOST, 0))
        with started(tmp_path, wrong, {}, "--demo") as process:
            assert await asyncio.to_thread(process.wait, _PATIENCE_S) == 1
    said = (tmp_path / "stderr").read_text()
    assert "does not listen on TCP" in said
    assert "Traceback" not in said
