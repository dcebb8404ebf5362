"""Requests that are sent as they are: their bytes, bodies in pieces, and every way for those to break off."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest

from relayd.relay.errors import ErrorCode, RelayError
from relayd.relay.upstream import Upstream, UpstreamRequest, UpstreamResponse
from tests.relay.harness import PROVIDER_KEY, Break, client_of, error, http, running_provider
from tests.wire import HOST, PATIENCE_S

_PIECE = b"x" * (64 << 10)
_OK = http(200, b'{"ok":true}')


async def _send(upstream: Upstream, request: UpstreamRequest) -> UpstreamResponse:
    return await asyncio.wait_for(upstream.send(request, lambda _route: None), PATIENCE_S)


async def _read(response: UpstreamResponse) -> bytes:
    body = await asyncio.wait_for(response.body.read(1 << 30), PATIENCE_S)
    response.body.close()
    return body


class _Upload:
    """A body in pieces that notes how far it was asked for, and whether it was let go."""

    def __init__(self, *pieces: bytes | Exception, hangs: bool = False) -> None:
        self.has_begun = asyncio.Event()
        self.is_let_go = asyncio.Event()
        self._pieces, self._hangs = pieces, hangs

    async def __aiter__(self) -> AsyncIterator[bytes]:
        self.has_begun.set()
        try:
            for piece in self._pieces:
                if isinstance(piece, Exception):
                    raise piece
                yield piece
            if self._hangs:
                await asyncio.Event().wait()
        finally:
            self.is_let_go.set()

    def request(self, content_length: int | None = None) -> UpstreamRequest:
        """The request that uploads it."""
        return UpstreamRequest("POST", "/files", body=aiter(self), content_length=content_length)


_Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def _server(handle: _Handler, *, receive_buffer_bytes: int = 0) -> AsyncIterator[str]:
    """Run a server whose connections a test handles, after the head of a request; yield its base URL."""
    handlers: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        handlers.add(task)
        try:
            await reader.readuntil(b"\r\n\r\n")
            await handle(reader, writer)
        finally:
            writer.close()

    listening = socket.create_server((HOST, 0))
    if receive_buffer_bytes:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    server = await asyncio.start_server(serve, sock=listening)
    try:
        yield f"http://{HOST}:{listening.getsockname()[1]}/v1"
    finally:
        server.close()
        for task in handlers:
            task.cancel()
        await asyncio.gather(*handlers, return_exceptions=True)


async def test_a_request_arrives_as_it_was_given_with_the_key_and_no_more() -> None:
    """The target below the API's base, the headers in order, the body byte for byte, over one connection."""
    async with running_provider([_OK]) as provider, client_of(provider.base_url) as upstream:
        post = UpstreamRequest("POST", "/audio/speech?x=%20y", [(b"Content-Type", b"a/b")], b'{"a":\xff}')
        get = UpstreamRequest("GET", "/models/gpt%2F4")
        for request in (post, get):
            response = await _send(upstream, request)
            assert (response.status, response.route, response.refusal, response.error) == (
                200,
                None,
                None,
                None,
            )
            assert await _read(response) == b'{"ok":true}'
    common = (
        f"Host: {HOST}:{provider.port}\r\nAuthorization: Bearer {PROVIDER_KEY}\r\nAccept-Encoding: identity"
    )
    length = "Content-Type: a/b\r\nContent-Length: 7"
    assert provider.requests == [
        f"POST /v1/audio/speech?x=%20y HTTP/1.1\r\n{common}\r\n{length}\r\n\r\n".encode() + b'{"a":\xff}',
        f"GET /v1/models/gpt%2F4 HTTP/1.1\r\n{common}\r\n\r\n".encode(),
    ]
    assert provider.connections == 1


