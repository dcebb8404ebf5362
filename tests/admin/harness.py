"""The admin side in the test's own loop: a real socket, a real database, no process."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from relayd.admin.client import AdminClient
from relayd.admin.context import DaemonFacts, Limits
from relayd.admin.events import EventBus
from relayd.admin.http1 import connect, exchange
from relayd.admin.server import AdminServer
from relayd.admin.tally import Tally
from relayd.admin.unix_socket import open_admin_socket
from relayd.config import load
from relayd.public.listener import bind
from relayd.relay.accepting import Accepting
from relayd.relay.active_streams import ActiveStreams
from relayd.reload import ConfigReloader
from relayd.server import Server
from relayd.state.records import Outcome, Phase, RequestRecord, utc_text
from relayd.state.state import State
from relayd.systemd import ServiceManager
from tests.e2e.daemon import PROVIDER_KEY
from tests.support.upstream import fault_upstream_url
from tests.wire import HOST, Reply, Wire, ask, body, until

KEY = "the-key-of-the-admin-tests"
NOON_S = 1_800_000_000.0


@dataclass(slots=True)
class AdminRoom:
    """What a test works with."""

    socket: Path
    client: AdminClient
    state: State
    registry: ActiveStreams
    intake: Accepting
    tally: Tally
    hub: EventBus
    stopped: list[bool] = field(default_factory=list)
    """One entry for each time that the daemon was asked to end."""

    def log(self, count: int, prefix: str = "r", **fields: Any) -> None:
        """Put requests into the log, started and ended."""
        for n in range(count):
            record = new_record(f"{prefix}{n:06}", **fields)
            self.state.log.started(record)
            record.phase, record.outcome, record.status = Phase.DONE, Outcome.COMPLETED, 200
            self.state.log.ended(record)

    async def logged(self, seq: int) -> None:
        """Wait until the log has come to this place."""
        await until(lambda: self.hub.newest_seq >= seq)


def new_record(request_id: str, **fields: Any) -> RequestRecord:
    """A request that has just begun."""
    given = {"boot_id": "boot", "started_at": utc_text(NOON_S), "ip": "192.0.2.1", "path": "/chat"}
    return RequestRecord(id=request_id, **{**given, **fields})


@asynccontextmanager
async def admin_room(
    home: Path,
    *,
    boot_id: str = "boot",
    keep_days: int = 30,
    max_mib: int = 512,
    event_write_timeout_s: float = 10.0,
    group: str = "",
    clock: Callable[[], float] = time.time,
) -> AsyncIterator[AdminRoom]:
    """Open a daemon without a public side, whose ring has `KEY`; entered again, it is a restart."""
    state_dir, hub = home / "state", EventBus()
    registry, intake = ActiveStreams(), Accepting()
    tally = Tally(asyncio.get_running_loop().time())
    with open_admin_socket(state_dir / "admin.sock", group=group, state_dir=state_dir) as admin_socket:
        state = State.open(
            state_dir,
            boot_id=boot_id,
            keep_days=keep_days,
            max_mib=max_mib,
            on_commit=hub.committed,
            clock=clock,
        )
        stopped: list[bool] = []
        side = None
        try:
            state.ring.fill(KEY)
            side = AdminServer(
                admin_socket,
                event_bus=hub,
                tally=tally,
                facts=DaemonFacts(boot_id, NOON_S, "http://a", "http://b", False, str(state_dir)),  # noqa: FBT003 - no demo
                limits=lambda: Limits(100, 30.0, 3600.0),
                state=state,
                registry=registry,
                intake=intake,
                stop=lambda: stopped.append(True),
                event_write_timeout_s=event_write_timeout_s,
            )
            await side.start()
            yield AdminRoom(
                admin_socket.path,
                AdminClient(admin_socket.path),
                state,
                registry,
                intake,
                tally,
                hub,
                stopped,
            )
        finally:
            if side is not None:
                await side.close()
            assert await asyncio.to_thread(state.close)


@dataclass(slots=True)
class WholeRoom:
    """A daemon with its public side and a scripted provider."""

    port: int
    socket: Path
    client: AdminClient
    state: State
    server: Server

    async def ask(self, model: str = "demo", key: str = KEY) -> Reply:
        """One chat to its end."""
        return await ask(self.port, key, body(model))

    async def open(self, model: str, key: str = KEY) -> tuple[Wire, Reply]:
        """A chat whose first line has come."""
        wire = await Wire.open(self.port)
        payload = body(model)
        wire.send(
            b"POST /chat HTTP/1.1\r\nHost: relay\r\nAuthorization: %b\r\nContent-Length: %d\r\n\r\n%b"
            % (key.encode(), len(payload), payload)
        )
        reply = await wire.head()
        await wire.first_piece(reply)
        return wire, reply


@asynccontextmanager
async def whole_room(
    home: Path, settings: Mapping[str, object] | None = None, *, boot_id: str = "boot"
) -> AsyncIterator[WholeRoom]:
    """Open a whole daemon, whose ring has `KEY`."""
    chosen = load(
        config_path=None,
        cli={
            "state_dir": str(home / "state"),
            "server.max_streams_per_address": 1000,
            "upstream.base_url": fault_upstream_url(PROVIDER_KEY),
            **(settings or {}),
        },
        env={"HOME": str(home), "OPENAI_API_KEY": PROVIDER_KEY},
        cwd=home,
        system_config=home / "none.toml",
    )
    hub = EventBus()
    with open_admin_socket(chosen.admin.socket, group="", state_dir=chosen.state_dir) as admin_socket:
        state = State.open(
            chosen.state_dir, boot_id=boot_id, keep_days=30, max_mib=512, on_commit=hub.committed
        )
        state.ring.fill(KEY)
        manager = ServiceManager({})
        server = Server(
            ConfigReloader(chosen, lambda: chosen, manager),
            state,
            boot_id=boot_id,
            demo=False,
            announce=lambda _line: None,
            manager=manager,
        )
        server.start(bind(HOST, 0))
        await server.start_admin(admin_socket, hub)
        try:
            port = int(server.url.rpartition(":")[2])
            yield WholeRoom(port, admin_socket.path, AdminClient(admin_socket.path), state, server)
        finally:
            server.request_stop()
            assert await server.stop() == 0


@dataclass(frozen=True, slots=True)
class RawAnswer:
    """An answer of the admin socket, undecoded."""

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


async def raw(
    socket: Path, method: str, target: str, headers: Mapping[str, str] | None = None, sent: bytes = b""
) -> RawAnswer:
    """Ask as a script with curl would."""
    reader, writer = await connect(socket)
    try:
        async with asyncio.timeout(30):
            answer = await exchange(reader, writer, (method, target), headers or {}, sent)
            return RawAnswer(answer.status, answer.headers, await answer.body())
    finally:
        writer.close()
