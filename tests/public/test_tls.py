"""`relayd.public.tls`: what clients are shown, and what happens when the files change."""

from __future__ import annotations

import asyncio
import logging
import ssl
import warnings
from pathlib import Path

import pytest

from relayd.public.tls import TlsError, TlsFiles, load_context
from tests.e2e.daemon import KEY as DAEMON_KEY
from tests.e2e.daemon import Daemon
from tests.public.room import KEY, Setup, public_room
from tests.support.certificates import Authority, Pair
from tests.wire import DONE, HOST, Reply, Wire, body, post, until

_SLOW = "demo:text=words,deltas=4,interval_ms=100"


class _Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def _open(port: int, context: ssl.SSLContext) -> Wire:
    reader, writer = await asyncio.open_connection(HOST, port, ssl=context)
    return Wire(reader, writer)


async def _ask(port: int, context: ssl.SSLContext, key: str, model: str = _SLOW) -> Reply:
    async with await _open(port, context) as wire:
        wire.send(post(key, body(model)))
        return await wire.reply()


async def _name(port: int, context: ssl.SSLContext) -> str:
    """The common name of the certificate that a new connection is shown."""
    _, writer = await asyncio.open_connection(HOST, port, ssl=context)
    found: str = dict(entry[0] for entry in writer.get_extra_info("peercert")["subject"])["commonName"]
    writer.close()
    await writer.wait_closed()
    return found


async def test_an_answer_over_tls_is_the_answer_over_plain_http(tmp_path: Path) -> None:
    """Line for line, chunk for chunk; also one that is much larger than what TLS takes at once."""
    authority = Authority(tmp_path)
    pair = authority.pair("one")
    long = "demo:text=words,deltas=3000,interval_ms=0"
    async with public_room() as plain, public_room(Setup(tls=TlsFiles(pair.cert, pair.key))) as room:
        for model in (_SLOW, long):
            expected = await plain.ask(model)
            reply = await _ask(room.port, authority.trusted(), KEY, model)
            assert (reply.status, reply.body) == (200, expected.body)
            assert all(data.endswith(b"\n") for _, data in reply.pieces)


async def test_a_refusal_and_a_head_too_large_are_answered_over_tls(tmp_path: Path) -> None:
    """A wrong key, an endless head and a head that is no HTTP get their words before the end."""
    authority = Authority(tmp_path)
    pair = authority.pair("one")
    async with public_room(Setup(tls=TlsFiles(pair.cert, pair.key))) as room:
        assert (await _ask(room.port, authority.trusted(), "a-key-that-is-wrong")).status == 401
        for request, status in (
            (b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000, 401),
            (b"GET / HTTP/3\r\n\r\n", 400),
        ):
            async with await _open(room.port, authority.trusted()) as wire:
                wire.send(request)
                assert (await wire.reply()).status == status


