"""The admin server bounds its connections and what each may send."""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import socket
import sqlite3
from contextlib import AsyncExitStack, aclosing, closing
from pathlib import Path
from typing import Any

import pytest

from relayd.admin.client import AdminClientError
from relayd.admin.log_handlers import MAX_FOLLOWERS
from relayd.admin.schema import Hello, RequestPage, Status
from relayd.admin.server import MAX_CONNECTIONS
from relayd.state.reader import LogReader
from tests.admin.harness import AdminHarness, admin_api, raw
from tests.wire import PATIENCE_S, until


async def _first_status(api: AdminHarness) -> Status:
    """Return the status as soon as there is room for the question."""
    async with asyncio.timeout(PATIENCE_S):
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
        assert await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
        writer.close()
        await stack.aclose()
        assert (await _first_status(api)).boot_id == "boot"


async def test_accepting_pauses_while_no_descriptor_is_left(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A warning for each pause, not a traceback for each turn of the loop; then the waiting one is served."""
    caplog.set_level(logging.WARNING)
    said = "the admin socket accepts nothing for 0.2 s"
    loop = asyncio.get_running_loop()
    # The client's own descriptor must exist before none is left.
    async with admin_api(tmp_path) as api:
        with socket.socket(socket.AF_UNIX) as waiting:
            waiting.setblocking(False)  # noqa: FBT003 - the standard library's signature
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            try:
                await loop.sock_connect(waiting, str(api.socket))
                await until(lambda: caplog.text.count(said) >= 2 or "Traceback" in caplog.text)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            assert "Traceback" not in caplog.text
            await loop.sock_sendall(waiting, b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
            got = await asyncio.wait_for(loop.sock_recv(waiting, 100), PATIENCE_S)
            assert got.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"nonsense\r\n\r\n", "not valid HTTP/1.1"),
        (b"GET /status HTTP/9\r\nHost: x\r\n\r\n", "not valid HTTP/1.1"),
        (b"GET /status HTTP/1.1\r\nno colon\r\n\r\n", "not valid HTTP/1.1"),
        (b"GET /status HTTP/1.1\r\n\r\n", "not valid HTTP/1.1"),
        (b"GET /status HTTP/1.1\r\nHost: x\r\nX: " + b"y" * 20_000, "head of the request"),
        (b"POST /keys HTTP/1.1\r\nHost: x\r\nContent-Length: ten\r\n\r\n{}", "not valid HTTP/1.1"),
        (b"POST /keys HTTP/1.1\r\nHost: x\r\nContent-Length: 70000\r\n\r\n{}", "more than 64 KiB"),
        (
            b"POST /keys HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
            "not valid HTTP/1.1",
        ),
        (
            b"POST /keys HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n{}",
            "not valid HTTP/1.1",
        ),
    ],
)
async def test_a_request_that_is_not_http_is_refused_in_json(sent: bytes, said: str, tmp_path: Path) -> None:
    """A script finds the same error document as for any other refusal; then the connection ends."""
    async with admin_api(tmp_path) as api:
        reader, writer = await asyncio.open_unix_connection(str(api.socket))
        writer.write(sent)
        head, _, document = (await asyncio.wait_for(reader.read(), PATIENCE_S)).partition(b"\r\n\r\n")
        writer.close()
        assert head.startswith(b"HTTP/1.1 400 Bad Request\r\nContent-Type: application/json")
        assert b"Content-Length: %d" % len(document) in head
        error = json.loads(document)["error"]
        assert error["code"] == "bad_request"
        assert said in error["message"]
        assert (await api.client.status()).boot_id == "boot"


async def test_followers_leave_room_for_commands(tmp_path: Path) -> None:
    """However many programs follow the events, `relayd keys list` is answered; one that leaves makes room."""
    async with admin_api(tmp_path) as api, AsyncExitStack() as stack:
        followers = [
            await stack.enter_async_context(aclosing(api.client.events())) for _ in range(MAX_FOLLOWERS)
        ]
        for follower in followers:
            assert isinstance(await anext(follower), Hello)
        refused = await raw(api.socket, "GET", "/events")
        assert (refused.status, refused.error[0]) == (503, "too_many_followers")
        assert "96 programs already follow" in refused.error[1]
        # Nor do those that were refused take the room.
        assert refused.headers["connection"] == "close"
        assert (await api.client.keys()).generation == 1
        await followers[0].aclose()
        await until(lambda: len(api.event_bus) < MAX_FOLLOWERS)
        async with aclosing(api.client.events()) as another:
            assert isinstance(await anext(another), Hello)


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


async def test_long_queries_are_interrupted_when_the_daemon_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many wait: else each would keep the daemon from its end for seconds."""
    # Left to themselves, all of them would come to their end.
    monkeypatch.setattr("relayd.state.reader.QUERY_TIMEOUT_S", PATIENCE_S)
    pages = []
    page = LogReader.page

    def observed(reader: LogReader, *given: Any, **chosen: Any) -> RequestPage:
        pages.append(page(reader, *given, **chosen))
        return pages[-1]

    monkeypatch.setattr(LogReader, "page", observed)
    async with admin_api(tmp_path) as api:
        api.log(1, user_agent="a" * 200)
        await api.logged(3)
        _grow(api.state.path, 30_000)
        slow = " ".join(f"user_agent!~a{number}" for number in range(49)) + " model=none"
        queries = [asyncio.create_task(api.client.requests(where=slow)) for _ in range(24)]
        await api.client.status()
    ends = await asyncio.gather(*queries, return_exceptions=True)
    assert all(isinstance(end, AdminClientError) for end in ends)
    assert pages == []


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
