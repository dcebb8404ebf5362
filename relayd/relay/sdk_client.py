"""The openai SDK as relayd uses it: requests copied from one that it built, and no wrong retries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import httpx2
import openai
from openai._models import FinalRequestOptions  # the type of `_build_request`, which has no public name

from relayd.relay.provider_errors import parse_error_body
from relayd.relay.refusals import retry_after_s, take_refusal
from relayd.relay.transport import ON_CONNECTED, HttpTransport, incoming

_SENT = "relayd.sent"
"""Request extension: the `RequestBody` that is being sent."""


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


_BODY_HEADERS = frozenset({b"content-encoding", b"content-length", b"transfer-encoding", b"x-should-retry"})


def _wait_fits(body: RequestBody, headers: httpx2.Headers | None) -> bool:
    """Take the wait before the next attempt from what is left; return whether it fits.

    Without Retry-After the SDK waits 0.5 s, doubled for each attempt up to 8 s.
    """
    asked_s = None if headers is None else retry_after_s(headers)
    body.wait_left_s -= asked_s or min(0.5 * 2**body.attempts, 8.0)
    body.attempts += 1
    return body.wait_left_s >= 0
