"""The provider: opens one completion's stream, and says in our words why it would not."""

from __future__ import annotations

import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from http import HTTPStatus

import httpx2
import openai

from relayd.relay.answer import Answer
from relayd.relay.failure import Code, Failure
from relayd.relay.pool import Origin, Pool
from relayd.relay.scrub import Scrubber
from relayd.relay.transport import Attempt, Prepared, Transport, UnexpectedEncoding, answer_of, attempt

_AUTH_STATUSES = frozenset({401, 403})
_REJECTED_STATUSES = frozenset({400, 402, 404, 405, 406, 410, 411, 412, 413, 414, 415, 422, 431, 451})
_REDIRECTS = range(300, 400)
_LIMITED_STATUS = 429
_MAX_RETRY_AFTER_S = 24 * 3600
_TIDY_TIMEOUT_S = 0.5
_HTTP_PORT = 80
_HTTPS_PORT = 443


@dataclass(frozen=True, slots=True)
class UpstreamOptions:
    """How the provider is reached; times in seconds."""

    base_url: str
    connect_timeout_s: float = 5.0
    max_retries: int = 2
    ssl_context: ssl.SSLContext | None = None


class UpstreamBody:
    """One answer's bytes, as they come."""

    def __init__(self, answer: Answer) -> None:
        self._answer = answer
        self.pour = answer.pour
        """Gives them to a function. Raises `Broken`, a Failure."""
        self.request_id = answer.header(b"x-request-id") or None
        self._end_within_s = 0.0

    def tidy(self) -> None:
        """After the last event: only the end of the body is missing, and it may take a moment."""
        self._end_within_s = _TIDY_TIMEOUT_S

    def close(self) -> None:
        """Give the connection back or cut it."""
        self._answer.close(wait_s=self._end_within_s)


