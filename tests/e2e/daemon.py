"""`relayd serve` as a process of its own, in a home of its own."""

from __future__ import annotations

import json
import os
import re
import secrets
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar, Self

from relayd.admin.client import AdminClient
from relayd.state.reader import LogReader
from relayd.state.records import Phase, RequestRecord
from relayd.state.sqlite import Sqlite
from tests.support.processes import children
from tests.support.upstream import fault_upstream_url
from tests.wire import HOST, PATIENCE_S, Reply, until

KEY = "the-key-of-the-end-to-end-tests"
PROVIDER_KEY = "provider-key-that-must-stay-inside"
_START_S = PATIENCE_S
_ALL_SERVE = re.compile(r"all \d+ workers serve")
_URL = re.compile(r"serving on https?://(127\.[0-9.]+):([0-9]+)")


class Daemon:
    """One daemon; start it with `start` or as a context manager, which also ends it.

    Args:
        home: an empty directory: working directory, HOME, and the place of the state.
        settings: configuration by dotted key; the port is free unless given, and the provider is a
            `FaultUpstream`.
        env: more environment; `AUTHORIZATION_KEY` is `KEY` unless it says otherwise, empty leaves it out.
    """

    workers: ClassVar[int] = 1
    """How many processes serve, unless the settings say it: pytest's `--workers`."""

    def __init__(
        self,
        home: Path,
        *,
        settings: Mapping[str, Any] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.home = home
        self.state_dir = home / "state"
        self._stderr = home / "stderr"
        self._env = {"AUTHORIZATION_KEY": KEY, "OPENAI_API_KEY": PROVIDER_KEY, **(env or {})}
        self.settings: dict[str, Any] = {
            "server.port": 0,
            "server.workers": self.workers,
            "state_dir": str(self.state_dir),
            **(settings or {}),
        }
        if "upstream.base_url" not in self.settings:
            self.settings["upstream.base_url"] = fault_upstream_url(PROVIDER_KEY)
        self._process: subprocess.Popen[bytes] | None = None
        self.host, self.port = HOST, 0

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process; it must have been started."""
        assert self._process is not None
        return self._process

    @property
    def is_running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """Its process id; with several workers, that of their supervisor."""
        return self.process.pid

    @property
    def worker_pids(self) -> list[int]:
        """The process ids of the workers, oldest first; if there is only one process, none."""
        return children(self.pid)

    @property
    def stderr(self) -> str:
        """Return what it wrote to stderr, in all its starts."""
        return self._stderr.read_text()

    @property
    def database(self) -> Path:
        """The file that holds its state."""
        return self.state_dir / "relayd.db"

    def configure(self, settings: Mapping[str, Any]) -> None:
        """Change the configuration file, by dotted key; a start or SIGHUP reads it."""
        self.settings |= settings
        (self.home / "relayd.toml").write_text(_toml(self.settings))

    def launch(self) -> None:
        """Start the process and wait for nothing."""
        self.configure({})
        with self._stderr.open("ab") as stderr:
            self._process = subprocess.Popen(
                command("serve"),
                cwd=self.home,
                env=environment(self.home, self._env),
                stdin=subprocess.DEVNULL,
                stderr=stderr,
            )

    def start(self) -> Self:
        """Start the process and wait until it accepts work."""
        known = self._stderr.stat().st_size if self._stderr.exists() else 0
        self.launch()
        serving = self._wait_for(_URL, known)
        self.host, self.port = serving[1], int(serving[2])
        if self.settings["server.workers"] > 1:
            self._wait_for(_ALL_SERVE, known)
        return self

    def _wait_for(self, line: re.Pattern[str], known: int) -> re.Match[str]:
        """Return the match in what it writes to stderr, after what was known."""
        deadline = time.monotonic() + _START_S
        while (found := line.search(self.stderr, known)) is None:
            assert self.process.poll() is None, f"the daemon ended at its start:\n{self.stderr}"
            assert time.monotonic() < deadline, f"the daemon does not serve:\n{self.stderr}"
            time.sleep(0.01)
        return found

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self.process.send_signal(number)

    def wait(self, timeout_s: float = 60.0) -> int:
        """Wait for its end; return the exit status."""
        return self.process.wait(timeout_s)

    def stop(self) -> int:
        """Stop it in an orderly way; return the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait(60)

    def kill(self) -> None:
        """End it at once with all its processes, as a crash of the machine would, unless it does not run."""
        if not self.is_running:
            return
        # Workers drain when their supervisor dies, and a supervisor replaces workers that die.
        self.process.send_signal(signal.SIGSTOP)
        workers = [os.pidfd_open(pid) for pid in self.worker_pids]
        for worker in workers:
            signal.pidfd_send_signal(worker, signal.SIGKILL)
        self.process.kill()
        self.process.wait(60)
        for worker in workers:
            # Readable when the process has ended (pidfd_open(2)); the workers are no children of this one.
            assert select.select([worker], [], [], 60)[0]
            os.close(worker)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def records(self) -> list[RequestRecord]:
        """Return all records on disk, newest first."""
        return LogReader(Sqlite(self.database)).page(limit=10_000).records

    @property
    def admin(self) -> AdminClient:
        """Return a client of its admin socket."""
        return AdminClient(self.state_dir / "admin.sock")

    async def record(self, reply: Reply) -> RequestRecord:
        """Return the record of a reply, once it is closed and on disk."""
        request_id = reply.header("X-Request-Id")
        assert request_id is not None
        reader = LogReader(Sqlite(self.database))
        await until(lambda: (record := reader.get(request_id)) is not None and record.phase is Phase.DONE)
        record = reader.get(request_id)
        assert record is not None
        return record


def command(*arguments: str) -> list[str]:
    """Return the command line of relayd."""
    return [sys.executable, "-m", "relayd", *arguments]


def environment(home: Path, more: Mapping[str, str]) -> dict[str, str]:
    """Return an environment in which only what is given can configure relayd."""
    passed_on = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    return {**passed_on, "HOME": str(home), **{name: value for name, value in more.items() if value}}


def _toml(settings: Mapping[str, Any]) -> str:
    """Settings by dotted key as relayd.toml; JSON's numbers, strings and lists are TOML's as well.

    A dict is a table, and a list of dicts is a list of tables.
    """
    tables: dict[str, list[str]] = {"": []}
    for name, value in settings.items():
        table, _, key = name.rpartition(".")
        tables.setdefault(table, []).append(f"{key} = {_toml_value(value)}")
    return "".join("\n".join([f"[{table}]"] * bool(table) + lines) + "\n" for table, lines in tables.items())


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return (
            f"{{ {', '.join(f'{json.dumps(name)} = {_toml_value(item)}' for name, item in value.items())} }}"
        )
    if isinstance(value, list):
        return f"[{', '.join(map(_toml_value, value))}]"
    return json.dumps(value)


def closed_port() -> int:
    """Return a port that nothing listens on, outside the range that the kernel gives to clients."""
    ephemeral_from = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        port = secrets.choice(range(10_000, max(ephemeral_from, 12_000)))
        with socket.socket() as sock, suppress(OSError):
            sock.bind((HOST, port))
            return port
