"""Keys that are not valid: one answer for all of them, before any of the body is read."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import pytest

from relayd.state.records import Outcome
from tests.e2e.daemon import KEY, Daemon
from tests.wire import Reply, Wire, ask, body, post, until

ORIGIN = "https://page.example"
_MEGABYTE = 1 << 20

_FORGED = "rly_" + "A" * 8 + "_" + "B" * 49
_WRONG: dict[str, list[bytes]] = {
    "none": [],
    "empty": [b""],
    "a bare scheme": [b"Bearer"],
    "wrong": [b"wrong"],
    "wrong with its scheme": [b"Bearer wrong"],
    "nearly right": [KEY.encode()[:-1]],
    "right and more": [KEY.encode() + b"x"],
    "of another scheme": [b"Basic " + KEY.encode()],
    "shaped like ours": [_FORGED.encode()],
    "twice": [KEY.encode(), KEY.encode()],
    "right and wrong": [KEY.encode(), b"wrong"],
    "two in one line": [KEY.encode() + b", " + KEY.encode()],
    "Latin-1": ["schlüssel".encode("latin-1")],
    "UTF-8": ["鍵🔑".encode()],
    "8 KiB": [b"k" * (8 << 10)],
}


def _request(keys: list[bytes], payload: bytes, length: int | None = None) -> bytes:
    """Return the bytes of a request that came through a trusted proxy."""
    headers = {"Origin": ORIGIN, "X-Forwarded-For": "10.0.0.1"}
    head, _, rest = post(None, payload, headers, length=length).partition(b"\r\n\r\n")
    authorization = b"".join(b"\r\nAuthorization: " + key for key in keys)
    return head + authorization + b"\r\n\r\n" + rest


async def _refused(daemon: Daemon, keys: list[bytes]) -> Reply:
    async with await Wire.open(daemon.port) as wire:
        wire.send(_request(keys, body("demo")))
        return await wire.reply()


def _fields(reply: Reply) -> list[tuple[str, str]]:
    """Header fields, apart from those that differ each time."""
    fields = ((name.lower(), value) for name, value in reply.headers)
    return sorted(field for field in fields if field[0] not in {"date", "x-request-id"})


@pytest.mark.parametrize("name", _WRONG)
async def test_every_wrong_key_gets_the_same_answer(daemon: Daemon, name: str) -> None:
    """Status, headers and body tell nothing of what was wrong; the address is recorded."""
    usual = await _refused(daemon, [b"wrong"])
    reply = await _refused(daemon, _WRONG[name])
    assert reply.status == 401
    assert reply.body == usual.body
    assert _fields(reply) == _fields(usual)
    assert reply.header("WWW-Authenticate") == "Bearer"
    assert reply.header("Access-Control-Allow-Origin") == ORIGIN
    record = await daemon.record(reply)
    assert (record.outcome, record.status) == (Outcome.DENIED, 401)
    assert record.ip == "10.0.0.1"
    assert (record.client, record.key_id) == (None, None)


@pytest.mark.parametrize(
    "keys",
    [[], [b"wrong"], [KEY.encode()] * 2, _WRONG["UTF-8"]],
    ids=["none", "wrong", "twice", "UTF-8"],
)
async def test_a_refused_upload_reads_its_answer(daemon: Daemon, keys: list[bytes]) -> None:
    """A client that sends 8 MB before it reads gets its 401, and not a reset."""
    async with await Wire.open(daemon.port) as wire:
        wire.send(_request(keys, b"x" * (8 * _MEGABYTE)))
        await wire.drained()
        reply = await wire.reply()
        assert reply.status == 401
        assert not reply.cut


async def test_many_refused_senders_leave_nothing_behind(daemon: Daemon) -> None:
    """A hundred of them at once: each reads its 401, and no connection stays."""
    before = _descriptors(daemon)
    replies = await asyncio.gather(*(_refused(daemon, [b"k" * n * 1000]) for n in range(15)))
    assert {reply.status for reply in replies} == {401}
    await until(lambda: _descriptors(daemon) <= before)


def _descriptors(daemon: Daemon) -> int:
    return len(list(Path(f"/proc/{daemon.pid}/fd").iterdir()))


async def test_no_key_is_ever_written_down(daemon: Daemon) -> None:
    """Neither the right one nor a wrong one: not on stderr, not in the database, not in its WAL."""
    wrong = b"a-wrong-key-that-someone-mistyped"
    await _refused(daemon, [wrong])
    reply = await ask(daemon.port, KEY, body("demo:deltas=1"))
    await daemon.record(reply)
    written = daemon.stderr.encode()
    for path in daemon.state_dir.iterdir():
        if not path.is_socket():
            written += path.read_bytes()
    for secret in (KEY.encode(), wrong, _FORGED.encode(), "schlüssel".encode("latin-1")):
        assert secret not in written


async def test_a_valid_key_is_found_through_a_segmented_head(daemon: Daemon) -> None:
    """A head that comes byte by byte is a head."""
    async with await Wire.open(daemon.port) as wire:
        wire.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        request = post(KEY, body("demo:deltas=1"))
        for n in range(0, len(request), 7):
            wire.send(request[n : n + 7])
            await asyncio.sleep(0)
        assert (await wire.reply()).status == 200
