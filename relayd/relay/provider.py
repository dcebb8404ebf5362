"""One provider with one key: completions through the openai SDK, anything else as it comes."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import httpx2
import openai
from openai._models import FinalRequestOptions  # the type of `_build_request`, which has no public name

from relayd.relay.errors import ErrorCode, compressed, not_a_stream
from relayd.relay.provider_errors import parse_error_body
from relayd.relay.redact import Redactor
from relayd.relay.refusals import (
    MAX_ERROR_BODY_BYTES,
    Refusals,
    UpstreamError,
    is_compressed,
    read_error_body,
    retry_after_s,
    take_refusal,
)
from relayd.relay.transport import (
    ON_CONNECTED,
    ConnectionBroken,
    Dialer,
    HttpTransport,
    IncomingResponse,
    Unreachable,
    incoming,
)

EVENT_STREAM = "text/event-stream"
_SSE_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b":")
_FIRST_REFUSAL_STATUS = 300
_MAX_REQUEST_ID_CHARS = 200
_SENT = "relayd.sent"
"""Request extension: the `RequestBody` that is being sent."""
_BODY_HEADERS = frozenset({b"content-encoding", b"content-length", b"transfer-encoding", b"x-should-retry"})


@dataclass(frozen=True, slots=True)
class UpstreamOptions:
    """How the provider is reached.

    Args:
        base_url: of its API, such as `https://api.openai.com/v1`.
        connect_timeout_s: for DNS, TCP, TLS and what a proxy takes, together.
        proxy_url: of the proxy on the way, with its user and password; empty: none.
        max_retries: attempts after the first.
        max_retry_wait_s: bound of the waits between attempts in all.
        ssl_context: for TLS to the provider and to the proxy; None: the system's authorities.
    """

    base_url: str
    connect_timeout_s: float = 5.0
    max_retries: int = 2
    max_retry_wait_s: float = 5.0
    proxy_url: str = field(default="", repr=False)
    ssl_context: ssl.SSLContext | None = None


class UpstreamAnswer(NamedTuple):
    """An answer that has begun: the provider's id of the request, and the bytes."""

    request_id: str | None
    body: IncomingResponse


@dataclass(slots=True)
class UpstreamRequest:
    """A request that is sent as it is.

    Attributes:
        method: `GET`, `POST` or `DELETE`.
        target: path and query below the API's base, such as `/responses/resp_1?stream=true`.
        headers: those of the client that are passed on; credentials, Host and framing are added.
        body: whole, or in pieces. Each is asked for when the provider has taken those before.
        content_length: of a body in pieces; None: it is sent chunked.
        model: that is asked for, if any.
        route: the only route that may be asked; None: any.
    """

    method: str
    target: str
    headers: Sequence[tuple[bytes, bytes]] = ()
    body: bytes | AsyncIterator[bytes] = b""
    content_length: int | None = None
    model: str | None = None
    route: str | None = None


class UpstreamResponse(NamedTuple):
    """The response to an `UpstreamRequest`. The caller closes its body.

    Attributes:
        route: name of the route that gave it; None: there are no routes.
        request_id: the provider's, made fit to show.
        body: pushed as it comes; of a refusal it has been read and closed.
        refusal: the body of a refusal (status 300 and above), without the key; empty if there is none to be
            passed on; else None.
        error: what the refusal is in our words; else None.
    """

    route: str | None
    status: int
    headers: Sequence[tuple[bytes, bytes]]
    request_id: str | None
    body: IncomingResponse
    refusal: bytes | None = None
    error: UpstreamError | None = None


