"""The provider's connections: aiohttp under the SDK's HTTP client, with nothing in between.

The SDK's own aiohttp transport reports a refused connection, a broken one and a timeout alike, and
offers the body only through three nested generators. This one tells them apart, bounds error bodies,
and hands the aiohttp response itself to whoever asks (`body_of`).
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from dataclasses import dataclass
from types import SimpleNamespace

import aiohttp
import httpx2
from multidict import CIMultiDict

_MAX_ERROR_BODY_BYTES = 64 << 10
_READ_BUFFER_BYTES = 8 << 10
_RESPONSE_KEY = "relayd.response"


@dataclass(slots=True)
class Attempt:
    """What travels with one request through the SDK, which has no other way to pass it on."""

    connected: Callable[[], None]
    """Called each time the request has a connection."""
    first: aiohttp.ClientResponse | httpx2.TransportError | None = None
    """What a try before the SDK's own brought; the SDK is given it as the outcome of its first."""
    capture: bool = False
    """Send nothing: raise what would be sent, as `Prepared`."""


class Prepared(Exception):
    """A request as the SDK built it, without its body."""

    def __init__(self, url: str, headers: CIMultiDict[str]) -> None:
        super().__init__("captured, not sent")
        self.url = url
        self.headers = headers


attempt: ContextVar[Attempt | None] = ContextVar("attempt", default=None)


class UnexpectedEncoding(httpx2.ProtocolError):
    """The provider compressed what was asked for plain: refused unread, so that no size can explode."""


class AiohttpTransport(httpx2.AsyncBaseTransport):
    """Sends one request over a pooled connection; redirects, cookies and proxies do not exist here.

    Args:
        connect_timeout_s: for DNS, TCP and TLS together.
        ssl_context: how to trust the provider; None takes aiohttp's default, the system's roots.
    """

    def __init__(self, *, connect_timeout_s: float, ssl_context: ssl.SSLContext | None = None) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._ssl_context = ssl_context
        self._session: aiohttp.ClientSession | None = None

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send what the SDK built and return as soon as the head of the answer is there.

        Raises:
            httpx2.TransportError: as `send`.
            Prepared: the current attempt only captures.
        """
        current = attempt.get()
        headers = CIMultiDict((name.decode(), value.decode()) for name, value in request.headers.raw)
        if current is not None and current.capture:
            del headers["Content-Length"]
            raise Prepared(str(request.url), headers)
        if current is not None and current.first is not None:
            first, current.first = current.first, None
            if isinstance(first, httpx2.TransportError):
                raise first
            response = first
        else:
            response = await self.send(
                request.method,
                str(request.url),
                headers,
                await request.aread(),
                current.connected if current is not None else None,
            )
        return httpx2.Response(
            response.status,
            headers=response.raw_headers,
            stream=_Body(response),
            extensions={_RESPONSE_KEY: response},
        )

    async def send(
        self,
        method: str,
        url: str,
        headers: CIMultiDict[str],
        body: bytes,
        connected: Callable[[], None] | None,
    ) -> aiohttp.ClientResponse:
        """Send one request; return as soon as the head of the answer is there.

        Raises:
            httpx2.ConnectError, httpx2.ConnectTimeout: no connection; nothing was sent.
            httpx2.ReadError, httpx2.RemoteProtocolError: the connection broke before an answer.
            UnexpectedEncoding: the answer is compressed.
        """
        session = self._session or self._open_session()
        try:
            response = await session.request(
                method,
                url,
                headers=headers,
                data=body or None,
                allow_redirects=False,
                trace_request_ctx=connected,
            )
        except (aiohttp.ConnectionTimeoutError, TimeoutError) as error:
            raise httpx2.ConnectTimeout(_sentence(error)) from error
        except aiohttp.ClientConnectorError as error:
            raise httpx2.ConnectError(_sentence(error)) from error
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            raise httpx2.ReadError(_sentence(error)) from error
        except aiohttp.ClientError as error:
            raise httpx2.RemoteProtocolError(_sentence(error)) from error
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            response.close()
            raise UnexpectedEncoding("the answer is compressed")
        return response

    def _open_session(self) -> aiohttp.ClientSession:
        trace = aiohttp.TraceConfig()
        trace.on_connection_create_end.append(_connected)
        trace.on_connection_reuseconn.append(_connected)
        self._session = aiohttp.ClientSession(
            # No limit: `server.max_streams` is the limit, and a second one would only queue in secret.
            connector=aiohttp.TCPConnector(
                limit=0, ssl=self._ssl_context if self._ssl_context is not None else True
            ),
            timeout=aiohttp.ClientTimeout(total=None, connect=self._connect_timeout_s),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=_READ_BUFFER_BYTES,
            trace_configs=[trace],
            skip_auto_headers=("User-Agent",),
        )
        return self._session

    async def aclose(self) -> None:
        """Close every connection."""
        if self._session is not None:
            await self._session.close()
            self._session = None


class _Body(httpx2.AsyncByteStream):
    """The body as httpx2 reads it, which it does only to learn what an error says."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = _MAX_ERROR_BODY_BYTES
        try:
            while left > 0 and (piece := await self._response.content.readany()):
                yield piece[:left]
                left -= len(piece)
        except (aiohttp.ClientError, OSError) as error:
            raise httpx2.ReadError(_sentence(error)) from error

    async def aclose(self) -> None:
        self._response.close()


def body_of(response: httpx2.Response) -> aiohttp.ClientResponse:
    """The aiohttp response under one that `AiohttpTransport` made."""
    found = response.extensions[_RESPONSE_KEY]
    assert isinstance(found, aiohttp.ClientResponse)  # noqa: S101 - says what the transport put there
    return found


async def _connected(
    _session: aiohttp.ClientSession,
    context: SimpleNamespace,
    _params: aiohttp.TraceConnectionCreateEndParams | aiohttp.TraceConnectionReuseconnParams,
) -> None:
    if context.trace_request_ctx is not None:
        context.trace_request_ctx()


def _sentence(error: Exception) -> str:
    cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
    if isinstance(cause, asyncio.TimeoutError):
        return "it did not answer in time"
    return str(cause) or type(cause).__name__
