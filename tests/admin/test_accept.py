"""Behaviour of `relayd.admin.accept`: few connections, and no way around that."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from relayd.admin.accept import MAX_CONNECTIONS
from relayd.admin.client import AdminClientError
from relayd.admin.http1 import connect
from tests.admin.harness import admin_room


async def test_idle_connections_are_bounded_and_the_next_one_is_told_so(tmp_path: Path) -> None:
    """The 129th gets 503 in the form of every refusal; when others leave there is room again."""
    async with admin_room(tmp_path) as room, AsyncExitStack() as stack:
        for _ in range(MAX_CONNECTIONS):
            _, writer = await connect(room.socket)
            stack.callback(writer.close)
        reader, writer = await connect(room.socket)
        told = await asyncio.wait_for(reader.read(), 30)
        writer.close()
        assert told.startswith(b"HTTP/1.1 503 ")
        assert b'{"error":{"code":"busy"' in told
        await stack.aclose()
        status = None
        async with asyncio.timeout(30):
            while status is None:
                try:
                    status = await room.client.status()
                except AdminClientError:
                    await asyncio.sleep(0.01)
        assert status.boot_id == "boot"


async def test_a_head_over_16_kib_ends_the_connection(tmp_path: Path) -> None:
    """No head that relayd's programs send is that long."""
    async with admin_room(tmp_path) as room:
        reader, writer = await connect(room.socket)
        writer.write(b"GET /status HTTP/1.1\r\nX: " + b"y" * 20_000)
        assert await asyncio.wait_for(reader.read(), 30) == b""
        writer.close()
        assert (await room.client.status()).boot_id == "boot"


async def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind(tmp_path: Path) -> None:
    """Half a head, half a body, no reading of the answer: the daemon forgets each."""
    async with admin_room(tmp_path) as room:
        for sent in (
            b"GET /sta",
            b"POST /keys HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{",
            b"GET /requests HTTP/1.1\r\nHost: x\r\n\r\n",
        ):
            for _ in range(20):
                _, writer = await connect(room.socket)
                writer.write(sent)
                writer.close()
        assert (await room.client.status()).boot_id == "boot"
