"""The admin server bounds its connections and what each may send."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

from relayd.admin.client import AdminClientError
from relayd.admin.schema import Status
from relayd.admin.server import MAX_CONNECTIONS
from tests.admin.harness import AdminHarness, admin_api


async def _first_status(api: AdminHarness) -> Status:
    """Return the status as soon as there is room for the question."""
    async with asyncio.timeout(30):
        while True:
            try:
                return await api.client.status()
            except AdminClientError:
                await asyncio.sleep(0.01)


async def test_idle_connections_are_bounded(tmp_path: Path) -> None:
    """One beyond the bound is closed at once; when others leave there is room again."""
    async with admin_api(tmp_path) as api, AsyncExitStack() as stack:
        for _ in range(MAX_CONNECTIONS):
            _, writer = await asyncio.open_unix_connection(str(api.socket))
            stack.callback(writer.close)
        reader, writer = await asyncio.open_unix_connection(str(api.socket))
        assert await asyncio.wait_for(reader.read(), 30) == b""
        writer.close()
        await stack.aclose()
        assert (await _first_status(api)).boot_id == "boot"


async def test_a_head_over_16_kib_ends_the_connection(tmp_path: Path) -> None:
    """No head that relayd's programs send is that long."""
    async with admin_api(tmp_path) as api:
        reader, writer = await asyncio.open_unix_connection(str(api.socket))
        writer.write(b"GET /status HTTP/1.1\r\nX: " + b"y" * 20_000)
        assert await asyncio.wait_for(reader.read(), 30) == b""
        writer.close()
        assert (await api.client.status()).boot_id == "boot"


async def test_a_client_that_leaves_in_the_middle_leaves_nothing_behind(tmp_path: Path) -> None:
    """After many half heads, half bodies and unread answers, all connections are free again."""
    async with admin_api(tmp_path) as api:
        for sent in (
            b"GET /sta",
            b"POST /keys HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{",
            b"GET /requests HTTP/1.1\r\nHost: x\r\n\r\n",
        ):
            for _ in range(MAX_CONNECTIONS // 2):
                _, writer = await asyncio.open_unix_connection(str(api.socket))
                writer.write(sent)
                writer.close()
        assert (await _first_status(api)).boot_id == "boot"
