"""`upstream.proxy`: answers come through a real proxy, and its refusals are told without its password."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from relayd.relay.errors import ErrorCode, RelayError
from relayd.relay.upstream import Upstream, UpstreamOptions
from tests.harness import running_relay
from tests.support.certificates import certificate
from tests.support.proxy import PASSWORD, running_proxy, serving, tls_front
from tests.support.upstream import FaultUpstream
from tests.wire import HOST

_KEY = "provider-key-of-the-proxy-test"
_SHORT = "demo:deltas=2,interval_ms=0,text=words"
_UNREACHABLE = "upstream_unreachable: The provider cannot be reached: "


@pytest.mark.parametrize("scheme", ["http", "socks5"])
async def test_answers_come_through_the_proxy(scheme: str) -> None:
    """A kept connection through the proxy carries the next request too."""
    async with running_proxy() as proxy, running_relay(upstream__proxy=proxy.url(scheme)) as relay:
        for _ in range(2):
            reply = await relay.ask(_SHORT)
            assert (reply.status, reply.lines[-1]["content"]) == (200, "[DONE]")
        assert proxy.targets == [f"{HOST}:{relay.upstream.port}"]


@pytest.mark.parametrize(
    ("scheme", "reason"),
    [
        ("http", "407 Proxy Authentication Required"),
        ("socks5", "Username and password authentication failure"),
    ],
)
async def test_a_wrong_password_is_told_without_the_password(
    scheme: str, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The client's sentence names the proxy; the password is nowhere."""
    caplog.set_level(logging.DEBUG)
    async with (
        running_proxy() as proxy,
        running_relay(upstream__proxy=proxy.url(scheme, "wrong-word")) as relay,
    ):
        reply = await relay.ask(_SHORT)
        record = await relay.record()
    said = f"{_UNREACHABLE}the proxy {scheme}://{HOST}:{proxy.port} refused: {reason}."
    assert (reply.status, reply.error) == (502, said)
    assert "wrong-word" not in caplog.text + repr(record)
    assert proxy.targets == []


@pytest.mark.parametrize(
    ("scheme", "refusal", "reason"),
    [
        ("http", 403, "403 Forbidden"),
        ("http", 599, "599"),
        ("socks5", 2, "Connection not allowed by ruleset"),
    ],
)
async def test_a_refused_target_is_told(scheme: str, refusal: int, reason: str) -> None:
    """The proxy's reason reaches the client, and nothing reaches the provider."""
    async with (
        running_proxy(refusal=refusal) as proxy,
        running_relay(upstream__proxy=proxy.url(scheme)) as relay,
    ):
        reply = await relay.ask(_SHORT)
        assert relay.upstream.total_requests == 0
    said = f"{_UNREACHABLE}the proxy {scheme}://{HOST}:{proxy.port} refused: {reason}."
    assert (reply.status, reply.error) == (502, said)


@pytest.mark.parametrize("scheme", ["http", "https", "socks5"])
async def test_a_proxy_that_does_not_listen_is_told(scheme: str) -> None:
    """The sentence names it, so that the provider is not suspected."""
    async with running_proxy() as proxy:
        url = proxy.url(scheme)
    async with running_relay(upstream__proxy=url) as relay:
        reply = await relay.ask(_SHORT)
    said = f"{_UNREACHABLE}the proxy {scheme}://{HOST}:{proxy.port} cannot be reached: Connection refused."
    assert reply.error == said


@asynccontextmanager
async def _strange_proxy(reply: bytes | None) -> AsyncIterator[str]:
    """Run a server that answers anything with this and closes, or stays silent; yield host and port."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        if reply is None:
            await reader.read()
        else:
            writer.write(reply)

    async with serving(answer) as port:
        yield f"{HOST}:{port}"


@pytest.mark.parametrize("scheme", ["http", "https", "socks5"])
async def test_the_time_limit_covers_the_proxy(scheme: str) -> None:
    """A proxy that accepts and says nothing ends at the connect timeout."""
    async with (
        _strange_proxy(None) as where,
        running_relay(upstream__proxy=f"{scheme}://{where}", upstream__connect_timeout_s=0.2) as relay,
    ):
        reply = await relay.ask(_SHORT)
    said = f"{_UNREACHABLE}no connection within 0.2 s through the proxy {scheme}://{where}."
    assert reply.error == said


@pytest.mark.parametrize(
    ("scheme", "reply", "reason"),
    [
        ("http", b"", "closed the connection"),
        ("http", b"HTTP/1.1 200 OK\r\n", "closed the connection"),
        ("http", b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "does not speak HTTP"),
        ("http", b"HTTP/1.1 200 OK\r\nX-Long: " + b"x" * 70_000, "does not speak HTTP"),
        ("https", b"", "cannot be reached: the connection was closed"),
        ("HTTPS", b"HTTP/1.1 200 OK\r\n\r\n", "cannot be reached: TLS failed: wrong version number."),
        ("socks5", b"", "refused: Connection closed unexpectedly"),
        ("socks5", b"HTTP/1.1 400 Bad Request\r\n\r\n", "refused: "),
        ("socks5", b"\x05\x00\x05\x00\x00\x03\x01\xff\x00\x50", "refused: "),
    ],
)
async def test_what_is_no_proxy_is_told(scheme: str, reply: bytes, reason: str) -> None:
    """A server of another kind, or one that breaks off, is a typed error."""
    async with _strange_proxy(reply) as where, running_relay(upstream__proxy=f"{scheme}://{where}") as relay:
        got = await relay.ask(_SHORT)
    assert str(got.error).startswith(f"{_UNREACHABLE}the proxy {scheme.lower()}://{where} {reason}")


async def _ask_over_tls(scheme: str, home: Path) -> None:
    """Ask a provider whose certificate is right, and one whose is not, by names that only the proxy knows."""
    server, trusted = certificate(home, f"IP:{HOST},DNS:provider.example", days=30)

    async def ask(url: str, name: str) -> bytes:
        options = UpstreamOptions(f"https://{name}/v1", max_retries=0, proxy_url=url, ssl_context=trusted)
        assert PASSWORD not in repr(options)
        client = Upstream(_KEY, options)
        try:
            answer = await client.open(
                b'{"model":"%s","messages":[],"stream":true}' % _SHORT.encode(), lambda _route: None
            )
            return await answer.body.read(100_000)
        finally:
            await client.close()

    async with (
        FaultUpstream(_KEY) as upstream,
        tls_front(upstream.port, server) as front_port,
        running_proxy(target_port=front_port, tls=server if scheme == "https" else None) as proxy,
    ):
        assert b"data: [DONE]" in await ask(proxy.url(scheme), "provider.example")
        with pytest.raises(RelayError, match="certificate is not trusted: Hostname mismatch") as caught:
            await ask(proxy.url(scheme), "other.example")
        assert caught.value.code is ErrorCode.UPSTREAM_UNREACHABLE
        assert proxy.targets == ["provider.example:443", "other.example:443"]


@pytest.mark.parametrize("scheme", ["http", "https", "socks5"])
async def test_tls_to_the_provider_goes_through_the_proxy(scheme: str, tmp_path: Path) -> None:
    """The proxy looks up the provider's name; its certificate is checked; also within TLS to the proxy."""
    await _ask_over_tls(scheme, tmp_path)


@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_the_standard_librarys_loop_goes_through_the_proxy_too(scheme: str, tmp_path: Path) -> None:
    """But for https: up to Python 3.11.7 its TLS within TLS raises TypeError when a handshake fails."""
    asyncio.run(_ask_over_tls(scheme, tmp_path))