async def test_a_body_in_pieces_arrives_whole_with_its_length() -> None:
    """Empty pieces change nothing; the connection serves again."""
    async with running_provider([_OK]) as provider, client_of(provider.base_url) as upstream:
        for _ in range(2):
            response = await _send(upstream, _Upload(b"ab", b"", b"c").request(content_length=3))
            await _read(response)
    assert [request.partition(b"\r\n\r\n")[2] for request in provider.requests] == [b"abc", b"abc"]
    assert provider.connections == 1


async def test_a_body_of_unknown_length_is_sent_chunked() -> None:
    """Each piece is a chunk, and an empty one does not end the body."""
    received = bytearray()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        received.extend(await reader.readuntil(b"\r\n0\r\n\r\n"))
        writer.write(_OK)

    async with _server(handle) as base_url, client_of(base_url) as upstream:
        await _read(await _send(upstream, _Upload(b"ab", b"", b"c" * 17).request()))
    assert received == b"2\r\nab\r\n11\r\n" + b"c" * 17 + b"\r\n0\r\n\r\n"


async def test_a_provider_that_reads_slowly_slows_the_upload() -> None:
    """No more is asked for than the kernel and one write buffer hold."""
    count = 512
    asked = read = ahead = 0

    async def pieces() -> AsyncIterator[bytes]:
        nonlocal asked, ahead
        for _ in range(count):
            asked += len(_PIECE)
            ahead = max(ahead, asked - read)
            yield _PIECE

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal read
        while read < count * len(_PIECE):
            read += len(await reader.readexactly(len(_PIECE)))
        writer.write(_OK)

    async with _server(handle, receive_buffer_bytes=64 << 10) as base_url, client_of(base_url) as upstream:
        request = UpstreamRequest("POST", "/files", body=pieces(), content_length=count * len(_PIECE))
        await _read(await _send(upstream, request))
    assert read == count * len(_PIECE)
    # Linux gives a socket at most 4 MiB to send from (tcp_wmem), unless told otherwise.
    assert ahead < read // 2


async def test_a_refusal_before_the_body_was_sent_is_taken_and_the_rest_is_not_sent() -> None:
    """The upload is let go at once, though its next piece never comes, and the connection is cut."""
    cut = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(error(413, f"Too large for {PROVIDER_KEY}."))
        await reader.read()
        cut.set()

    async with _server(handle) as base_url, client_of(base_url) as upstream:
        upload = _Upload(b"a", hangs=True)
        response = await _send(upstream, upload.request(content_length=9))
        await asyncio.wait_for(upload.is_let_go.wait(), PATIENCE_S)
        await asyncio.wait_for(cut.wait(), PATIENCE_S)
    assert (response.status, response.refusal) == (413, b'{"error": {"message": "Too large for [key]."}}')
    assert response.error is not None
    assert response.error.code is ErrorCode.UPSTREAM_REJECTED


async def test_a_refusal_is_read_before_a_write_could_lose_it() -> None:
    """A provider that refuses and closes without reading the rest resets the connection at the next write."""
    refused = threading.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield _PIECE
        # The loop stands still until the refusal is in the kernel, so nothing has read it.
        assert refused.wait(PATIENCE_S)
        for _ in range(1000):
            yield _PIECE

    def refuse(listening: socket.socket) -> None:
        connection, _ = listening.accept()
        with connection:
            connection.recv(1)
            connection.sendall(error(413, "No."))
        refused.set()

    with socket.create_server((HOST, 0)) as listening:
        refusing = asyncio.create_task(asyncio.to_thread(refuse, listening))
        async with client_of(f"http://{HOST}:{listening.getsockname()[1]}/v1") as upstream:
            response = await _send(upstream, UpstreamRequest("POST", "/files", body=pieces()))
        await refusing
    assert response.status == 413


async def test_an_answer_that_begins_early_does_not_end_the_upload() -> None:
    """A provider may answer while it reads; all of the body still arrives."""
    received = bytearray()
    go = asyncio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"first"
        await go.wait()
        yield b"last"

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
        received.extend(await reader.readexactly(9))
        writer.write(b"done")

    async with _server(handle) as base_url, client_of(base_url) as upstream:
        request = UpstreamRequest("POST", "/files", body=pieces(), content_length=9)
        response = await _send(upstream, request)
        go.set()
        assert await _read(response) == b"done"
    assert received == b"firstlast"


