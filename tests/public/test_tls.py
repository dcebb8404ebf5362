"""TLS: what clients are shown, what they are answered, and what happens when the files change."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import warnings
from pathlib import Path

import pytest

from relayd.public.tls import TlsError, TlsFiles, load_context
from relayd.state.records import Outcome
from tests.e2e.daemon import KEY as DAEMON_KEY
from tests.e2e.daemon import Daemon
from tests.harness import KEY, running_relay
from tests.relay.harness import FINISH, answer, running_provider
from tests.support.certificates import Authority, Pair
from tests.wire import DONE, HOST, PATIENCE_S, Reply, Wire, body, post

_SLOW = "demo:text=words,deltas=4,interval_ms=100"


class _Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """Return an authority of this test's own."""
    return Authority(tmp_path / "ca")


def _files(pair: Pair) -> TlsFiles:
    return TlsFiles(pair.cert, pair.key)


async def _open(port: int, context: ssl.SSLContext) -> Wire:
    return Wire(*await asyncio.open_connection(HOST, port, ssl=context))


async def _ask(port: int, context: ssl.SSLContext, key: str, model: str = _SLOW) -> Reply:
    async with await _open(port, context) as wire:
        wire.send(post(key, body(model)))
        return await wire.reply()


async def _common_name(port: int, context: ssl.SSLContext) -> str:
    """Return the common name of the certificate that a new connection is shown."""
    _, writer = await asyncio.open_connection(HOST, port, ssl=context)
    found: str = dict(entry[0] for entry in writer.get_extra_info("peercert")["subject"])["commonName"]
    writer.close()
    await writer.wait_closed()
    return found


async def test_an_answer_over_tls_is_the_answer_over_plain_http(authority: Authority) -> None:
    """Line for line; also one that is much larger than what TLS takes at once."""
    files = _files(authority.pair("one"))
    async with running_relay() as plain, running_relay(tls=files) as relay:
        for model in (_SLOW, "demo:text=words,deltas=3000,interval_ms=0"):
            expected = await plain.ask(model)
            reply = await _ask(relay.port, authority.trusted(), KEY, model)
            assert (reply.status, reply.body) == (200, expected.body)
            assert all(data.endswith(b"\n") for _, data in reply.pieces)
        assert relay.server.url == f"https://{HOST}:{relay.port}"


async def test_each_record_ends_with_a_line(authority: Authority) -> None:
    """A record is what a page is handed at once; RFC 8446, 5.1 gives it 16 KiB, and a write may be longer."""

    def read_records(port: int) -> list[bytes]:
        with (
            socket.create_connection((HOST, port), PATIENCE_S) as plain,
            authority.trusted().wrap_socket(plain, server_hostname=HOST) as client,
        ):
            client.sendall(post(KEY, body("demo"), {"Connection": "close"}))
            return list(iter(lambda: client.recv(32 << 10), b""))

    # Escaped, the text is twice as long as in what one read of the provider brings.
    text = "\u2028" * 100
    event = f'data: {{"choices":[{{"delta":{{"content":"{text}"}}}}]}}\n\n'.encode()
    async with (
        running_provider(answer(event * 400, FINISH)) as provider,
        running_relay(
            tls=_files(authority.pair("one")), upstream_url=lambda _upstream: provider.base_url
        ) as relay,
    ):
        records = await asyncio.to_thread(read_records, relay.port)
    assert all(record.endswith(b"\n") for record in records)
    assert b"".join(records).count(rb"\u2028") == 400 * 100


async def test_the_whole_chain_is_shown(authority: Authority) -> None:
    """A client that trusts the root alone can check a certificate that an intermediate authority signed."""
    intermediate = authority.intermediate("between")
    pair = intermediate.pair("one")
    pair.cert.write_bytes(pair.cert.read_bytes() + intermediate.root.read_bytes())
    async with running_relay(tls=_files(pair)) as relay:
        assert await _common_name(relay.port, authority.trusted()) == "one"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (post("wrong", body(_SLOW)), 401),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 20_000, 400),
        (b"GET / HTTP/3\r\n\r\n", 400),
    ],
)
async def test_refusals_are_answered_over_tls(
    authority: Authority, request_bytes: bytes, status: int
) -> None:
    """A wrong key, an endless head, and a head that is not HTTP."""
    async with (
        running_relay(tls=_files(authority.pair("one"))) as relay,
        await _open(relay.port, authority.trusted()) as wire,
    ):
        wire.send(request_bytes)
        reply = await wire.reply()
    assert reply.status == status
    assert reply.lines[-1] == DONE


@pytest.mark.parametrize("latest", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1])
async def test_what_is_older_than_tls_1_2_is_refused(authority: Authority, latest: ssl.TLSVersion) -> None:
    """A client that can do no better gets no connection; one with TLS 1.2 does."""
    async with running_relay(tls=_files(authority.pair("one"))) as relay:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            old, known = authority.trusted(latest), authority.trusted(ssl.TLSVersion.TLSv1_2)
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await _ask(relay.port, old, KEY)
        assert (await _ask(relay.port, known, KEY)).status == 200