@pytest.mark.parametrize("latest", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
async def test_what_is_older_than_tls_1_2_is_refused(tmp_path: Path, latest: ssl.TLSVersion) -> None:
    """A client that can do no better gets no connection; one with TLS 1.2 does."""
    authority = Authority(tmp_path)
    pair = authority.pair("one")
    async with public_room(Setup(tls=TlsFiles(pair.cert, pair.key))) as room:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            old, known = authority.trusted(latest), authority.trusted(ssl.TLSVersion.TLSv1_2)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await _ask(room.port, old, KEY)
        assert (await _ask(room.port, known, KEY)).status == 200


async def test_who_never_shakes_hands_is_gone_in_time(tmp_path: Path) -> None:
    """Silence, half a handshake and plain HTTP on a TLS port all end within the header's time."""
    authority = Authority(tmp_path)
    pair = authority.pair("one")
    setup = Setup(tls=TlsFiles(pair.cert, pair.key), header_timeout_s=0.3)
    async with public_room(setup) as room:
        for said in (b"", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"):
            async with await Wire.open(room.port) as wire:
                wire.send(said)
                assert b"HTTP" not in await asyncio.wait_for(wire.ended(), 30)
        await until(lambda: len(room.connections) == 0)


async def test_a_client_that_leaves_over_tls_is_noticed(tmp_path: Path) -> None:
    """The provider is let go although nothing could be written to who left."""
    authority = Authority(tmp_path)
    pair = authority.pair("one")
    async with public_room(Setup(tls=TlsFiles(pair.cert, pair.key))) as room:
        async with await _open(room.port, authority.trusted()) as wire:
            wire.send(post(KEY, body("demo:first_ms=60000")))
            await until(lambda: room.demo.requests)
        record = await room.book.record()
    assert record.outcome == "client_closed"
    assert (record.duration_ms or 0) < 5000


async def test_renewed_files_are_used_for_new_connections_alone(tmp_path: Path) -> None:
    """A stream that is open goes on under the old certificate; who connects next sees the new one."""
    authority = Authority(tmp_path)
    pair, renewed = authority.pair("one"), authority.pair("two")
    clock = _Clock()
    trusted = authority.trusted()
    setup = Setup(tls=TlsFiles(pair.cert, pair.key, clock))
    async with public_room(setup) as room, await _open(room.port, trusted) as wire:
        wire.send(post(KEY, body(_SLOW)))
        head = await wire.head()
        await wire.first_piece(head)
        pair.replace(renewed)
        assert await _name(room.port, trusted) == "one"
        clock.now_s += 1
        assert await _name(room.port, trusted) == "two"
        async for _ in wire.pieces(head):
            pass
        assert head.lines[-1] == DONE


async def test_a_renewal_that_is_half_done_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A new certificate beside the old key is told once and not used; with its key it is used."""
    authority = Authority(tmp_path)
    pair, renewed = authority.pair("one"), authority.pair("two")
    clock = _Clock()
    files = TlsFiles(pair.cert, pair.key, clock)
    before = files.context()
    pair.cert.write_bytes(renewed.cert.read_bytes())
    with caplog.at_level(logging.INFO, logger="relayd"):
        for _ in range(3):
            clock.now_s += 1
            assert files.context() is before
    assert len(caplog.records) == 1
    assert "does not belong to the certificate" in caplog.text
    pair.key.write_bytes(renewed.key.read_bytes())
    clock.now_s += 1
    assert files.context() is not before


def test_files_that_cannot_be_used_are_told_in_words(tmp_path: Path) -> None:
    """Each sentence names the files and the fault, and waits for nobody at a terminal."""
    authority = Authority(tmp_path)
    good, other = authority.pair("one"), authority.pair("two")
    locked = authority.pair("locked", passphrase="open sesame")
    junk = tmp_path / "junk.pem"
    junk.write_text("no certificate\n")
    for cert, key, words in (
        (good.cert, other.key, "does not belong"),
        (junk, good.key, "not in PEM form"),
        (tmp_path / "absent.pem", good.key, "No such file"),
    ):
        with pytest.raises(TlsError, match=words) as caught:
            load_context(cert, key)
        assert str(cert) in str(caught.value)
    with pytest.raises(TlsError, match=f"{locked.key} has a passphrase"):
        load_context(locked.cert, locked.key)


@pytest.mark.timeout(180)
async def test_the_daemon_serves_tls_and_says_so(tmp_path: Path) -> None:
    """With tls.cert and tls.key the ready line says https, TLS is answered, and plain HTTP is not."""
    authority = Authority(tmp_path / "ca")
    pair = authority.pair("one")
    with TlsDaemon(tmp_path, pair) as daemon:
        reply = await _ask(daemon.port, authority.trusted(), DAEMON_KEY)
        assert (reply.status, reply.lines[-1]) == (200, DONE)
        async with await Wire.open(daemon.port) as wire:
            wire.send(post(DAEMON_KEY, body(_SLOW)))
            assert b"HTTP" not in await wire.ended()
        assert (await daemon.admin.status()).address == f"https://127.0.0.1:{daemon.port}"
        assert "SSL" not in daemon.stderr, "a stranger's broken handshake is not worth a line"


def test_a_daemon_with_files_that_do_not_fit_does_not_start(tmp_path: Path) -> None:
    """It ends with a sentence, before it touches its state."""
    authority = Authority(tmp_path / "ca")
    daemon = TlsDaemon(tmp_path, Pair(authority.pair("one").cert, authority.pair("two").key))
    daemon.launch()
    assert daemon.wait() == 1
    assert "does not belong to the certificate" in daemon.stderr
    assert "Traceback" not in daemon.stderr
    assert not daemon.database.exists()


class TlsDaemon(Daemon):
    """A demo daemon that serves TLS."""

    def __init__(self, home: Path, pair: Pair) -> None:
        super().__init__(home, settings={"tls.cert": str(pair.cert), "tls.key": str(pair.key)})
