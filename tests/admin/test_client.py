"""Behaviour of `relayd.admin.client`: typed answers, and typed reasons for none."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.admin.client import (
    AdminClient,
    AdminClientError,
    AnswerUnknown,
    NoDaemon,
    Refused,
    VersionMismatch,
)
from relayd.admin.schema import PROTOCOL, PROTOCOL_HEADER
from relayd.admin.unix_socket import explain_denial
from tests.admin.harness import admin_api

_ASCII = st.characters(max_codepoint=127)
_OK = f"HTTP/1.1 200 OK\r\n{PROTOCOL_HEADER}: {PROTOCOL}\r\n"


@asynccontextmanager
async def _playing(path: Path, *pieces: str | bytes) -> AsyncIterator[AdminClient]:
    """A daemon that reads a question and answers this, piece by piece, whatever it was."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for piece in pieces:
            writer.write(piece.encode() if isinstance(piece, str) else piece)
            await writer.drain()
            await asyncio.sleep(0)
        writer.close()

    server = await asyncio.start_unix_server(serve, str(path))
    try:
        yield AdminClient(path)
    finally:
        server.close()
        await server.wait_closed()


def _answer(body: str, status: str = "200 OK", protocol: str = PROTOCOL) -> str:
    head = f"HTTP/1.1 {status}\r\n{PROTOCOL_HEADER}: {protocol}\r\nContent-Length: {len(body)}\r\n\r\n"
    return head + body


def _change(client: AdminClient) -> Coroutine[Any, Any, object]:
    return client.rotate_key("id", grace_s=1, generation=1, idempotency_key="k")


@pytest.mark.parametrize("kind", ["nothing", "stale", "file", "no directory"])
async def test_without_a_daemon_the_error_names_the_path(kind: str, tmp_path: Path) -> None:
    """`NoDaemon` says which path was tried, whatever is or is not there."""
    path = tmp_path / "admin.sock"
    if kind == "stale":
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(path))
    elif kind == "file":
        path.touch()
    elif kind == "no directory":
        path = tmp_path / "none" / "admin.sock"
    with pytest.raises(NoDaemon, match=str(path)):
        await AdminClient(path).status()


@pytest.mark.parametrize("ask", [AdminClient.status, AdminClient.drain, _change])
async def test_a_daemon_of_another_version_is_said_so(
    ask: Callable[[AdminClient], Coroutine[Any, Any, object]], tmp_path: Path
) -> None:
    """By the number in its answers, by its own refusal, or by an answer that can't be read."""
    for wire in (
        _answer("{}", protocol="2"),
        "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
        _answer('{"error":{"code":"version_mismatch","message":"other"}}', status="409 Conflict"),
        _answer('{"version":1}'),
        _answer("[]"),
    ):
        async with _playing(tmp_path / "s", wire) as client:
            with pytest.raises(VersionMismatch):
                await ask(client)


@pytest.mark.parametrize(
    "wire",
    [
        "",
        "HTTP/1.1 200",
        "SSH-2.0-OpenSSH_9.2\r\n\r\n",
        "HTTP/1.1 yes OK\r\n\r\n",
        f"{_OK}X: {'y' * 70_000}",
        f"{_OK}Content-Length: 5\r\n\r\n{{",
        f"{_OK}Content-Length: x\r\n\r\n{{",
        f"{_OK}Content-Length: {65 << 20}\r\n\r\n",
        f"{_OK}Transfer-Encoding: chunked\r\n\r\nzz\r\nok",
        f"{_OK}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n",
    ],
)
async def test_a_change_whose_answer_breaks_off_is_unknown_and_a_question_is_not(
    wire: str, tmp_path: Path
) -> None:
    """What was sent may have happened: only changes say so."""
    async with _playing(tmp_path / "s", wire) as client:
        with pytest.raises(AnswerUnknown, match="may or may not have happened"):
            await _change(client)
        with pytest.raises(AnswerUnknown):
            await client.pause()
        with pytest.raises(AdminClientError) as trouble:
            await client.status()
        assert type(trouble.value) is AdminClientError