@pytest.mark.parametrize("said", [b"", b"\x16\x03\x01\x02\x00\x01", b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"])
async def test_a_handshake_has_the_time_of_a_head(authority: Authority, said: bytes) -> None:
    """Silence, half a handshake and plain HTTP on a TLS port all end within it, without an answer."""
    files = _files(authority.pair("one"))
    async with (
        running_relay(tls=files, server__header_timeout_s=0.5) as relay,
        await Wire.open(relay.port) as wire,
    ):
        wire.send(said)
        assert b"HTTP" not in await wire.ended()


async def test_a_client_that_leaves_over_tls_is_noticed(authority: Authority) -> None:
    """The provider is let go although nothing could be written to the client."""
    async with running_relay(tls=_files(authority.pair("one"))) as relay:
        async with await _open(relay.port, authority.trusted()) as wire:
            wire.send(post(KEY, body("demo:first_ms=60000")))
            await relay.upstream.wait_request(0)
        await relay.upstream.wait_closed(0)
        assert (await relay.record()).outcome is Outcome.CLIENT_CLOSED


async def test_renewed_files_are_used_for_new_connections(authority: Authority) -> None:
    """An open stream keeps the old certificate; the files are looked at once a second."""
    pair, renewed = authority.pair("one"), authority.pair("two")
    clock, trusted = _Clock(), authority.trusted()
    async with (
        running_relay(tls=TlsFiles(pair.cert, pair.key, clock)) as relay,
        await _open(relay.port, trusted) as wire,
    ):
        head = await wire.begin(post(KEY, body(_SLOW)))
        pair.replace(renewed)
        assert await _common_name(relay.port, trusted) == "one"
        clock.now_s += 1
        assert await _common_name(relay.port, trusted) == "two"
        await wire.rest(head)
        assert head.lines[-1] == DONE


def test_files_are_looked_at_once_a_second(authority: Authority) -> None:
    """Not before a second is over, even if nobody has connected yet."""
    pair, renewed = authority.pair("one"), authority.pair("two")
    clock = _Clock()
    files = TlsFiles(pair.cert, pair.key, clock)
    pair.replace(renewed)
    before = files.context()
    clock.now_s += 0.9
    assert files.context() is before
    clock.now_s += 0.1
    assert files.context() is not before


def test_a_renewal_that_is_half_done_changes_nothing(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    """A new certificate beside the old key, or none at all, is told once and not used; with its key it is."""
    pair, renewed = authority.pair("one"), authority.pair("two")
    clock = _Clock()
    files = TlsFiles(pair.cert, pair.key, clock)
    before = files.context()
    caplog.set_level(logging.INFO, logger="relayd")
    for cert, said in ((None, "cannot be read: No such file"), (renewed.cert, "does not belong")):
        caplog.clear()
        pair.cert.unlink(missing_ok=True)
        if cert is not None:
            pair.cert.write_bytes(cert.read_bytes())
        for _ in range(3):
            clock.now_s += 1
            assert files.context() is before
        assert len(caplog.records) == 1
        assert said in caplog.text
    pair.key.write_bytes(renewed.key.read_bytes())
    clock.now_s += 1
    assert files.context() is not before


def test_files_that_cannot_be_used_are_told_in_words(authority: Authority, tmp_path: Path) -> None:
    """Each sentence names the files and the fault; a passphrase is not asked for at the terminal."""
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


async def test_a_daemon_serves_tls_and_says_so(tmp_path: Path, authority: Authority) -> None:
    """With tls.cert and tls.key the ready line says https, TLS is answered, and plain HTTP is not."""
    with _daemon(tmp_path, authority.pair("one")) as daemon:
        reply = await _ask(daemon.port, authority.trusted(), DAEMON_KEY)
        assert (reply.status, reply.lines[-1]) == (200, DONE)
        async with await Wire.open(daemon.port) as wire:
            wire.send(post(DAEMON_KEY, body(_SLOW)))
            assert b"HTTP" not in await wire.ended()
        assert (await daemon.admin.status()).address == f"https://127.0.0.1:{daemon.port}"
        assert "SSL" not in daemon.stderr, "a client's broken handshake is not worth a line"


def test_a_daemon_with_files_that_do_not_fit_does_not_start(tmp_path: Path, authority: Authority) -> None:
    """It ends with a sentence, before it touches its state."""
    daemon = _daemon(tmp_path, Pair(authority.pair("one").cert, authority.pair("two").key))
    daemon.launch()
    assert daemon.wait() == 1
    assert "does not belong to the certificate" in daemon.stderr
    assert "Traceback" not in daemon.stderr
    assert not daemon.database.exists()


def _daemon(home: Path, pair: Pair) -> Daemon:
    return Daemon(home, settings={"tls.cert": str(pair.cert), "tls.key": str(pair.key)})
