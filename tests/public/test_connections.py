"""`relayd.public.connections`: who makes room when too many are open."""

from __future__ import annotations

import asyncio
import socket
from contextlib import AsyncExitStack

from relayd.public.connections import (
    MAX_KNOWN_NETWORKS,
    MAX_STRANGERS_PER_NETWORK,
    Connections,
    connection_limit,
)
from tests.public.room import KEY, Setup, public_room
from tests.wire import HOST, Wire, body, post, until

_QUICK = "demo:text=words,deltas=1,interval_ms=0,first_ms=0"


class _Line:
    """A connection that only knows whether it was cut."""

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self.is_cut = False

    def close(self) -> None:
        """Cut it."""
        self.is_cut = True
        self._connections.forget(self)


def _connections(limit: int = 1000) -> Connections:
    return Connections(lambda: limit, is_proxy=lambda address: address == "proxy")


def _opened(connections: Connections, address: str, count: int) -> list[_Line]:
    lines = [_Line(connections) for _ in range(count)]
    for line in lines:
        connections.opened(line, connections.network_of(address))
    return lines


def test_one_network_has_so_many_strangers_and_the_oldest_goes_first() -> None:
    """The one that said nothing for longest makes room; other networks lose nobody."""
    connections = _connections()
    other = _opened(connections, "b", 3)
    mine = _opened(connections, "a", MAX_STRANGERS_PER_NETWORK + 2)
    assert [line.is_cut for line in mine[:3]] == [True, True, False]
    assert sum(line.is_cut for line in mine) == 2
    assert not any(line.is_cut for line in other)
    assert connections.cut == 2


def test_who_showed_a_key_is_no_stranger() -> None:
    """Admitted connections neither count nor are cut for their network's others."""
    connections = _connections()
    first, *_ = _opened(connections, "a", MAX_STRANGERS_PER_NETWORK)
    connections.admitted(first)
    connections.admitted(first)
    more = _opened(connections, "a", 1)
    assert not first.is_cut
    assert not more[0].is_cut
    assert connections.cut == 0


def test_a_proxy_speaks_for_many() -> None:
    """Only the bound of all binds a trusted proxy's connections."""
    connections = _connections(limit=200)
    lines = _opened(connections, "proxy", 201)
    assert [line.is_cut for line in lines] == [True] + [False] * 200


def test_a_network_is_known_once_a_valid_key_came_from_it() -> None:
    """Of many networks those are known whose key is the latest; a proxy needs none."""
    connections = _connections()
    assert connections.is_known(connections.network_of("proxy"))
    networks = [f"net{number}" for number in range(MAX_KNOWN_NETWORKS + 1)]
    for network in networks:
        assert not connections.is_known(network)
        (line,) = _opened(connections, network, 1)
        connections.admitted(line)
        line.close()
        (again,) = _opened(connections, "net0", 1)
        connections.admitted(again)
        again.close()
    assert [connections.is_known(network) for network in networks[:3]] == [True, False, True]
    assert connections.is_known(networks[-1])


def test_at_the_limit_the_oldest_stranger_makes_room() -> None:
    """Where every other has shown a key, the newcomer is the only stranger, and goes."""
    connections = _connections(limit=3)
    lines = [line for address in "abc" for line in _opened(connections, address, 1)]
    connections.admitted(lines[0])
    (fourth,) = _opened(connections, "d", 1)
    assert [line.is_cut for line in lines] == [False, True, False]
    connections.admitted(lines[2])
    connections.admitted(fourth)
    (fifth,) = _opened(connections, "e", 1)
    assert fifth.is_cut
    assert len(connections) == 3


def test_nothing_is_kept_of_a_closed_connection() -> None:
    """Closing twice counts once, and the tables are empty afterwards."""
    connections = _connections()
    lines = _opened(connections, "a", 10)
    for line in lines[5:]:
        connections.admitted(line)
    for line in lines:
        line.close()
        line.close()
    assert len(connections) == 0
    assert not connections.networks


def test_the_limit_leaves_room_beside_the_streams() -> None:
    """Every stream that may be open has its connection, and as many again may come and go."""
    assert connection_limit(1000) == 2256


async def test_a_flood_of_silent_connections_does_not_keep_a_client_out() -> None:
    """With the limit full of strangers from one address, another is served, and streams go on."""
    async with AsyncExitStack() as stack:
        room = await stack.enter_async_context(public_room(Setup(max_connections=30, trusted_proxies=())))
        streaming = await stack.enter_async_context(await Wire.open(room.port))
        streaming.send(post(KEY, body("demo:text=words,deltas=5,interval_ms=100")))
        await until(lambda: room.demo.requests)
        for _ in range(40):
            await stack.enter_async_context(await _from("127.0.0.2", room.port))
        assert (await room.ask(_QUICK)).status == 200
        assert len(room.connections) <= 30
        assert (await streaming.reply()).text == "The relay passes each delta "


async def test_one_address_cannot_hold_more_than_its_share() -> None:
    """Of one address's silent connections only the newest stay, over real sockets."""
    async with AsyncExitStack() as stack:
        room = await stack.enter_async_context(public_room(Setup(trusted_proxies=())))
        wires = [
            await stack.enter_async_context(await _from("127.0.0.2", room.port))
            for _ in range(MAX_STRANGERS_PER_NETWORK + 10)
        ]
        await until(lambda: sum(wire.lost() for wire in wires) == 10)
        assert all(wire.lost() for wire in wires[:10])


async def _from(address: str, port: int) -> Wire:
    """A connection whose own end has this address of the loopback network."""
    sock = socket.socket()
    sock.setblocking(False)  # noqa: FBT003 - the standard library's signature
    sock.bind((address, 0))
    await asyncio.get_running_loop().sock_connect(sock, (HOST, port))
    return Wire(*await asyncio.open_connection(sock=sock))
