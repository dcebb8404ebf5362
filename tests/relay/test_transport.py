"""What the SDK builds, carried over relayd's own connections."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

import httpx2
import pytest

from relayd.relay.pool import Origin, Pool
from relayd.relay.transport import Attempt, Prepared, Transport, UnexpectedEncoding, answer_of, attempt
from tests.relay.room import PROVIDER_KEY
from tests.support.upstream import FaultUpstream

_PATH = "/v1/chat/completions"


def _nothing() -> None:
    """Nobody counts connections here."""


@asynccontextmanager
async def _transport(port: int) -> AsyncGenerator[Transport, None]:
    transport = Transport(Pool(Origin("127.0.0.1", port, None), connect_timeout_s=5.0))
    try:
        yield transport
    finally:
        await transport.aclose()


def _request(demo: FaultUpstream, model: str) -> httpx2.Request:
    return httpx2.Request(
        "POST",
        f"{demo.base_url}/chat/completions?a=%20b",
        headers={b"Authorization": f"Bearer {PROVIDER_KEY}".encode(), b"X-Odd": "Ünïcode".encode("latin-1")},
        json={"model": model, "stream": True, "messages": [{"role": "user", "content": "Hi"}]},
    )


async def _carried(transport: Transport, request: httpx2.Request, trial: Attempt) -> httpx2.Response:
    token = attempt.set(trial)
    try:
        return await transport.handle_async_request(request)
    finally:
        attempt.reset(token)


async def test_a_request_is_carried_as_it_was_built() -> None:
    """Path, query, headers and body arrive; the connection's making is told once."""
    connected: list[int] = []
    async with FaultUpstream(PROVIDER_KEY) as demo, _transport(demo.port) as transport:
        response = await _carried(
            transport, _request(demo, "demo:deltas=1"), Attempt(lambda: connected.append(1))
        )
        seen = demo.requests[0]
        assert response.status_code == 200
        assert answer_of(response).status == 200
        while await answer_of(response).read():
            pass
        await response.aclose()
    assert (seen.method, seen.path, seen.authorized) == ("POST", _PATH, True)
    assert b'"demo:deltas=1"' in seen.body
    assert connected == [1]


async def test_a_captured_request_is_not_sent() -> None:
    """Its head is what would be sent, without the length of a body that is not known yet."""
    async with FaultUpstream(PROVIDER_KEY) as demo, _transport(demo.port) as transport:
        with pytest.raises(Prepared) as captured:
            await _carried(transport, _request(demo, "demo"), Attempt(_nothing, capture=True))
        assert demo.total_requests == 0
    head = captured.value.head
    assert head.startswith(f"POST {_PATH}?a=%20b HTTP/1.1\r\n".encode())
    assert b"content-length" not in head.lower()
    assert "X-Odd: Ünïcode\r\n".encode("latin-1") in head
    assert head.endswith(b"\r\n")
    assert PROVIDER_KEY not in str(captured.value) + repr(captured.value)


async def test_a_first_try_is_handed_on_once() -> None:
    """What relayd's own try brought is the SDK's first outcome; its next try is a real one."""
    async with FaultUpstream(PROVIDER_KEY) as demo, _transport(demo.port) as transport:
        request = _request(demo, "demo:deltas=1")
        trial = Attempt(_nothing, first=httpx2.ReadError("it broke"))
        with pytest.raises(httpx2.ReadError, match="it broke"):
            await _carried(transport, request, trial)
        assert demo.total_requests == 0
        response = await _carried(transport, request, trial)
        assert (response.status_code, demo.total_requests) == (200, 1)
        await response.aclose()


async def test_each_trouble_has_its_type() -> None:
    """Nobody there, a broken connection, and an answer that is compressed unasked."""
    async with FaultUpstream(PROVIDER_KEY) as demo, _transport(demo.port) as transport:
        with pytest.raises(httpx2.ReadError):
            await _carried(transport, _request(demo, "demo:fault=cut_headers"), Attempt(_nothing))
        with pytest.raises(UnexpectedEncoding):
            await _carried(transport, _request(demo, "demo:fault=gzip"), Attempt(_nothing))
        async with _transport(1) as nowhere:
            with pytest.raises(httpx2.ConnectError):
                await _carried(nowhere, _request(demo, "demo"), Attempt(_nothing))


async def test_what_an_error_says_is_read_up_to_a_bound() -> None:
    """64 KiB of three megabytes; then the connection is cut."""
    async with FaultUpstream(PROVIDER_KEY) as demo, _transport(demo.port) as transport:
        model = "demo:fault=huge_error_body,size=3000000"
        response = await _carried(transport, _request(demo, model), Attempt(_nothing))
        assert len(await response.aread()) == 64 << 10
        await response.aclose()
