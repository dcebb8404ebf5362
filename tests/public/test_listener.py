"""Listening sockets: bound, accepting, pausing, closed."""

from __future__ import annotations

import asyncio
import logging
import resource
import socket

import pytest

from relayd.public.listener import bind
from tests.public.room import public_room
from tests.wire import HOST, Wire


def test_a_name_is_bound_in_all_its_families() -> None:
    """Port 0 takes one free port; the sockets do not block."""
    sockets = bind(HOST, 0)
    try:
        assert [sock.getsockname()[0] for sock in sockets] == [HOST]
        assert sockets[0].getsockname()[1] > 0
        assert not sockets[0].getblocking()
    finally:
        for sock in sockets:
            sock.close()


def test_ipv6_does_not_take_ipv4_along() -> None:
    """Both families can be bound to the same port, side by side."""
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    four = bind(HOST, 0)[0]
    try:
        six = bind("::1", four.getsockname()[1])[0]
        assert six.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
        six.close()
    finally:
        four.close()


def test_an_address_that_is_taken_is_an_error_and_leaves_nothing_open() -> None:
    """The second one fails; so does a name that nobody knows."""
    first = bind(HOST, 0)[0]
    try:
        with pytest.raises(OSError, match="in use"):
            bind(HOST, first.getsockname()[1])
    finally:
        first.close()
    with pytest.raises(OSError):  # noqa: PT011 - what a resolver says differs
        bind("nowhere.invalid", 0)


async def test_no_one_is_accepted_after_the_end() -> None:
    """Open connections go on, new ones are refused."""
    async with public_room() as room, await Wire.open(room.port) as wire:
        wire.send(b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n")
        assert (await wire.reply()).status == 200
        room.listener.stop_accepting()
        with pytest.raises(ConnectionRefusedError):
            await Wire.open(room.port)
        wire.send(b"GET /healthz HTTP/1.1\r\nHost: relay\r\n\r\n")
        assert (await wire.reply()).status == 200


async def test_without_descriptors_accepting_pauses_and_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    """Neither a busy loop nor the end of it: one warning a pause, and service when there is room again."""
    async with public_room() as room:
        # The client's own descriptor must exist before none is left.
        waiting = socket.socket()
        waiting.setblocking(False)  # noqa: FBT003 - the standard library's signature
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        caplog.set_level(logging.WARNING, "relayd.public.listener")
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            await asyncio.get_running_loop().sock_connect(waiting, (HOST, room.port))
            await asyncio.sleep(0.5)
            paused = caplog.text.count("accepting paused")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert 1 <= paused <= 50
        await asyncio.get_running_loop().sock_sendall(waiting, b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n")
        got = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(waiting, 100), 30)
        assert got.startswith(b"HTTP/1.1 200")
        waiting.close()
