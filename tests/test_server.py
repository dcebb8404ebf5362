"""The daemon's life inside one process; as a process of its own it is proved in tests/e2e."""

from __future__ import annotations

import asyncio
import stat
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from relayd.admin.events import EventBus
from relayd.admin.unix_socket import open_admin_socket
from relayd.config import load
from relayd.public.listener import bind
from relayd.reload import ConfigReloader
from relayd.server import Server, new_boot_id, public_url
from relayd.state.records import Outcome
from relayd.state.state import State
from relayd.systemd import ServiceManager
from tests.e2e.daemon import PROVIDER_KEY
from tests.support.upstream import fault_upstream_url
from tests.wire import HOST, Wire, ask, body, post

_KEY = "the-key-of-the-server-tests"


class _StuckState(State):
    """A disk that does not take the last records in time."""

    def close(self, timeout_s: float = 5.0) -> bool:
        """Close, and tell that it failed."""
        super().close(timeout_s)
        return False


@asynccontextmanager
async def _running(
    home: Path, kind: type[State] = State
) -> AsyncGenerator[tuple[Server, asyncio.Task[int], list[str]], None]:
    """A daemon that has announced itself: the server, its life, and its words."""
    settings = load(
        config_path=None,
        cli={
            "server.port": 0,
            "server.drain_timeout_s": 0.2,
            "state_dir": str(home / "state"),
            "upstream.base_url": fault_upstream_url(PROVIDER_KEY),
        },
        env={"HOME": str(home), "OPENAI_API_KEY": PROVIDER_KEY},
        cwd=home,
        system_config=home / "none.toml",
    )
    state = kind.open(
        settings.state_dir, boot_id="boot", keep_days=1, max_mib=10, on_commit=lambda _events: None
    )
    state.ring.ensure_initial_key(_KEY)
    words: list[str] = []
    told = asyncio.Event()

    def announce(line: str) -> None:
        words.append(line)
        told.set()

    manager = ServiceManager({})
    config = ConfigReloader(settings, lambda: settings, manager)
    server = Server(config, state, boot_id="boot", demo=False, announce=announce, manager=manager)
    with open_admin_socket(settings.admin.socket, group="", state_dir=settings.state_dir) as admin_socket:
        life = asyncio.create_task(server.run(bind(HOST, 0), admin_socket, EventBus()), name="server")
        await asyncio.wait_for(told.wait(), 30)
        yield server, life, words
        server.request_stop()
        await asyncio.wait_for(life, 30)


async def test_a_daemon_announces_itself_serves_and_ends(tmp_path: Path) -> None:
    """One line with address, state and admin socket; the admin socket is private; the end is 0."""
    async with _running(tmp_path) as (server, life, words):
        assert len(words) == 1
        assert f"serving on {server.url}" in words[0]
        assert str(tmp_path / "state") in words[0]
        socket = tmp_path / "state" / "admin.sock"
        assert str(socket) in words[0]
        assert stat.S_IMODE(socket.stat().st_mode) == 0o600
        port = int(server.url.rsplit(":", 1)[1])
        assert (await ask(port, _KEY, body("demo:deltas=1"))).status == 200
        server.request_stop()
        assert await asyncio.wait_for(life, 30) == 0
    assert not socket.exists()
    assert PROVIDER_KEY not in words[0]


async def test_asked_twice_it_ends_open_streams_at_once(tmp_path: Path) -> None:
    """The operator's `drain` and a signal count alike; the stream is told and recorded."""
    async with _running(tmp_path) as (server, life, _):
        port = int(server.url.rsplit(":", 1)[1])
        async with await Wire.open(port) as wire:
            wire.send(post(_KEY, body("demo:deltas=10000,interval_ms=10")))
            reply = await wire.head()
            await wire.first_piece(reply)
            record = next(iter(server.streams)).record
            server.request_stop()
            server.request_stop()
            async for _ in wire.pieces(reply):
                pass
        assert await asyncio.wait_for(life, 30) == 0
    assert reply.error is not None
    assert reply.error.startswith("draining: ")
    assert record.outcome is Outcome.SHUTDOWN


async def test_a_log_that_could_not_be_flushed_is_no_good_end(tmp_path: Path) -> None:
    """The exit status is 1, so that whoever watches the service learns of it."""
    async with _running(tmp_path, _StuckState) as (server, life, _):
        server.request_stop()
        assert await asyncio.wait_for(life, 30) == 1


@pytest.mark.parametrize(
    ("host", "tls", "url"),
    [
        ("127.0.0.1", False, "http://127.0.0.1:3666"),
        ("::1", False, "http://[::1]:3666"),
        ("0.0.0.0", True, "https://0.0.0.0:3666"),
    ],
)
def test_an_address_is_shown_as_a_url(host: str, tls: bool, url: str) -> None:  # noqa: FBT001 - the example
    """IPv6 in brackets, and the scheme that is served."""
    assert public_url(host, 3666, tls=tls) == url


def test_no_two_starts_have_the_same_name() -> None:
    """A boot id is twelve letters and digits."""
    names = {new_boot_id() for _ in range(1000)}
    assert len(names) == 1000
    assert all(name.isalnum() and len(name) == 12 for name in names)
