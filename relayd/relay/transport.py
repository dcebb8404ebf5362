"""Carries what the SDK builds over relayd's own connections, and gives it relayd's own first try."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from dataclasses import dataclass

import httpx2

from relayd.relay.answer import Answer, Broken
from relayd.relay.pool import Pool, Unreachable

_MAX_ERROR_BODY_BYTES = 64 << 10
_ANSWER_KEY = "relayd.answer"
_CONTENT_LENGTH = b"content-length"


class UnexpectedEncoding(httpx2.ProtocolError):
    """The provider compressed what was asked for plain: refused unread, so that no size can explode."""


@dataclass(slots=True)
class Attempt:
    """What travels with one request through the SDK, which has no other way to pass it on."""

    connected: Callable[[], None]
    """Called each time the request has a connection."""
    first: Answer | httpx2.TransportError | None = None
    """What a try before the SDK's own brought; the SDK is given it as the outcome of its first."""
    capture: bool = False
    """Send nothing: raise what would be sent, as `Prepared`."""


attempt: ContextVar[Attempt] = ContextVar("attempt")


class Prepared(Exception):
    """The head of a request as the SDK built it, up to where its body's length belongs."""

    def __init__(self, head: bytes) -> None:
        super().__init__("captured, not sent")
        self.head = head


class Transport(httpx2.AsyncBaseTransport):
    """The SDK's way to the provider. Redirects, cookies and proxies do not exist here."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send what the SDK built and return as soon as the head of the answer is there.

        Raises:
            httpx2.TransportError: as `send`.
            Prepared: the current attempt only captures.
        """
        current = attempt.get()
        head = _head_of(request)
        if current.capture:
            raise Prepared(head)
        first, current.first = current.first, None
        if isinstance(first, httpx2.TransportError):
            raise first
        answer = first or await self.send(head, await request.aread(), current.connected)
        return httpx2.Response(
            answer.status,
            headers=answer.raw_headers,
            stream=_Body(answer),
            extensions={_ANSWER_KEY: answer},
        )

    async def send(self, head: bytes, body: bytes, connected: Callable[[], None]) -> Answer:
        """Send one request; return as soon as the head of the answer is there.

        Args:
            head: without the body's length and the line that ends it.
            body: JSON.
            connected: called when the request has its connection.

        Raises:
            httpx2.ConnectError: no connection; nothing was sent.
            httpx2.ReadError: the connection broke before an answer.
            UnexpectedEncoding: the answer is compressed.
        """
        try:
            answer = await self._pool.send(
                b"%bContent-Length: %d\r\n\r\n" % (head, len(body)), body, connected
            )
        except Unreachable as error:
            raise httpx2.ConnectError(str(error)) from error
        except Broken as error:
            raise httpx2.ReadError(error.what) from error
        if answer.header(b"content-encoding").lower() not in {"", "identity"}:
            answer.close()
            raise UnexpectedEncoding("the answer is compressed")
        return answer

    async def aclose(self) -> None:
        """Close every connection."""
        await self._pool.close()


class _Body(httpx2.AsyncByteStream):
    """The body as httpx2 reads it, which it does only to learn what an error says."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = _MAX_ERROR_BODY_BYTES
        try:
            while left > 0 and (piece := await self._answer.read()):
                yield piece[:left]
                left -= len(piece)
        except Broken as error:
            raise httpx2.ReadError(error.what) from error

    async def aclose(self) -> None:
        self._answer.close()


def answer_of(response: httpx2.Response) -> Answer:
    """The answer under a response that `Transport` made."""
    found = response.extensions[_ANSWER_KEY]
    assert isinstance(found, Answer)  # noqa: S101 - says what the transport put there
    return found


def _head_of(request: httpx2.Request) -> bytes:
    lines = [b"%b %b HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
    lines += [
        b"%b: %b" % (name, value) for name, value in request.headers.raw if name.lower() != _CONTENT_LENGTH
    ]
    return b"\r\n".join([*lines, b""])
