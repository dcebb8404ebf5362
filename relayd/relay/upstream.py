"""The provider: opens streams with the openai SDK, and puts its refusals into our words."""

from __future__ import annotations

import asyncio
import email.utils
import math
import re
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import httpx2
import openai
from openai._models import FinalRequestOptions  # the type of `_build_request`, which has no public name

from relayd.relay.errors import ErrorCode, RelayError
from relayd.relay.provider_errors import ProviderError, parse_error_body
from relayd.relay.redact import Redactor
from relayd.relay.transport import (
    ON_CONNECTED,
    ConnectionBroken,
    Dialer,
    HttpTransport,
    IncomingResponse,
    incoming,
)

_SENT = "relayd.sent"
"""Request extension: the `_Body` that is being sent."""
_SSE_FIELDS = (b"data:", b"event:", b"id:", b"retry:", b":")
_REJECTED_STATUSES = frozenset({400, 402, 404, 405, 406, 410, 411, 412, 413, 414, 415, 422, 431, 451})
_REDIRECTS = range(300, 400)
_FORBIDDEN = 403
_LIMITED = 429
_MAX_ERROR_BODY_BYTES = 64 << 10
_ERROR_BODY_TIMEOUT_S = 5.0
_MAX_RETRY_AFTER_S = 24 * 3600
_MAX_REQUEST_ID_CHARS = 200
_MAX_KIND_CHARS = 200
# OpenAI: code `unsupported_country_region_territory`. Google: "User location is not supported".
_REGION = re.compile(
    r"unsupported_country|(?:country|region|territory|location)\b.{0,40}\bnot\s+(?:supported|available)"
    r"|not\s+(?:supported|available)\s+in\s+your\s+(?:country|region|territory|location)",
    re.IGNORECASE | re.DOTALL,
)


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


