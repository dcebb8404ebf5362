"""The admin server bounds its connections and what each may send."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import AsyncExitStack, closing
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


async def test_long_queries_are_interrupted_when_the_daemon_stops(tmp_path: Path) -> None:
    """However many wait: else each would keep the daemon from its end for seconds."""
    async with admin_api(tmp_path) as api:
        api.log(1, user_agent="a" * 200)
        await api.logged(3)
        _grow(api.state.path, 30_000)
        slow = " ".join(f"user_agent!~a{number}" for number in range(49)) + " model=none"
        queries = [asyncio.create_task(api.client.requests(where=slow)) for _ in range(24)]
        await asyncio.sleep(0.5)
        assert not any(query.done() for query in queries)
        began_s = time.monotonic()
    took_s = time.monotonic() - began_s
    ends = await asyncio.gather(*queries, return_exceptions=True)
    assert all(isinstance(end, AdminClientError) for end in ends)
    assert took_s < 3


def _grow(database: Path, rows: int) -> None:
    """Copy the one request of a log until there are so many."""
    with closing(sqlite3.connect(database)) as connection, connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(requests)")]
        copied = ", ".join(
            {"id": "'c' || n", "start_seq": "1000 + n", "end_seq": "1000000 + n"}.get(name, name)
            for name in columns
        )
        connection.execute(
            "WITH RECURSIVE numbers(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < ?)"  # noqa: S608 - own columns
            f" INSERT INTO requests ({', '.join(columns)}) SELECT {copied} FROM requests, numbers",
            (rows,),
        )
