"""docs/deploy/postgresql/to-postgresql.sh, run as it stands, from a relay on SQLite to two on PostgreSQL."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psycopg
import pytest

from relayd.state.postgres import Postgres
from relayd.state.records import Phase
from tests.e2e.daemon import KEY, Daemon, environment
from tests.wire import DONE, PATIENCE_S, ask, body, eventually, until

pytestmark = pytest.mark.usefixtures("only_large")

_SCRIPT = Path(__file__).parents[2] / "docs/deploy/postgresql/to-postgresql.sh"
_CONTROL = """
import socket, sys
control = socket.socket(socket.AF_UNIX)
control.connect(sys.argv[1])
control.sendall(sys.argv[2].encode())
sys.exit(control.recv(1) != b"+")
"""
"""What STOP and START run: it asks the test, which has the daemon for its child, and waits for the answer."""


class Machine:
    """A machine with a relay, on which the script is run.

    Args:
        home: made, with all that is on the machine.
        settings: in its relayd.toml.
    """

    def __init__(self, home: Path, settings: dict[str, Any] | None = None) -> None:
        home.mkdir()
        self.config = home / "relay.toml"
        # The daemon writes ./relayd.toml at each start; what the script changes is a file of its own.
        self.daemon = Daemon(home, settings=settings, env={"RELAYD_CONFIG": str(self.config)})
        self.daemon.configure({})
        shutil.copy(home / "relayd.toml", self.config)
        self._home = home

    @contextmanager
    def on(self) -> Iterator[None]:
        """Let the script stop and start the daemon, which is killed in the end."""
        (self._home / "bin").mkdir()
        relayd = self._home / "bin" / "relayd"
        relayd.write_text(f'#!/bin/sh\nexec {sys.executable} -m relayd "$@"\n')
        relayd.chmod(0o755)
        with closing(socket.socket(socket.AF_UNIX)) as listener:
            listener.bind(f"{self._home}/control")
            listener.listen()
            thread = threading.Thread(target=self._obey, args=(listener,))
            thread.start()
            try:
                yield
            finally:
                listener.shutdown(socket.SHUT_RDWR)
                thread.join(PATIENCE_S)
                self.daemon.kill()

    def start(self) -> None:
        """Start its daemon, unless that runs."""
        if not self.daemon.is_running:
            self.daemon.start()

    def _obey(self, listener: socket.socket) -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                word = connection.recv(16)
                if word == b"stop" and self.daemon.is_running:
                    self.daemon.stop()
                elif word == b"start":
                    self.start()
                connection.sendall(b"+")

    async def run_script(self, mode: str, url: str) -> tuple[int, str]:
        """Run the script on this machine; return its exit status and what it said."""
        url_file = self._home / "state_url"
        url_file.write_text(f"{url}\n")
        url_file.chmod(0o600)
        control = [sys.executable, "-c", _CONTROL, f"{self._home}/control"]
        env = {
            "PATH": f"{self._home}/bin:{os.environ['PATH']}",
            "CONFIG": str(self.config),
            "STOP": shlex.join([*control, "stop"]),
            "START": shlex.join([*control, "start"]),
            "RELAYD_STATE_DIR": str(self.daemon.state_dir),
        }
        process = await asyncio.create_subprocess_exec(
            *("sh", str(_SCRIPT), mode, str(url_file)),
            env=environment(self._home, env),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said, _ = await asyncio.wait_for(process.communicate(), 3 * PATIENCE_S)
        assert process.returncode is not None
        return process.returncode, said.decode()

    async def answers(self, key: str = KEY) -> bool:
        """Return whether the key gets a whole answer."""
        reply = await ask(self.daemon.port, key, body("demo:deltas=3,interval_ms=0"))
        return reply.status == 200 and reply.lines[-1] == DONE

    async def kept(self) -> dict[str, Any]:
        """Return what must not be lost."""
        admin = self.daemon.admin
        found = {
            "keys": (await admin.keys()).keys,
            "clients": (await admin.clients()).clients,
            "usage": (await admin.usage("key", since="2026-01-01")).rows,
            "requests": (await admin.requests()).records,
            "audit": (await admin.audit()).entries,
        }
        builtins: dict[str, Any] = msgspec.to_builtins(found)
        for client in builtins["clients"]:
            for current in ("minute", "today", "month"):  # one may end while the relay is moved
                del client[current]
        return builtins


async def _add_key(machine: Machine, client: str) -> str:
    admin = machine.daemon.admin
    generation = (await admin.keys()).generation
    made = await admin.add_key(client, generation=generation, idempotency_key=client)
    assert made.secret is not None
    return made.secret


async def test_a_relay_moves_to_postgresql_and_a_second_machine_joins(
    tmp_path: Path, postgres_url: str
) -> None:
    """No key, client, usage or row of the log is lost, and both machines serve the same keys."""
    one = Machine(tmp_path / "one", {"state.stale_after_s": 120})
    two = Machine(tmp_path / "two")
    with one.on(), two.on():
        await asyncio.to_thread(one.start)
        web = await _add_key(one, "web")
        for key in (KEY, web, web):
            assert await one.answers(key)
        await until(lambda: [record.phase for record in one.daemon.records()] == [Phase.DONE] * 3)
        before = await one.kept()
        status, said = await one.run_script("move", postgres_url)
        assert status == 0, said
        assert "Copied and verified 2 clients, 2 keys, 3 requests" in said
        after = await one.kept()
        # Its stop and start are in the audit, too.
        assert after["audit"][-len(before["audit"]) :] == before["audit"]
        assert after | {"audit": []} == before | {"audit": []}
        assert await one.answers(web)

        status, said = await two.run_script("join", postgres_url)
        assert status == 0, said
        for machine in (one, two):
            assert await machine.answers(web)
            assert await machine.answers(KEY)
        late = await _add_key(two, "late")
        await eventually(lambda: one.answers(late))
        # Of the relay before the move, the same after it, and the second.
        await until(lambda: _processes_in_the_log(postgres_url) == 3)

        # By mistake: the relay must not go back to its SQLite file, with the keys of that day.
        moved = one.config.read_text()
        for mode in ("move", "join"):
            status, said = await one.run_script(mode, postgres_url)
            assert (status, "names a database already" in said) == (1, True), said
        assert one.config.read_text() == moved
        assert await one.answers(late)


def _processes_in_the_log(url: str) -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute("SELECT count(DISTINCT boot_id) FROM requests").fetchone()
    return row and row[0]


async def test_a_move_that_fails_leaves_the_relay_as_it_was(tmp_path: Path, postgres_url: str) -> None:
    """The database is another relay's: the configuration is as before, and so is what the relay serves."""
    with closing(Postgres(postgres_url)) as engine, closing(engine.open()):
        pass
    machine = Machine(tmp_path / "one")
    with machine.on():
        await asyncio.to_thread(machine.start)
        before = machine.config.read_text()
        status, said = await machine.run_script("move", postgres_url)
        assert status == 1
        assert "has the state of a relay already" in said
        assert said.endswith("Not moved; relayd runs as before.\n")
        assert machine.config.read_text() == before
        assert await machine.answers()
