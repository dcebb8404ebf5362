"""The admin API in the test's own loop: a real socket, a real database, no process."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from typing_extensions import override

from relayd.admin.client import AdminClient
from relayd.admin.context import AdminContext, AlertOptions, Limits
from relayd.admin.events import EventBus
from relayd.admin.metrics import Metrics
from relayd.admin.schema import DaemonFacts
from relayd.admin.server import AdminServer
from relayd.admin.unix_socket import open_admin_socket
from relayd.alerts.alert import AlertBook
from relayd.alerts.conditions import Thresholds
from relayd.config import load
from relayd.relay.accepting import Accepting
from relayd.relay.active_streams import ActiveStreams
from relayd.reload import ConfigReloader
from relayd.state.directory import StateDirectory
from relayd.state.records import Outcome, Phase, RequestRecord, utc_text
from relayd.state.state import State
from relayd.systemd import ServiceManager
from tests.harness import KEY, Relay, running_relay
from tests.state.harness import BorrowedDirectory, patient_url
from tests.wire import PATIENCE_S, Reply, Wire, body, post, until

NOON_S = 1_800_000_000.0


def _any_disk() -> AlertOptions:
    """Return the usual thresholds, but for the disk: that of the tests may be nearly full."""
    return AlertOptions(thresholds=Thresholds(disk_free_mib=0))


@dataclass(slots=True)
class AdminHarness:
    """An admin API, the daemon's parts behind it, and a client."""

    socket: Path
    client: AdminClient
    state: State
    accepting: Accepting
    event_bus: EventBus
    close: Callable[[], Coroutine[Any, Any, None]]
    """Stops the admin API alone."""
    alerts: AlertBook
    stopped: list[bool] = field(default_factory=list)
    """One entry for each time that the daemon was asked to stop."""

    def log(self, count: int, prefix: str = "r", **fields: Any) -> None:
        """Put requests into the log, started and ended."""
        log_requests(self.state, count, prefix, **fields)

    async def logged(self, seq: int) -> None:
        """Wait until the log has come to this place."""
        await until(lambda: self.event_bus.newest_seq >= seq)

    async def metric(self, name: str) -> float:
        """Return one sample of `GET /metrics` without labels."""
        lines = (await self.client.metrics()).splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith(f"{name} "))


def log_requests(state: State, count: int, prefix: str, **fields: Any) -> None:
    """Put requests into a log, started and ended; they completed unless the fields say another end."""
    end = {"phase": Phase.DONE, "outcome": Outcome.COMPLETED, "status": 200}
    for n in range(count):
        record = new_record(f"{prefix}{n:06}", **fields)
        state.log.started(record)
        for name, value in end.items():
            setattr(record, name, fields.get(name, value))
        state.log.ended(record)


def new_record(request_id: str, **fields: Any) -> RequestRecord:
    """Return the record of a request that has just begun."""
    given = {"boot_id": "boot", "started_at": utc_text(time.time()), "ip": "192.0.2.1", "path": "/chat"}
    return RequestRecord(id=request_id, **{**given, **fields})


@asynccontextmanager
async def admin_api(  # noqa: PLR0913 - each is a fact of its own, by name
    home: Path,
    *,
    boot_id: str = "boot",
    keep_days: int = 30,
    event_write_timeout_s: float = 10.0,
    clock: Callable[[], float] = time.time,
    alert_options: Callable[[], AlertOptions] = _any_disk,
    shared: StateDirectory | None = None,
    worker: int | None = None,
) -> AsyncIterator[AdminHarness]:
    """Serve the admin API of a daemon without a public side, whose ring has `KEY`; again, it is a restart.

    Args:
        home: where its state and its relayd.toml are.
        boot_id: of this run.
        keep_days: how long the log is kept.
        event_write_timeout_s: how long a reader of events may stand still.
        clock: of the state.
        alert_options: what is worth an alert.
        shared: where its state is, if other workers have it, too.
        worker: its number among them, from 1.
    """
    event_bus, stopped = EventBus(), list[bool]()
    state = State.open(
        StateDirectory(home / "state") if shared is None else BorrowedDirectory(shared),
        boot_id=boot_id,
        worker=worker,
        is_shared=shared is not None,
        keep_days=keep_days,
        max_mib=512,
        on_commit=event_bus.publish,
        clock=clock,
    )
    identity, accepting, state_dir = state.instances.identity, Accepting(), state.path.parent
    socket_dir = state_dir if worker is None else home / str(worker)
    read = partial(
        load,
        config_path=None,
        cli={"state_dir": str(state_dir)},
        env={},
        cwd=home,
        system_config=home / "relayd.toml",
    )
    config = ConfigReloader(read(), read, ServiceManager(None))
    with open_admin_socket(socket_dir / "admin.sock", group="", state_dir=socket_dir) as admin_socket:
        state.ring.ensure_initial_key(KEY)
        context = AdminContext(
            facts=DaemonFacts(
                boot_id=identity.boot_id,
                started_at=utc_text(NOON_S),
                address="http://a",
                upstream="http://b",
                demo=False,
                state_dir=str(state_dir),
                instance=identity.name,
                worker=worker,
            ),
            limits=lambda: Limits(max_streams=100, drain_timeout_s=30.0, grace_s=3600.0),
            state=state,
            streams=ActiveStreams(),
            accepting=accepting,
            metrics=Metrics(),
            event_bus=event_bus,
            stop=lambda: stopped.append(True),
            reload=lambda: config.reload(lambda _settings: None),
            config=config.report,
            first_key=lambda: None,
            event_write_timeout_s=event_write_timeout_s,
            alert_options=alert_options,
        )
        server, path = AdminServer(admin_socket.socket, context), admin_socket.path
        try:
            await server.start()
            yield AdminHarness(
                path, AdminClient(path), state, accepting, event_bus, server.close, context.alerts, stopped
            )
        finally:
            await server.close()
            assert await asyncio.to_thread(state.close)