class Provider:
    """Asks one provider with one key, over connections of its own.

    Args:
        provider_key: sent as the bearer token; never shown.
        options: where and how.
        redact: takes the key out of texts.
    """

    def __init__(self, provider_key: str, options: UpstreamOptions, redact: Redactor) -> None:
        self._redact = redact
        self._refusals = Refusals(redact)
        url = urlsplit(options.base_url)
        self._host = url.netloc.encode()
        self._base_path = url.path.rstrip("/")
        self._dialer = Dialer.to(
            options.base_url,
            timeout_s=options.connect_timeout_s,
            proxy_url=options.proxy_url,
            ssl_context=options.ssl_context,
        )
        transport = HttpTransport(self._dialer)
        self._pool = transport.pool
        self._client = SdkClient(
            api_key=provider_key,
            base_url=options.base_url,
            # The stream's own clock watches every wait.
            timeout=None,
            default_headers={"Accept": "text/event-stream", "Accept-Encoding": "identity"},
            http_client=httpx2.AsyncClient(
                transport=OneSend(transport), follow_redirects=False, timeout=None, trust_env=False
            ),
        )
        self.configure(provider_key, options)

    def configure(self, provider_key: str, options: UpstreamOptions) -> None:
        """Use another key and other limits for requests from now on; the address stays."""
        self._redact.add(provider_key)
        self._authorization = f"Bearer {provider_key}".encode()
        self._client.use_key(provider_key)
        self._dialer.timeout_s = options.connect_timeout_s
        self._client.max_retries = options.max_retries
        self._max_retry_wait_s = options.max_retry_wait_s

    def retire(self) -> None:
        """Let the open streams end, and keep no connection."""
        self._pool.retire()

    @property
    def is_closed(self) -> bool:
        """Whether no connection is open."""
        return self._pool.is_closed

    async def close(self) -> None:
        """Close every connection."""
        await self._client.close()

    async def open(
        self, body: bytes, on_connected: Callable[[], None], *, retry: bool = True
    ) -> UpstreamAnswer:
        """Ask for one completion; return when its stream begins. The caller closes the answer's body.

        Args:
            body: the request as JSON, with `stream: true` in it.
            on_connected: called when the request has its connection, again for each attempt.
            retry: whether a passing trouble may be waited for.

        Raises:
            UpstreamError: any of the `upstream_...` codes, with the provider's words made fit to show.
        """
        try:
            response = await self._client.post(
                "/chat/completions",
                cast_to=httpx2.Response,
                content=RequestBody(body, on_connected, self._max_retry_wait_s if retry else -1.0),
                options={"headers": {"Content-Type": "application/json"}},
                stream=True,
            )
        except openai.APIStatusError as error:
            refused = error.response
            raise self._refusals.of_status(refused.status_code, refused.headers, refused.content) from None
        except (NotSentAgain, openai.APIConnectionError) as error:
            if isinstance(error.__cause__, httpx2.ConnectError):
                raise self._refusals.unreachable(str(error.__cause__)) from None
            raise self._refusals.no_answer() from None
        stream = incoming(response)
        try:
            await self._require_event_stream(stream)
        except BaseException:
            stream.close()
            raise
        return UpstreamAnswer(self._request_id(stream), stream)

    async def send(self, request: UpstreamRequest, on_connected: Callable[[], None]) -> UpstreamResponse:
        """Send a request once; return when the head of its response is here, and the body of a refusal.

        Args:
            request: its body, if it comes in pieces, is asked for the first once there is a connection.
            on_connected: called then.

        Raises:
            UpstreamError: there was no response.
            Exception: what the body raised.
        """
        head, body = self._head(request), None
        if isinstance(request.body, bytes):
            head += request.body
        else:
            body = _framed(request.body, request.content_length)
        try:
            response = await self._pool.send(head, on_connected, body)
        except Unreachable as error:
            raise self._refusals.unreachable(str(error)) from None
        except ConnectionBroken:
            raise self._refusals.no_answer() from None
        answer = UpstreamResponse(
            None, response.status, response.headers, self._request_id(response), response
        )
        if response.status < _FIRST_REFUSAL_STATUS:
            return answer
        said = await take_refusal(response)
        headers = httpx2.Headers(list(response.headers))
        refused = self._refusals.of_status(response.status, headers, said)
        # A longer one was cut, perhaps inside the key.
        passed = self._redact.scrub(said) if len(said) < MAX_ERROR_BODY_BYTES else b""
        return answer._replace(refusal=passed, error=refused)

    def _head(self, request: UpstreamRequest) -> bytes:
        target = f"{self._base_path}{request.target}"
        lines = [
            f"{request.method} {target} HTTP/1.1".encode("latin-1"),
            b"Host: " + self._host,
            b"Authorization: " + self._authorization,
            b"Accept-Encoding: identity",
            *(b"%b: %b" % header for header in request.headers),
        ]
        if not isinstance(request.body, bytes):
            length = request.content_length
            lines.append(b"Transfer-Encoding: chunked" if length is None else b"Content-Length: %d" % length)
        elif request.body or request.method == "POST":
            lines.append(b"Content-Length: %d" % len(request.body))
        return b"\r\n".join([*lines, b"\r\n"])

    def _request_id(self, response: IncomingResponse) -> str | None:
        return self._redact(response.header(b"x-request-id"), _MAX_REQUEST_ID_CHARS) or None

    async def _require_event_stream(self, stream: IncomingResponse) -> None:
        if is_compressed(stream):
            raise compressed()
        media_type = stream.media_type
        if media_type == EVENT_STREAM:
            return
        # Some servers forget the type (express, net/http), and the SDK does not look at it.
        if media_type in {"", "text/plain"} and begins_with_event(await first_bytes(stream)):
            return
        body = await read_error_body(stream)
        said = parse_error_body(body)
        # An answer whose type is wrong must not be told, nor recorded, as the reason.
        if said.message is None or begins_with_event(body):
            raise not_a_stream()
        start = "The provider refused the request, with status 200"
        if not media_type.endswith("json"):
            start = (
                "The provider did not answer with an event stream (is upstream.base_url its API?) but with"
            )
        refusal = self._refusals.refusal(
            ErrorCode.UPSTREAM_FAILED, start, said, quotes=said.may_quote_request
        )
        # Its status says that it was served.
        refusal.may_be_served = True
        raise refusal