class Upstream:
    """The one client of the provider, shared by every stream.

    Args:
        provider_key: sent as the bearer token; never shown.
        options: where and how.
    """

    def __init__(self, provider_key: str, options: UpstreamOptions) -> None:
        self.redact = Redactor(provider_key)
        self._dialer = Dialer.to(
            options.base_url,
            timeout_s=options.connect_timeout_s,
            proxy_url=options.proxy_url,
            ssl_context=options.ssl_context,
        )
        self._client = _Client(
            api_key=provider_key,
            base_url=options.base_url,
            # The stream's own clock watches every wait.
            timeout=None,
            default_headers={"Accept": "text/event-stream", "Accept-Encoding": "identity"},
            http_client=httpx2.AsyncClient(
                transport=_OneSend(HttpTransport(self._dialer)),
                follow_redirects=False,
                timeout=None,
                trust_env=False,
            ),
        )
        self.configure(provider_key, options)

    def configure(self, provider_key: str, options: UpstreamOptions) -> None:
        """Use another key and other limits for requests from now on; the address stays."""
        self.redact.add(provider_key)
        self._client.use_key(provider_key)
        self._dialer.timeout_s = options.connect_timeout_s
        self._client.max_retries = options.max_retries
        self._max_retry_wait_s = options.max_retry_wait_s

    async def open(self, body: bytes, on_connected: Callable[[], None]) -> UpstreamAnswer:
        """Ask for one completion; return when its stream begins. The caller closes the answer's body.

        Args:
            body: the request as JSON, with `stream: true` in it.
            on_connected: called when the request has its connection, again for each attempt.

        Raises:
            RelayError: any of the `upstream_...` codes, with the provider's words made fit to show.
        """
        try:
            response = await self._client.post(
                "/chat/completions",
                cast_to=httpx2.Response,
                content=_Body(body, on_connected, self._max_retry_wait_s),
                options={"headers": {"Content-Type": "application/json"}},
                stream=True,
            )
        except openai.APIStatusError as error:
            raise self._status_error(error.response) from None
        except _NotSentAgain as error:
            raise self._connection_error(error.__cause__) from None
        except openai.APIConnectionError as error:
            raise self._connection_error(error.__cause__) from None
        stream = incoming(response)
        try:
            await self._require_event_stream(stream)
        except BaseException:
            stream.close()
            raise
        request_id = self.redact(stream.header(b"x-request-id"), _MAX_REQUEST_ID_CHARS)
        return UpstreamAnswer(request_id or None, stream)

    async def close(self) -> None:
        """Close every connection to the provider."""
        await self._client.close()

    async def _require_event_stream(self, stream: IncomingResponse) -> None:
        if _is_compressed(stream):
            raise RelayError(
                ErrorCode.UPSTREAM_FAILED, "The provider compressed its answer, which relayd did not ask for."
            )
        media_type = stream.header(b"content-type").partition(";")[0].strip().lower()
        if media_type == "text/event-stream":
            return
        # Some servers forget the type (express, net/http), and the SDK does not look at it.
        if media_type in {"", "text/plain"} and await _begins_with_event(stream):
            return
        said = parse_error_body(await _read_error_body(stream))
        if said.message is None:
            raise RelayError(
                ErrorCode.UPSTREAM_FAILED,
                "The provider did not answer with an event stream; is upstream.base_url its API?",
            )
        start = "The provider refused the request, with status 200"
        if not media_type.endswith("json"):
            start = (
                "The provider did not answer with an event stream (is upstream.base_url its API?) but with"
            )
        raise self._refusal(ErrorCode.UPSTREAM_FAILED, start, said, quotes=said.may_quote_request)

    def _status_error(self, response: httpx2.Response) -> RelayError:
        status = response.status_code
        said = parse_error_body(response.content)
        if status == 401:  # noqa: PLR2004 - Unauthorized
            message = "The provider refused this relay's own key (401); the relay's owner must replace it."
            # Its own sentence quotes the key.
            recorded = f"{message} {self.redact(said.message or '')}".strip()
            return RelayError(ErrorCode.UPSTREAM_AUTH, message, recorded=recorded)
        if status in _REDIRECTS:
            return RelayError(
                ErrorCode.UPSTREAM_FAILED,
                f"The provider answered with a redirect ({status}), which is not followed; "
                "upstream.base_url must be its final address.",
            )
        wait_s = None
        if status in {400, _FORBIDDEN} and _REGION.search(f"{said.code} {said.message}"):
            code = ErrorCode.UPSTREAM_AUTH
            start = f"The provider does not serve the region of this relay's server ({status})"
        elif status == _FORBIDDEN:
            code = ErrorCode.UPSTREAM_AUTH
            start = "The provider does not allow this relay's account to do this (403)"
        elif status == _LIMITED:
            code, start = ErrorCode.UPSTREAM_LIMITED, "The provider's rate or quota limit is reached"
            wait_s = math.ceil(retry_after_s(response.headers) or 1)
        elif status in _REJECTED_STATUSES:
            code, start = ErrorCode.UPSTREAM_REJECTED, f"The provider refused the request ({status})"
        else:
            code, start = ErrorCode.UPSTREAM_FAILED, f"The provider failed ({status})"
        quotes = code is ErrorCode.UPSTREAM_REJECTED
        return self._refusal(code, start, said, quotes=quotes, retry_after_s=wait_s)

    def _refusal(
        self,
        code: ErrorCode,
        start: str,
        said: ProviderError,
        *,
        quotes: bool,
        retry_after_s: int | None = None,
    ) -> RelayError:
        """Return an error with the provider's words; if they may quote the request, they are not recorded."""
        no_reason = "it gave no reason"
        message = f"{start}: {self.redact(said.message or no_reason)}"
        recorded = None
        if quotes:
            recorded = f"{start}: {self.redact(said.kind or no_reason, _MAX_KIND_CHARS)}"
        return RelayError(code, message, retry_after_s=retry_after_s, recorded=recorded)

    def _connection_error(self, cause: BaseException | None) -> RelayError:
        if isinstance(cause, httpx2.ConnectError):
            return RelayError(
                ErrorCode.UPSTREAM_UNREACHABLE, f"The provider cannot be reached: {self.redact(str(cause))}."
            )
        return RelayError(ErrorCode.UPSTREAM_FAILED, "The provider closed the connection without an answer.")


