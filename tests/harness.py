"""The whole daemon in the test's own loop: the product's `Server`, real sockets, a real database."""

from __future__ import annotations

import asyncio
import socket
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relayd.admin.events import EventBus
from relayd.admin.unix_socket import open_admin_socket
from relayd.config import Settings, load
from relayd.public.listener import bind
from relayd.public.tls import TlsFiles
from relayd.reload import ConfigReloader
from relayd.server import Server
from relayd.state.directory import StateDirectory
from relayd.state.postgres import Postgres
from relayd.state.records import Ended, LogEvent, RequestRecord
from relayd.state.state import State
from relayd.systemd import ServiceManager
from tests.support.upstream import FaultUpstream
from tests.wire import HOST, PATIENCE_S, Reply, ask, body, until

KEY = "a-key-that-works-here"
PROVIDER_KEY = "provider-key-of-the-tests"


@dataclass(slots=True)
class Relay:
    """A daemon that serves, and the fault upstream that it asks."""

    port: int
    server: Server
    state: State
    upstream: FaultUpstream
    records: list[RequestRecord]
    """Those that have ended and are on disk, in order."""
    settings: Settings
    announced: list[str]
    """The lines with which it told that it accepts requests."""
    life: asyncio.Task[int]
    """Its run; the result is the exit status."""

    async def ask(self, model: str | None = "demo", **fields: object) -> Reply:
        """Return the reply to one chat with the key that works."""
        return await ask(self.port, KEY, body(model, **fields))

    async def record(self, n: int = 0) -> RequestRecord:
        """Return the record that ended as number `n`, from 0."""
        await until(lambda: len(self.records) > n)
        return self.records[n]


@asynccontextmanager
async def running_relay(  # noqa: PLR0913 - each is a fact of its own, by name
    *,
    upstream_url: Callable[[FaultUpstream], str] = lambda upstream: upstream.base_url,
    tls: TlsFiles | None = None,
    state_class: type[State] = State,
    send_buffer_bytes: int = 0,
    toml: str = "",
    clock: Callable[[], float] = time.time,
    directory: StateDirectory | None = None,
    worker: int | None = None,
    database_url: str | None = None,
    boot_id: str = "boot",
    **settings: Any,
) -> AsyncIterator[Relay]:
    """Run a daemon until the block ends.

    Args:
        upstream_url: where it finds its provider; the fault upstream itself, or what stands before it.
        tls: its certificate.
        state_class: what keeps its state.
        send_buffer_bytes: what the kernel takes for a client that does not read; 0: as in the product.
        toml: its relayd.toml, for what has no name of its own: tables such as `prices`.
        clock: of the state.
        directory: where its state is, if that is not a new one.
        worker: its number among the daemons that share the directory, from 1; None: it is the only one.
        database_url: of the PostgreSQL database that it shares with others; None: SQLite.
        boot_id: of this run; a worker's ends with its number.
        settings: by their names with two underscores for the dot, as `server__max_streams=3`.
    """
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        async with FaultUpstream(PROVIDER_KEY) as upstream:
            chosen = _settings(home, toml, {"upstream__base_url": upstream_url(upstream), **settings})
            records: list[RequestRecord] = []
            event_bus = EventBus()
            own_boot_id = boot_id if worker is None else f"{boot_id}-{worker}"

            def on_commit(events: Sequence[LogEvent]) -> None:
                records.extend(event.record for event in events if isinstance(event, Ended))
                event_bus.publish(events)

            state = state_class.open(
                directory or StateDirectory(chosen.state_dir),
                boot_id=own_boot_id,
                keep_days=1,
                max_mib=10,
                on_commit=on_commit,
                worker=worker,
                is_shared=worker is not None or database_url is not None,
                engine=None if database_url is None else Postgres(database_url),
                clock=clock,
            )
            state.ring.ensure_initial_key(KEY)
            announced: list[str] = []
            started = asyncio.Event()

            def announce(line: str) -> None:
                announced.append(line)
                started.set()

            manager = ServiceManager(None)
            server = Server(
                ConfigReloader(chosen, lambda: chosen, manager),
                state,
                boot_id=own_boot_id,
                demo=False,
                announce=announce,
                manager=manager,
                tls=tls,
            )
            sockets = bind(HOST, 0)
            if send_buffer_bytes:
                # Accepted sockets inherit it.
                sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
            port = sockets[0].getsockname()[1]
            with open_admin_socket(chosen.admin.socket, group="", state_dir=chosen.state_dir) as admin_socket:
                life = asyncio.create_task(server.run(sockets, admin_socket, event_bus), name="relay")
                try:
                    await asyncio.wait_for(started.wait(), PATIENCE_S)
                    yield Relay(port, server, state, upstream, records, chosen, announced, life)
                finally:
                    server.request_stop()
                    server.request_stop()
                    await asyncio.wait_for(life, PATIENCE_S)


def _settings(home: Path, toml: str, settings: dict[str, Any]) -> Settings:
    config = home / "relayd.toml"
    config.write_text(toml)
    return load(
        config_path=config,
        cli={
            "state_dir": str(home / "state"),
            "chat.default_model": "demo",
            "upstream.max_retries": 0,
            **{name.replace("__", "."): value for name, value in settings.items()},
        },
        env={"HOME": str(home), "OPENAI_API_KEY": PROVIDER_KEY},
        cwd=home,
        system_config=home / "none.toml",
    )