class Upstream:
    """The one client of the provider, shared by every stream.

    Args:
        provider_key: sent as the bearer; never shown.
        options: where and how.
    """

    def __init__(self, provider_key: str, options: UpstreamOptions) -> None:
        self.scrub = Scrubber(provider_key)
        self._pool = Pool(
            _origin(options.base_url, options.ssl_context), connect_timeout_s=options.connect_timeout_s
        )
        self._transport = Transport(self._pool)
        self._prepared: Prepared | None = None
        self._client = openai.AsyncOpenAI(
            api_key=provider_key,
            base_url=options.base_url,
            # The stream's own clock watches every wait; the transport watches the connection.
            timeout=None,
            max_retries=options.max_retries,
            default_headers={"Accept": "text/event-stream", "Accept-Encoding": "identity"},
            http_client=httpx2.AsyncClient(
                transport=self._transport, follow_redirects=False, timeout=None, trust_env=False
            ),
        )

    def retune(self, *, connect_timeout_s: float, max_retries: int) -> None:
        """For requests from now on."""
        self._pool.connect_timeout_s = connect_timeout_s
        self._client.max_retries = max_retries

    @asynccontextmanager
    async def stream(
        self, body: bytes, *, connected: Callable[[], None]
    ) -> AsyncGenerator[UpstreamBody, None]:
        """Ask for one completion; closes the connection on leaving unless its body was read whole.

        Args:
            body: the request as JSON, with `stream: true` in it.
            connected: called when the request has its connection.

        Raises:
            Failure: any of the `upstream_…` codes, with the provider's words made fit to show.
        """
        answer = await self._open(body, Attempt(connected))
        source = UpstreamBody(answer)
        try:
            if not answer.header(b"content-type").startswith("text/event-stream"):
                raise Failure(
                    Code.UPSTREAM_FAILED,
                    "The provider did not answer with an event stream; is upstream.base_url its API?",
                )
            yield source
        finally:
            source.close()

    async def _open(self, body: bytes, trial: Attempt) -> Answer:
        """The answer's head, after retries.

        The SDK builds the same request each time, at a cost of half a millisecond. So the request is
        sent as it built it once; only where that does not end in 200 is the SDK asked, which takes
        the outcome as that of its own first try and retries or raises from there.
        """
        prepared = self._prepared or await self.prepare()
        try:
            answer = await self._transport.send(prepared.head, body, trial.connected)
        except httpx2.TransportError as error:
            trial.first = error
        else:
            if answer.status == HTTPStatus.OK:
                return answer
            trial.first = answer
        return await self._ask_sdk(body, trial)

    async def _ask_sdk(self, body: bytes, trial: Attempt) -> Answer:
        try:
            return answer_of(await self._post(body, trial))
        except openai.APIStatusError as error:
            raise self._status_failure(error) from None
        except openai.APIConnectionError as error:
            raise self._connection_failure(error.__cause__) from None
        except httpx2.HTTPError as error:
            # The SDK reads an error's body outside its own net.
            raise self._connection_failure(error) from None

    async def prepare(self) -> Prepared:
        """Let the SDK build a request, and keep its head. Nothing is sent.

        It also pays for everything that the SDK does only the first time.
        """
        try:
            await self._post(b"{}", Attempt(_nothing, capture=True))
        except Prepared as prepared:
            self._prepared = prepared
            return prepared
        raise AssertionError("an attempt that captures sends nothing")

    async def _post(self, body: bytes, trial: Attempt) -> httpx2.Response:
        token = attempt.set(trial)
        try:
            return await self._client.post(
                "/chat/completions",
                cast_to=httpx2.Response,
                content=body,
                options={"headers": {"Content-Type": "application/json"}},
                stream=True,
            )
        finally:
            attempt.reset(token)

    def _status_failure(self, error: openai.APIStatusError) -> Failure:
        status = error.status_code
        if status in _AUTH_STATUSES:
            return Failure(
                Code.UPSTREAM_AUTH,
                f"The provider refused this relay's own key ({status}); its owner must mend that.",
            )
        said = self.scrub(_provider_message(error))
        if status == _LIMITED_STATUS:
            return Failure(
                Code.UPSTREAM_LIMITED,
                f"The provider's rate or quota limit is reached: {said}",
                retry_after_s=_retry_after_s(error.response.headers.get("retry-after")),
            )
        if status in _REDIRECTS:
            return Failure(
                Code.UPSTREAM_FAILED,
                f"The provider answered with a redirect ({status}), which is not followed; "
                "upstream.base_url must be its final address.",
            )
        if status in _REJECTED_STATUSES:
            return Failure(Code.UPSTREAM_REJECTED, f"The provider refused the request ({status}): {said}")
        return Failure(Code.UPSTREAM_FAILED, f"The provider failed ({status}): {said}")

    def _connection_failure(self, cause: BaseException | None) -> Failure:
        if isinstance(cause, UnexpectedEncoding):
            return Failure(Code.UPSTREAM_FAILED, "The provider compressed its answer unasked.")
        if isinstance(cause, httpx2.ConnectError | httpx2.ConnectTimeout):
            return Failure(
                Code.UPSTREAM_UNREACHABLE, f"The provider cannot be reached: {self.scrub(str(cause))}."
            )
        return Failure(Code.UPSTREAM_FAILED, "The provider closed the connection without an answer.")

    async def close(self) -> None:
        """Close every connection to the provider."""
        await self._client.close()


def _origin(base_url: str, ssl_context: ssl.SSLContext | None) -> Origin:
    url = httpx2.URL(base_url)
    if url.scheme == "http":
        return Origin(url.host, url.port or _HTTP_PORT, None)
    return Origin(url.host, url.port or _HTTPS_PORT, ssl_context or ssl.create_default_context())


def _nothing() -> None:
    """Nobody waits for the connection of a request that is not sent."""


def _provider_message(error: openai.APIStatusError) -> str:
    body = error.body
    if isinstance(body, dict) and isinstance(body.get("message"), str) and body["message"]:
        return str(body["message"])
    return "it gave no reason"


def _retry_after_s(value: str | None) -> int:
    """Seconds from a Retry-After header; one second where it has none that can be read (RFC 9110, 10.2.3)."""
    if value is not None and value.isascii() and value.isdigit():
        return min(int(value), _MAX_RETRY_AFTER_S)
    return 1
