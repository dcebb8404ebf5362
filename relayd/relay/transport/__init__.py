"""HTTP/1.1 to one provider for httpx2: llhttp, a pool of connections, and bodies that are pushed.

httpx2's own transport costs three times as much for each piece of an answer (docs/performance.md). A caller
takes the `IncomingResponse` of an `httpx2.Response` with `incoming`, and starts or reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import httpx2

from relayd.relay.transport.connection import ConnectionBroken, IncomingResponse
from relayd.relay.transport.dialer import Dialer, Unreachable
from relayd.relay.transport.pool import Pool

__all__ = ["ConnectionBroken", "Dialer", "HttpTransport", "IncomingResponse", "Unreachable", "incoming"]

ON_CONNECTED = "relayd.on_connected"
"""Request extension, optional: called when the request has its connection."""
_INCOMING = "relayd.incoming"
_CONTENT_LENGTH = b"content-length"


class HttpTransport(httpx2.AsyncBaseTransport):
    """Sends requests to one origin. Redirects, cookies and proxies of the environment do not exist here.

    Args:
        dialer: makes the connections to it.
    """

    def __init__(self, dialer: Dialer) -> None:
        self.pool = Pool(dialer)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request; return when the head of its response is here.

        Raises:
            httpx2.ConnectError: there was no connection; nothing was sent.
            httpx2.ReadError: the connection broke before a response; the request may have been read.
        """
        on_connected: Callable[[], None] = request.extensions.get(ON_CONNECTED, lambda: None)
        body = await request.aread()
        try:
            response = await self.pool.send(_head(request, len(body)) + body, on_connected)
        except Unreachable as error:
            raise httpx2.ConnectError(str(error)) from error
        except ConnectionBroken as error:
            raise httpx2.ReadError(error.reason) from error
        return httpx2.Response(
            response.status,
            headers=response.headers,
            stream=_PushedBody(response),
            extensions={_INCOMING: response},
        )

    async def aclose(self) -> None:
        """Close every connection."""
        await self.pool.close()


class _PushedBody(httpx2.AsyncByteStream):
    """The body as httpx2 sees it: never read, since it is pushed, but closed with its response."""

    def __init__(self, response: IncomingResponse) -> None:
        self._response = response

    async def aclose(self) -> None:
        self._response.close()


def incoming(response: httpx2.Response) -> IncomingResponse:
    """Return the response beneath one of httpx2's that `HttpTransport` made."""
    return cast("IncomingResponse", response.extensions[_INCOMING])


def _head(request: httpx2.Request, body_bytes: int) -> bytes:
    lines = [b"%b %b HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
    lines += [
        b"%b: %b" % (name, value) for name, value in request.headers.raw if name.lower() != _CONTENT_LENGTH
    ]
    return b"\r\n".join([*lines, b"Content-Length: %d" % body_bytes, b"\r\n"])