@pytest.mark.parametrize("has_head", [False, True])
async def test_leaving_in_the_middle_of_an_upload_cuts_the_connection(*, has_head: bool) -> None:
    """Before the head of the response or after it: the provider sees it at once, and the upload is let go."""
    cut = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if has_head:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
        while await reader.read(1 << 16):
            pass
        cut.set()

    async with _server(handle) as base_url, client_of(base_url) as upstream:
        upload = _Upload(b"a", hangs=True)
        sending = asyncio.create_task(_send(upstream, upload.request(content_length=9)))
        if has_head:
            (await sending).body.close()
        else:
            await asyncio.wait_for(upload.has_begun.wait(), PATIENCE_S)
            sending.cancel()
            await asyncio.wait([sending])
        await asyncio.wait_for(cut.wait(), PATIENCE_S)
        await asyncio.wait_for(upload.is_let_go.wait(), PATIENCE_S)


@pytest.mark.parametrize(
    "pieces", [(b"a", RelayError(ErrorCode.BAD_REQUEST, "late")), (b"a",), (b"a" * 10,)], ids=str
)
async def test_a_body_that_fails_or_has_another_length_is_never_sent_as_whole(
    pieces: tuple[bytes | Exception, ...],
) -> None:
    """Its error is told, and the connection is cut."""
    received = bytearray()
    cut = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        del writer
        while data := await reader.read(1 << 16):
            received.extend(data)
        cut.set()

    async with _server(handle) as base_url, client_of(base_url) as upstream:
        with pytest.raises((RelayError, ValueError)) as failed:
            await _send(upstream, _Upload(*pieces).request(content_length=9))
        await asyncio.wait_for(cut.wait(), PATIENCE_S)
    assert isinstance(failed.value, RelayError) == isinstance(pieces[-1], RelayError)
    assert len(received) < 9


async def test_a_refusal_is_passed_on_without_the_key() -> None:
    """Its bytes otherwise unchanged, with its status, its headers, and what it is in our words."""
    said = error(429, f"Slow down, {PROVIDER_KEY}.", "Retry-After: 7", "X-Request-Id: req_1", code="limit")
    async with running_provider([said]) as provider, client_of(provider.base_url) as upstream:
        response = await _send(upstream, UpstreamRequest("POST", "/responses", body=b"{}"))
    assert response.status == 429
    assert response.refusal == b'{"error": {"message": "Slow down, [key].", "code": "limit"}}'
    assert response.request_id == "req_1"
    assert (b"Retry-After", b"7") in response.headers
    assert response.error is not None
    assert (response.error.code, response.error.retry_after_s) == (ErrorCode.UPSTREAM_LIMITED, 7)
    assert len(provider.requests) == 1


@pytest.mark.parametrize("end", [Break.CLOSE, Break.RESET])
async def test_without_an_answer_nothing_is_sent_again(end: Break) -> None:
    """The provider may have read the request."""
    async with running_provider([end]) as provider, client_of(provider.base_url, max_retries=2) as upstream:
        with pytest.raises(RelayError) as failed:
            await _send(upstream, UpstreamRequest("POST", "/responses", body=b"{}"))
    assert failed.value.code is ErrorCode.UPSTREAM_FAILED
    assert len(provider.requests) == 1


async def test_a_provider_that_is_not_there_is_told_before_the_body_is_touched() -> None:
    """So another one can be asked."""
    upload = _Upload(b"a")
    with socket.socket() as deaf:
        deaf.bind((HOST, 0))
        async with client_of(f"http://{HOST}:{deaf.getsockname()[1]}/v1") as upstream:
            with pytest.raises(RelayError) as failed:
                await _send(upstream, upload.request(content_length=1))
    assert failed.value.code is ErrorCode.UPSTREAM_UNREACHABLE
    assert not upload.has_begun.is_set()