async def test_an_answer_that_does_not_come_is_waited_for_only_so_long(tmp_path: Path) -> None:
    """A daemon that hangs is told from one that is down, and a change from a question."""
    with socket.socket(socket.AF_UNIX) as mute:
        mute.bind(str(tmp_path / "s"))
        mute.listen(8)
        client = AdminClient(tmp_path / "s", answer_timeout_s=0.2)
        with pytest.raises(AdminClientError, match=r"did not answer within 0\.2 s"):
            await client.status()
        with pytest.raises(AnswerUnknown, match=r"did not answer within 0\.2 s"):
            await _change(client)


async def test_a_refusal_has_its_status_its_code_and_its_sentence(tmp_path: Path) -> None:
    """Also one that does not come from relayd."""
    async with admin_api(tmp_path) as api:
        with pytest.raises(Refused, match="'nope'") as refusal:
            await api.client.request("nope")
        assert (refusal.value.status, refusal.value.code) == (404, "not_found")
    async with _playing(tmp_path / "s", _answer("<html>", status="502 Bad Gateway")) as client:
        with pytest.raises(Refused, match="502"):
            await client.status()


async def test_every_question_is_answered_in_its_type(tmp_path: Path) -> None:
    """Against the real routes; odd ids and filters travel unharmed."""
    async with admin_api(tmp_path) as api:
        client = api.client
        api.log(3, client="web")
        await api.logged(7)
        assert (await client.status()).seq == 7
        page = await client.requests(where='client="web" id~r00', limit=2)
        assert [record.id for record in page.records] == ["r000002", "r000001"]
        older = await client.requests(before=page.next_before, after=1)
        assert [record.id for record in older.records] == ["r000000"]
        assert (await client.request("r000001")).client == "web"
        assert (await client.audit(limit=1)).entries[0].action == "fill"
        assert (await client.keys()).generation == 1
        assert "relayd_keys" in await client.metrics()
        with pytest.raises(Refused, match="'a/b"):
            await client.request("a/b?c d\u00e9")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
async def test_another_user_is_told_what_stops_him_and_what_mends_it(tmp_path: Path) -> None:
    """`Denied` names the path, the missing permission, its owner, and a command."""
    base = Path(tempfile.gettempdir())
    for parent in (tmp_path, *tmp_path.parents):
        if base in parent.parents:
            parent.chmod(0o755)
    program = (
        "import asyncio, os, sys\n"
        "from pathlib import Path\n"
        "import relayd.admin.unix_socket\n"
        "from relayd.admin.client import AdminClient\n"
        "from relayd.admin.client import Denied\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: asyncio.run(AdminClient(Path(sys.argv[1])).status())\n"
        "except Denied as error: print(error)\n"
    )
    async with admin_api(tmp_path) as api:
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", program, str(api.socket)],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    assert f"may not enter {tmp_path}/state: search (x) permission is missing" in done.stdout
    assert "owner root" in done.stdout
    assert "mode 0700" in done.stdout
    assert "admin.group" in done.stdout


@pytest.mark.parametrize(
    ("mode", "advice"), [(0o660, "Join the group"), (0o640, "Act as the owner"), (0o600, "Act as the owner")]
)
def test_only_a_group_that_may_write_is_advised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int, advice: str
) -> None:
    """To join another one would not help."""
    path = tmp_path / "admin.sock"
    path.touch(mode)
    path.chmod(mode)
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    assert explain_denial(path).partition("). ")[2].startswith(advice)


@given(
    chunks=st.lists(st.text(_ASCII, min_size=1, max_size=50), max_size=6),
    cuts=st.lists(st.integers(0, 400), max_size=8),
)
@settings(max_examples=50)
def test_an_answer_is_whole_however_it_is_cut(chunks: list[str], cuts: list[int]) -> None:
    """Any chunks, sent in any pieces, give the same text."""
    sent = f"{_OK}Transfer-Encoding: chunked\r\n\r\n".encode()
    sent += b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk.encode()) for chunk in chunks) + b"0\r\n\r\n"
    places = [0, *sorted(cut % len(sent) for cut in cuts), len(sent)]

    async def ask() -> str:
        with tempfile.TemporaryDirectory() as folder:
            pieces = [sent[start:end] for start, end in pairwise(places)]
            async with _playing(Path(folder) / "s", *pieces) as client:
                return await client.metrics()

    assert asyncio.run(ask()) == "".join(chunks)
