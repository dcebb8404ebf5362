"""The daemon's life inside one process; as a process of its own it is proved in tests/e2e."""

from __future__ import annotations

import asyncio
import os
import signal
import stat
import time
from collections.abc import Callable

import pytest

from relayd import __version__
from relayd.server import Server, public_url
from relayd.state.records import Outcome
from relayd.state.state import State
from tests.harness import KEY, PROVIDER_KEY, Relay, running_relay
from tests.wire import DONE, Wire, body, post

_ENDLESS = "demo:text=words,deltas=10000,interval_ms=10"
_EXIT_S = 30


class _StuckState(State):
    """A disk that does not take the last records in time."""

    def close(self, timeout_s: float = 5.0) -> bool:
        """Close, and tell that it failed."""
        super().close(timeout_s)
        return False


async def _exit_status(relay: Relay) -> int:
    return await asyncio.wait_for(asyncio.shield(relay.life), _EXIT_S)


async def test_a_daemon_announces_itself_serves_and_ends() -> None:
    """One line with version, address, state and admin socket; the socket is private; the exit status is 0."""
    async with running_relay() as relay:
        state_dir, admin_socket = relay.settings.state_dir, relay.settings.admin.socket
        (line,) = relay.announced
        assert line == (
            f"relayd {__version__} serving on http://127.0.0.1:{relay.port}"
            f"  state {state_dir}  admin {admin_socket}"
        )
        assert stat.S_IMODE(admin_socket.stat().st_mode) == 0o600
        assert (await relay.ask("demo:deltas=1")).status == 200
        relay.server.request_stop()
        assert await _exit_status(relay) == 0
        assert PROVIDER_KEY not in repr(relay.settings)
        with pytest.raises(ConnectionRefusedError):
            await Wire.open(relay.port)


@pytest.mark.parametrize(
    "stop",
    [
        Server.request_stop,
        lambda _server: os.kill(os.getpid(), signal.SIGTERM),
        lambda _server: os.kill(os.getpid(), signal.SIGINT),
    ],
    ids=["the operator", "SIGTERM", "SIGINT"],
)
async def test_a_stop_lets_open_streams_finish(stop: Callable[[Server], None]) -> None:
    """The operator's `drain` and both signals alike."""
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        reply = await wire.begin(post(KEY, body("demo:text=words,deltas=10,interval_ms=30")))
        stop(relay.server)
        await wire.rest(reply)
        assert (reply.cut, reply.error) == (False, None)
        assert reply.lines[-1] == DONE
        assert await _exit_status(relay) == 0
        assert (await relay.record()).outcome is Outcome.COMPLETED


async def test_streams_that_outlive_the_drain_timeout_are_ended(caplog: pytest.LogCaptureFixture) -> None:
    """Their clients are told why, the record says so, and the log how long it may take."""
    caplog.set_level("INFO")
    async with (
        running_relay(server__drain_timeout_s=0.3) as relay,
        await Wire.open(relay.port) as wire,
    ):
        reply = await wire.begin(post(KEY, body(_ENDLESS)))
        began_at = time.monotonic()
        relay.server.request_stop()
        await wire.rest(reply)
        assert time.monotonic() - began_at >= 0.3
        assert reply.error == ("draining: This relay is stopping and could not wait longer for the answer.")
        assert reply.lines[-1] == DONE
        assert await _exit_status(relay) == 0
        assert (await relay.record()).outcome is Outcome.SHUTDOWN
    assert "draining: 1 streams open, at most 0.3 s" in caplog.text
    assert caplog.messages[-1] == "stopped"


@pytest.mark.parametrize("sent", [0, 20], ids=["nothing yet", "half a head"])
async def test_a_stop_answers_a_request_that_is_under_way(sent: int) -> None:
    """The client of a connection that was accepted reads a refusal, not the end of the connection."""
    request = post(KEY, body("demo:deltas=1"))
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        wire.send(request[:sent])
        # Connections are accepted in order.
        assert (await relay.ask("demo:deltas=1")).status == 200
        relay.server.request_stop()
        # Time for a daemon that does not care to close the connection.
        await asyncio.sleep(0.1)
        wire.send(request[sent:])
        refused = await wire.reply()
        assert (refused.status, refused.header("X-Relayd-Error")) == (503, "draining")
        assert await _exit_status(relay) == 0


async def test_a_body_that_was_on_its_way_is_still_served() -> None:
    """A request that was admitted before the stop is not refused by it."""
    payload = body("demo:text=words,deltas=2,interval_ms=0")
    async with running_relay() as relay, await Wire.open(relay.port) as wire:
        wire.send(post(KEY, b"", {"Expect": "100-continue"}, length=len(payload)))
        assert (await wire.head()).status == 100
        relay.server.request_stop()
        wire.send(payload)
        assert (await wire.reply()).text == "The relay "
        assert await _exit_status(relay) == 0


async def test_a_second_stop_ends_open_streams_at_once() -> None:
    """Whatever the drain timeout is; a request whose body was arriving does not begin any more."""
    payload = body(_ENDLESS)
    async with (
        running_relay(server__drain_timeout_s=600) as relay,
        await Wire.open(relay.port) as wire,
        await Wire.open(relay.port) as late,
    ):
        late.send(post(KEY, b"", {"Expect": "100-continue"}, length=len(payload)))
        assert (await late.head()).status == 100
        reply = await wire.begin(post(KEY, body(_ENDLESS)))
        relay.server.request_stop()
        assert not relay.life.done()
        relay.server.request_stop()
        late.send(payload)
        await wire.rest(reply)
        assert reply.error is not None
        assert reply.error.startswith("draining: ")
        refused = await late.reply()
        assert (refused.status, refused.header("X-Relayd-Error")) == (503, "draining")
        assert await _exit_status(relay) == 0
        assert {(await relay.record(n)).outcome for n in range(2)} == {Outcome.SHUTDOWN}


async def test_a_log_that_could_not_be_written_is_a_failure() -> None:
    """The exit status is 1, so that the service manager learns of it."""
    async with running_relay(state_class=_StuckState) as relay:
        relay.server.request_stop()
        assert await _exit_status(relay) == 1


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
