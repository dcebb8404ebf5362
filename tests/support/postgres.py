"""PostgreSQL from Debian, started by the tests on a Unix socket in a temporary directory."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import LiteralString, Self

import psycopg
from psycopg import sql

from tests.support.processes import children, state
from tests.support.programs import PATH, require
from tests.wire import PATIENCE_S, wait_until

_SETTINGS = {
    "listen_addresses": "",
    "unix_socket_permissions": "0777",
    # What the kernel has survives every crash but the machine's own.
    "fsync": "off",
    "full_page_writes": "off",
    # Under the data directory: a container's /dev/shm is small.
    "dynamic_shared_memory_type": "mmap",
    # Neither ours nor UTC, so that a test notices where the server's is used.
    "timezone": "Asia/Kathmandu",
}
_GUARD = 'read -r _; pid=$(head -n 1 data/postmaster.pid 2>/dev/null) && kill -KILL $pid; rm -rf "$PWD"'
"""Runs when the tests are over, however they end: its input is a pipe from them."""


class Postgres:
    """One server (a "cluster" in PostgreSQL's words), with the role `relayd`, which owns the databases.

    Databases sort and fold text as an English ICU locale does, as many an operator's database does.

    Args:
        directory: where its files are made; None for a temporary directory.
        settings: for postgresql.conf, beside or instead of those of all tests (`fsync` is off).
    """

    def __init__(self, directory: Path | None = None, settings: Mapping[str, str] | None = None) -> None:
        require("postgres")
        self._make_directory(directory)
        self._run(
            "initdb",
            *("-D", self._data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"),
            *("--locale=C.UTF-8", "--locale-provider=icu", "--icu-locale=en-US"),
        )
        self._set({"unix_socket_directories": str(self.directory)} | _SETTINGS | dict(settings or {}))
        self.start()
        self.execute("CREATE ROLE relayd LOGIN")

    @classmethod
    def _standby_of(cls, primary: Postgres) -> Self:
        standby = cls.__new__(cls)
        standby._make_directory(None)
        standby._numbers = primary._numbers
        standby._run(
            "pg_basebackup",
            *("-D", standby._data, "-h", primary.directory, "-U", "postgres", "-R", "-X", "stream"),
            *("-c", "fast", "--no-sync"),
        )
        standby._set({"unix_socket_directories": str(standby.directory)})
        standby.start()
        return standby

    def _make_directory(self, parent: Path | None) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="relayd-pg-", dir=parent))
        """Of the Unix socket: the `host` of a client."""
        self.directory.chmod(0o755)
        self._data = self.directory / "data"
        self._numbers = count(1)
        self._server: subprocess.Popen[bytes] | None = None
        self._as_user: list[str] = []
        if os.geteuid() == 0:  # which PostgreSQL refuses to run as
            names = {entry.pw_name for entry in pwd.getpwall()}
            user = pwd.getpwnam("postgres" if "postgres" in names else "nobody")
            os.chown(self.directory, user.pw_uid, user.pw_gid)
            self._as_user = ["setpriv", f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups"]
        self._guard = subprocess.Popen(
            ["sh", "-c", _GUARD],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd=self.directory,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the server and remove its files."""
        self.kill()
        shutil.rmtree(self.directory)
        self._guard.communicate(timeout=PATIENCE_S)

    # -- its life ----------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the server and wait until it takes connections; nothing if it runs."""
        if self.is_running:
            return
        with (self.directory / "log").open("ab") as log:
            self._server = subprocess.Popen(
                [*self._as_user, _path("postgres"), "-D", self._data],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                start_new_session=True,
            )
        wait_until(self._answers)

    def _answers(self) -> bool:
        assert self.is_running, f"PostgreSQL did not start:\n{self.log}"
        try:
            self.execute("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    @property
    def is_running(self) -> bool:
        """Whether the server runs, frozen or not."""
        return self._server is not None and self._server.poll() is None

    @property
    def log(self) -> str:
        """What the server wrote."""
        return (self.directory / "log").read_text(errors="replace")

    def stop(self) -> None:
        """Stop the server as its service does: open transactions are undone, clients told."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """Kill the server and its processes at once, as the kernel does when memory runs out."""
        if not self.is_running:
            return
        # The first of them first, which would start the others again.
        processes = self._processes()
        for pid in processes:
            _signal(pid, signal.SIGKILL)
        self._end(signal.SIGKILL)
        wait_until(lambda: all(state(pid) in "ZX" for pid in processes))

    def restart(self) -> None:
        """Stop the server and start it again."""
        self.stop()
        self.start()

    def freeze(self) -> None:
        """Stop all of the server's processes with SIGSTOP: the kernel still takes connections for it."""
        _signal(self._server_pid, signal.SIGSTOP)
        wait_until(lambda: state(self._server_pid) == "T")
        processes = self._processes()
        for pid in processes:
            _signal(pid, signal.SIGSTOP)
        wait_until(lambda: all(state(pid) in "TZX" for pid in processes))

    def thaw(self) -> None:
        """Let a frozen server go on; nothing if it is not frozen."""
        for pid in reversed(self._processes()):
            _signal(pid, signal.SIGCONT)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Freeze the server for the duration of a block."""
        self.freeze()
        try:
            yield
        finally:
            self.thaw()

    def _end(self, how: signal.Signals) -> None:
        if self._server is not None:
            _signal(self._server.pid, how)
            self._server.wait(PATIENCE_S)

    @property
    def _server_pid(self) -> int:
        assert self._server is not None
        return self._server.pid

    def _processes(self) -> list[int]:
        """Return the server's processes, the first of them first."""
        if not self.is_running:
            return []
        return [self._server_pid, *children(self._server_pid)]

    # -- standby -----------------------------------------------------------------------------------

    def standby(self) -> Postgres:
        """Start a standby; from now on this server acknowledges a commit when both have it.

        Not for the server that tests share: without its standby it would acknowledge none.
        """
        standby = Postgres._standby_of(self)
        self.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
        self.execute("SELECT pg_reload_conf()")
        wait_until(lambda: self.execute("SELECT sync_state FROM pg_stat_replication") == [("sync",)])
        return standby

    def promote(self) -> None:
        """Make a standby the primary, which needs no standby of its own."""
        self._run("pg_ctl", "-D", self._data, "-w", "-s", "promote")
        self.execute("ALTER SYSTEM SET synchronous_standby_names = ''")
        self.execute("SELECT pg_reload_conf()")

    # -- databases ---------------------------------------------------------------------------------

    def url(self, database: str = "postgres", user: str = "relayd", *, other: Postgres | None = None) -> str:
        """Return the URL of a database.

        Args:
            database: its name.
            user: `relayd`, or `postgres` for the server's superuser.
            other: a server that also has the database; of both, the one that takes writes is used.
        """
        if other is None:
            return f"postgresql://{user}@/{database}?host={self.directory}&port=5432"
        hosts = f"host={self.directory},{other.directory}&port=5432,5432"
        return f"postgresql://{user}@/{database}?{hosts}&target_session_attrs=read-write"

    def create_database(self, template: str = "template1") -> str:
        """Create a database, empty or a copy of another one, and return its name."""
        name = f"test{next(self._numbers)}"
        self.execute("CREATE DATABASE {} OWNER relayd TEMPLATE {}", name, template)
        return name

    def drop_database(self, name: str) -> None:
        """Remove a database, also from under its clients; nothing if there is none of that name."""
        self.execute("DROP DATABASE IF EXISTS {} WITH (FORCE)", name)

    def execute(
        self, statement: LiteralString, *identifiers: str, database: str = "postgres"
    ) -> list[tuple[object, ...]]:
        """Run one statement as the superuser and return its rows."""
        query = sql.SQL(statement).format(*map(sql.Identifier, identifiers))
        with psycopg.connect(self.url(database, "postgres"), autocommit=True) as connection:
            cursor = connection.execute(query)
            return cursor.fetchall() if cursor.description else []

    def _set(self, settings: Mapping[str, str]) -> None:
        with (self._data / "postgresql.conf").open("a") as file:
            file.writelines(f"{name} = '{value}'\n" for name, value in settings.items())

    def _run(self, program: str, *arguments: str | Path) -> None:
        done = subprocess.run(
            [*self._as_user, _path(program), *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=self.directory,
            timeout=PATIENCE_S,
            check=False,
        )
        assert done.returncode == 0, f"{program} failed:\n{done.stdout}"


def _path(program: str) -> str:
    found = shutil.which(program, path=PATH)
    assert found is not None, program
    return found


def _signal(pid: int, number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)