async def _framed(pieces: AsyncIterator[bytes], length: int | None) -> AsyncGenerator[bytes]:
    """Yield a body as it is sent: chunked (RFC 9112, 7.1) without a length, else as it is.

    Raises:
        ValueError: the pieces are shorter or longer than the length, which would spoil the connection.
    """
    left = length
    async for piece in pieces:
        if not piece:
            continue
        if left is None:
            yield b"%x\r\n%b\r\n" % (len(piece), piece)
            continue
        left -= len(piece)
        if left < 0:
            break
        yield piece
    if left is None:
        yield b"0\r\n\r\n"
    elif left:
        raise ValueError(f"a body of {length} bytes is {-left} too long")


def begins_with_event(first: bytes) -> bool:
    """Return whether a body begins as an event stream does, as far as its first bytes tell."""
    return bool(first) and any(first[: len(field)] == field[: len(first)] for field in _SSE_FIELDS)


async def first_bytes(stream: IncomingResponse) -> bytes:
    """Wait for what a body begins with; empty if it breaks off before."""
    try:
        return await stream.peek()
    except ConnectionBroken:
        return b""


class RequestBody(bytes):
    """The body of a request, with what must travel with it: the SDK has no other slot that gets this far."""

    on_connected: Callable[[], None]
    wait_left_s: float
    """How long the SDK may still wait between attempts."""
    attempts: int

    def __new__(cls, body: bytes, on_connected: Callable[[], None], wait_left_s: float) -> Self:
        """Return the body with what travels with it."""
        made = super().__new__(cls, body)
        made.on_connected, made.wait_left_s, made.attempts = on_connected, wait_left_s, 0
        return made


class SdkClient(openai.AsyncOpenAI):
    """The SDK's client; copies the first attempt of each request from a request that it has built once.

    Building takes the SDK 540 us of the 1,040 us that a request costs; the SDK builds retries itself.
    """

    _prepared: httpx2.Request | None = None

    def use_key(self, provider_key: str) -> None:
        """Send this key from the next attempt on."""
        self.api_key = provider_key
        self._prepared = None

    def _build_request(self, options: FinalRequestOptions, *, retries_taken: int = 0) -> httpx2.Request:
        body = options.content
        if not isinstance(body, RequestBody):
            raise TypeError("only `Provider.open` makes requests")
        extensions: dict[str, Any] = {ON_CONNECTED: body.on_connected, _SENT: body}
        if retries_taken or self._prepared is None:
            request = super()._build_request(options, retries_taken=retries_taken)
            request.extensions.update(extensions)
            if not retries_taken:
                self._prepared = request
            return request
        return httpx2.Request(
            self._prepared.method,
            self._prepared.url,
            headers=self._prepared.headers,
            stream=httpx2.ByteStream(body),
            extensions=extensions,
        )


class NotSentAgain(openai.OpenAIError):
    """Ends a request that the SDK would retry wrongly; the cause says what happened."""


class OneSend(httpx2.AsyncBaseTransport):
    """Says no where the SDK would retry wrongly.

    It retries connection errors, 408, 409, 429 and 5xx, and waits up to 120 s if the provider asks for it.
    Not retried here: a request that the provider may have read (RFC 9110, 9.2.2: it may have cost something),
    a used-up quota, and waits longer than `upstream.max_retry_wait_s` in all.
    """

    def __init__(self, inner: HttpTransport) -> None:
        self._inner = inner

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send as `inner` does; the body of a refusal is read, plain and bounded.

        Raises:
            NotSentAgain: there was no response, and no further attempt may be made.
            httpx2.ConnectError: nothing was sent.
        """
        body: RequestBody = request.extensions[_SENT]
        try:
            response = await self._inner.handle_async_request(request)
        except httpx2.ConnectError as error:
            if not _wait_fits(body, None):
                raise NotSentAgain from error
            raise
        except httpx2.ReadError as error:
            raise NotSentAgain from error
        if response.is_success:
            return response
        stream = incoming(response)
        said = await take_refusal(stream)
        headers = httpx2.Headers([pair for pair in stream.headers if pair[0].lower() not in _BODY_HEADERS])
        if parse_error_body(said).code == "insufficient_quota" or not _wait_fits(body, headers):
            headers["x-should-retry"] = "false"
        return httpx2.Response(response.status_code, headers=headers, content=said)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._inner.aclose()


def _wait_fits(body: RequestBody, headers: httpx2.Headers | None) -> bool:
    """Take the wait before the next attempt from what is left; return whether it fits.

    Without Retry-After the SDK waits 0.5 s, doubled for each attempt up to 8 s.
    """
    asked_s = None if headers is None else retry_after_s(headers)
    body.wait_left_s -= asked_s or min(0.5 * 2**body.attempts, 8.0)
    body.attempts += 1
    return body.wait_left_s >= 0