class _Body(bytes):
    """The body of a request, with what must travel with it: the SDK has no other slot that gets this far."""

    on_connected: Callable[[], None]
    wait_left_s: float
    """How long the SDK may still wait between attempts."""
    attempts: int

    def __new__(cls, body: bytes, on_connected: Callable[[], None], wait_left_s: float) -> Self:
        made = super().__new__(cls, body)
        made.on_connected, made.wait_left_s, made.attempts = on_connected, wait_left_s, 0
        return made


class _Client(openai.AsyncOpenAI):
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
        if not isinstance(body, _Body):
            raise TypeError("only `Upstream.open` makes requests")
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


class _NotSentAgain(openai.OpenAIError):
    """Ends a request that the SDK would retry wrongly; the cause says what happened."""


class _OneSend(httpx2.AsyncBaseTransport):
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
            _NotSentAgain: there was no response, and no further attempt may be made.
            httpx2.ConnectError: nothing was sent.
        """
        body: _Body = request.extensions[_SENT]
        try:
            response = await self._inner.handle_async_request(request)
        except httpx2.ConnectError as error:
            if not _wait_fits(body, None):
                raise _NotSentAgain from error
            raise
        except httpx2.ReadError as error:
            raise _NotSentAgain from error
        if response.is_success:
            return response
        stream = incoming(response)
        try:
            said = b"" if _is_compressed(stream) else await _read_error_body(stream)
        finally:
            stream.close()
        headers = httpx2.Headers([pair for pair in stream.headers if pair[0].lower() not in _BODY_HEADERS])
        if parse_error_body(said).code == "insufficient_quota" or not _wait_fits(body, headers):
            headers["x-should-retry"] = "false"
        return httpx2.Response(response.status_code, headers=headers, content=said)

    async def aclose(self) -> None:
        """Close every connection."""
        await self._inner.aclose()


_BODY_HEADERS = frozenset({b"content-encoding", b"content-length", b"transfer-encoding", b"x-should-retry"})


def _wait_fits(body: _Body, headers: httpx2.Headers | None) -> bool:
    """Take the wait before the next attempt from what is left; return whether it fits.

    Without Retry-After the SDK waits 0.5 s, doubled for each attempt up to 8 s.
    """
    asked_s = None if headers is None else retry_after_s(headers)
    body.wait_left_s -= asked_s or min(0.5 * 2**body.attempts, 8.0)
    body.attempts += 1
    return body.wait_left_s >= 0


async def _read_error_body(stream: IncomingResponse) -> bytes:
    """Return what came of a body, bounded; a refusal that breaks off still has its status."""
    try:
        async with asyncio.timeout(_ERROR_BODY_TIMEOUT_S):
            return await stream.read(_MAX_ERROR_BODY_BYTES)
    except (ConnectionBroken, TimeoutError):
        return b""


async def _begins_with_event(stream: IncomingResponse) -> bool:
    """Return whether a body begins as an event stream does, as far as its first bytes tell."""
    try:
        first = await stream.peek()
    except ConnectionBroken:
        return False
    return bool(first) and any(first[: len(field)] == field[: len(first)] for field in _SSE_FIELDS)


def _is_compressed(stream: IncomingResponse) -> bool:
    """Return whether a body is compressed. That was not asked for, and it is never unpacked."""
    codings = stream.header(b"content-encoding").lower().split(",")
    return any(coding.strip() not in {"", "identity"} for coding in codings)


def retry_after_s(headers: httpx2.Headers) -> float | None:
    """Return the wait that a response asks for, in seconds; None if it asks for none that can be read.

    `retry-after-ms` is OpenAI's own; Retry-After is seconds or a date (RFC 9110, 10.2.3).
    """
    for name, scale in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            seconds = float(headers.get(name, "")) * scale
        except ValueError:
            continue
        if math.isfinite(seconds) and seconds >= 0:
            return min(seconds, _MAX_RETRY_AFTER_S)
    try:
        at = email.utils.parsedate_to_datetime(headers.get("retry-after", ""))
    except ValueError:
        return None
    return min(max(0.0, at.timestamp() - time.time()), _MAX_RETRY_AFTER_S)
