"""Listening sockets and connections: bound, accepted, limited, paused, closed."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket
from contextlib import AsyncExitStack
from typing import Any

import pytest

from relayd.public.listener import bind, connection_limit
from tests.harness import KEY, Relay, running_relay
from tests.wire import HOST, PATIENCE_S, Wire, body, fetch, post, until

_needs_ipv6 = pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
_HEALTH = b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n"


def test_a_free_port_is_taken_for_port_0() -> None:
    """One socket, which does not block and bounds what the kernel keeps for a client."""
    (sock,) = bind(HOST, 0)
    with sock:
        host, port = sock.getsockname()
        assert (host, port > 0) == (HOST, True)
        assert not sock.getblocking()
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) == 2 * (128 << 10)


@_needs_ipv6
@pytest.mark.parametrize("host", ["::", ""])
def test_every_address_is_of_both_families(host: str) -> None:
    """`::` serves IPv4 clients too."""
    (sock,) = bind(host, 0)
    with sock:
        port = sock.getsockname()[1]
        for address in ("127.0.0.1", "::1"):
            with socket.create_connection((address, port), timeout=30):
                pass


@_needs_ipv6
def test_one_ipv6_address_does_not_take_ipv4_along() -> None:
    """A client of IPv4 finds nothing at its port."""
    (six,) = bind("::1", 0)
    with six, socket.socket() as client, pytest.raises(ConnectionRefusedError):
        # From its own address, which no other process uses: 127.0.0.1 may have the same port.
        client.connect(("127.99.0.1", six.getsockname()[1]))


def test_a_name_is_bound_at_all_its_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the port that was asked for; a free port is taken at the first address only."""
    # Nothing else is bound to these, so that a port of one is free at the others.
    addresses = ["127.99.0.1", "127.99.0.2"]
    resolve = socket.getaddrinfo

    def both(host: str, port: int, **options: Any) -> list[Any]:
        assert host == "relay.example"
        return [found for address in addresses for found in resolve(address, port, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    (first,) = bind("relay.example", 0)
    with first:
        port = first.getsockname()[1]
        assert first.getsockname() == ("127.99.0.1", port)
        addresses[:] = ["127.99.0.3", "127.99.0.4"]
        sockets = bind("relay.example", port)
    assert [sock.getsockname() for sock in sockets] == [(address, port) for address in addresses]
    for sock in sockets:
        sock.close()


def test_an_address_that_is_taken_is_an_error() -> None:
    """So is a name that cannot be resolved."""
    (first,) = bind(HOST, 0)
    with first, pytest.raises(OSError, match="in use"):
        bind(HOST, first.getsockname()[1])
    with pytest.raises(OSError):  # noqa: PT011 - what a resolver says differs
        bind("nowhere.invalid", 0)


@_needs_ipv6
async def test_a_client_of_ipv4_on_a_dual_stack_socket_has_its_ipv4_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In its record, not the one that the kernel maps it to; so a proxy of that address is trusted, too."""
    monkeypatch.setattr("tests.harness.HOST", "::")
    async with running_relay() as relay:
        assert (await relay.ask("demo:deltas=1")).status == 200
        assert (await relay.record()).ip == "127.0.0.1"


def test_the_limit_of_connections_leaves_room_beside_the_streams() -> None:
    """Every stream has its connection, and as many again may come and go."""
    assert connection_limit(1000) == 2256


async def _connect(stack: AsyncExitStack, relay: Relay, count: int, source: str = "") -> list[Wire]:
    wires = [
        await stack.enter_async_context(await Wire.open(relay.port, source=source)) for _ in range(count)
    ]
    # Connections are accepted in order.
    await _is_served(wires[-1])
    return wires


async def _is_served(wire: Wire) -> bool:
    """Return whether a connection is open, once the relay has seen it."""
    wire.send(_HEALTH)
    try:
        return (await wire.reply()).status == 200
    except (asyncio.IncompleteReadError, ConnectionError):
        return False


async def _served_again(relay: Relay, source: str = "") -> None:
    """Wait until a new connection is served."""
    async with asyncio.timeout(PATIENCE_S):
        while True:
            async with await Wire.open(relay.port, source=source) as wire:
                if await _is_served(wire):
                    return


@pytest.mark.parametrize("is_proxy", [False, True])
async def test_one_address_may_hold_so_many_connections(is_proxy: bool) -> None:  # noqa: FBT001 - the example
    """The next is closed at once until one is free; other addresses and trusted proxies are not bound."""
    limit = connection_limit(1)
    proxies = ["127.0.0.2"] if is_proxy else []
    async with (
        running_relay(server__max_streams_per_address=1, server__trusted_proxies=proxies) as relay,
        AsyncExitStack() as stack,
    ):
        wires = await _connect(stack, relay, limit, "127.0.0.2")
        assert not any(wire.lost() for wire in wires)
        async with await Wire.open(relay.port, source="127.0.0.2") as next_one:
            assert await _is_served(next_one) is is_proxy
        async with await Wire.open(relay.port, source="127.0.0.3") as other:
            assert await _is_served(other)
        if not is_proxy:
            wires[0].finish()
            await _served_again(relay, "127.0.0.2")
            await _connect(stack, relay, 1, "127.0.0.2")
            async with await Wire.open(relay.port, source="127.0.0.2") as next_one:
                assert not await _is_served(next_one)


async def test_connections_are_limited_in_all() -> None:
    """Also those of a trusted proxy; the limit does not count a connection twice that was used twice."""
    limit = connection_limit(1)
    async with running_relay(server__max_streams=1) as relay, AsyncExitStack() as stack:
        wires = await _connect(stack, relay, limit)
        async with await Wire.open(relay.port) as next_one:
            assert not await _is_served(next_one)
        assert await _is_served(wires[0])
        wires[1].reset()
        await _served_again(relay)


async def test_open_connections_go_on_when_the_relay_stops_accepting() -> None:
    """Each ends with its next response."""
    async with running_relay() as relay, AsyncExitStack() as stack:
        streaming, idle = [await stack.enter_async_context(await Wire.open(relay.port)) for _ in range(2)]
        streaming.send(post(KEY, body("demo:deltas=10,interval_ms=50")))
        head = await streaming.head()
        assert await _is_served(idle)
        relay.server.request_stop()
        idle.send(_HEALTH)
        reply = await idle.reply()
        assert (reply.status, reply.header("Connection")) == (200, "close")
        assert await idle.ended() == b""
        await streaming.rest(head)
        assert (head.cut, head.error) == (False, None)
        assert await streaming.ended() == b""


async def test_accepting_pauses_while_no_descriptor_is_left(caplog: pytest.LogCaptureFixture) -> None:
    """Neither a busy loop nor the end: a warning for each pause, and service when there is room again."""
    caplog.set_level(logging.WARNING, "relayd.public.listener")
    async with running_relay() as relay:
        loop = asyncio.get_running_loop()
        # The client's own descriptor must exist before none is left.
        with socket.socket() as waiting:
            waiting.setblocking(False)  # noqa: FBT003 - the standard library's signature
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            try:
                began_at = loop.time()
                await loop.sock_connect(waiting, (HOST, relay.port))
                await until(lambda: caplog.text.count("accepting paused") >= 2)
                pauses, took_s = caplog.text.count("accepting paused"), loop.time() - began_at
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert (pauses - 2) * 0.2 <= took_s
            await loop.sock_sendall(waiting, _HEALTH)
            got = await asyncio.wait_for(loop.sock_recv(waiting, 100), PATIENCE_S)
            assert got.startswith(b"HTTP/1.1 200")
        assert (await fetch(relay.port, "/healthz")).status == 200