@asynccontextmanager
async def admin_apis(
    home: Path, count: int, alert_options: Callable[[], AlertOptions] = _any_disk
) -> AsyncIterator[list[AdminHarness]]:
    """Serve the admin APIs of several workers on one database; each has heard of all others."""
    async with AsyncExitStack() as stack:
        shared = stack.enter_context(StateDirectory(home / "state"))
        instances = [
            admin_api(home, boot_id=f"boot-{n}", alert_options=alert_options, shared=shared, worker=n)
            for n in range(1, count + 1)
        ]
        apis = [await stack.enter_async_context(instance) for instance in instances]
        await until(lambda: all(len(api.state.instances.live()) == count for api in apis))
        yield apis


@asynccontextmanager
async def whole_daemon() -> AsyncIterator[tuple[Relay, AdminClient]]:
    """Run a daemon with its public side and the fault upstream; its ring has `KEY`."""
    async with running_relay() as relay:
        yield relay, AdminClient(relay.state.path.parent / "admin.sock")


def be_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let databases and instances answer as late as on the busiest machine."""
    monkeypatch.setattr("relayd.admin.all_instances.ANSWER_WITHIN_S", PATIENCE_S)
    monkeypatch.setattr("relayd.state.sqlite.BUSY_TIMEOUT_S", PATIENCE_S)
    monkeypatch.setattr("relayd.state.postgres.TIMEOUT_S", PATIENCE_S)


def worker_of(directory: StateDirectory, number: int) -> AbstractAsyncContextManager[Relay]:
    """Run a daemon whose database is in this directory, as that of other ones."""
    return running_relay(directory=BorrowedDirectory(directory), worker=number)


@asynccontextmanager
async def whole_daemons(
    home: Path, count: int, url: str | None = None
) -> AsyncIterator[list[tuple[Relay, AdminClient]]]:
    """Run several daemons on one database, each of which has heard of all others.

    Args:
        home: for what they share.
        count: how many.
        url: of a PostgreSQL database; None: they are workers on one SQLite file.
    """
    async with AsyncExitStack() as stack:
        if url is None:
            directory = stack.enter_context(StateDirectory(home / "state"))
            daemons = [worker_of(directory, number) for number in range(1, count + 1)]
        else:
            url = patient_url(url)
            daemons = [running_relay(database_url=url, boot_id=f"boot-{n}") for n in range(1, count + 1)]
        relays = [await stack.enter_async_context(daemon) for daemon in daemons]
        await until(lambda: all(len(relay.state.instances.live()) == count for relay in relays))
        yield [(relay, AdminClient(relay.settings.admin.socket)) for relay in relays]


async def open_chat(relay: Relay, model: str, key: str = KEY) -> tuple[Wire, Reply]:
    """Begin a chat and wait for its first line."""
    wire = await Wire.open(relay.port)
    return wire, await wire.begin(post(key, body(model)))


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """An answer of the admin socket, undecoded; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.body)

    @property
    def error(self) -> tuple[str, str]:
        """Code and sentence of a refusal."""
        assert set(self.json) == {"error"}
        return self.json["error"]["code"], self.json["error"]["message"]


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("relayd", timeout=30)
        self._path = path

    @override
    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


async def raw(
    path: Path, method: str, target: str, headers: Mapping[str, str] | None = None, sent: bytes = b""
) -> RawAnswer:
    """Ask as a script with curl would."""

    def ask() -> RawAnswer:
        connection = _UnixConnection(path)
        try:
            connection.request(method, target, sent, dict(headers or {}))
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return RawAnswer(answer.status, found, answer.read())
        finally:
            connection.close()

    return await asyncio.to_thread(ask)
