"""HTTP as the doctor needs it: every header as it came, and the time at which each line arrived."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult

import httpx2

from relayd.findings import Finding, ok, warning

ANSWER_TIMEOUT_S = 15.0
PORTS = {"http": 80, "https": 443}
_EXPIRES_SOON_DAYS = 14
_DAY_S = 86400


class NoAnswer(Exception):
    """No readable answer came; the text says what happened instead."""


class Answer:
    """An answer: its head at once, its lines as they are read, with the time of each (`time.monotonic`)."""

    def __init__(self, response: httpx2.Response, asked_at: float) -> None:
        self.status = response.status_code
        self.asked_at = asked_at
        """Just before the request was sent (`time.monotonic`)."""
        self.lines: list[tuple[float, bytes]] = []
        self.is_cut = False
        """Whether the connection ended before the body did."""
        self._response = response

    def values(self, name: str) -> list[str]:
        """Return the values of a header, one for each line that has it."""
        return self._response.headers.get_list(name)

    def header(self, name: str) -> str:
        """Return the values of a header as one; empty if there is none."""
        return ", ".join(self.values(name))

    def event(self, number: int) -> dict[str, Any]:
        """Return one line as JSON; empty if it is not an object."""
        try:
            event = json.loads(self.lines[number][1])
        except (ValueError, IndexError):
            return {}
        return event if isinstance(event, dict) else {}

    async def read_lines(self) -> AsyncGenerator[bytes, None]:
        """Yield the lines of the body as they come, and keep them in `lines`."""
        rest = b""
        try:
            async for piece in self._response.aiter_bytes():
                *whole, rest = (rest + piece).split(b"\n")
                now = time.monotonic()
                for line in whole:
                    self.lines.append((now, line))
                    yield line
        except (httpx2.TransportError, httpx2.DecodingError):
            self.is_cut = True
        if rest:
            self.lines.append((time.monotonic(), rest))


@dataclass(frozen=True, slots=True)
class Site:
    """The deployment to look at.

    Attributes:
        url: as it was given, without a trailing slash.
        address: the IP address of its host.
        tls: how its certificate is judged; None for plain HTTP.
    """

    url: SplitResult
    address: str
    tls: ssl.SSLContext | None

    @property
    def host(self) -> str:
        """The host's name."""
        return self.url.hostname or ""

    @property
    def port(self) -> int:
        """The port."""
        return self.url.port or PORTS[self.url.scheme]

    @asynccontextmanager
    async def stream(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> AsyncIterator[Answer]:
        """Send a request on a connection of its own, which is closed on leaving.

        Raises:
            NoAnswer: no head of an answer came.
        """
        address = f"[{self.address}]" if ":" in self.address else self.address
        # Accept-Encoding as browsers send it: a proxy that compresses answers shows itself.
        fields = {"Host": self.url.netloc, "Accept-Encoding": "gzip", "Connection": "close"}
        if body:
            fields["Content-Type"] = "application/json"
        request = httpx2.Request(
            method,
            f"{self.url.scheme}://{address}:{self.port}{self.url.path}{path}",
            headers={**fields, **(headers or {})},
            content=body,
            extensions={"sni_hostname": self.host, "timeout": {"connect": ANSWER_TIMEOUT_S}},
        )
        transport = httpx2.AsyncHTTPTransport(verify=self.tls or False, trust_env=False)
        async with transport:
            asked_at = time.monotonic()
            try:
                response = await transport.handle_async_request(request)
            except httpx2.RemoteProtocolError as error:
                raise NoAnswer(f"{method} {path} is not answered in HTTP") from error
            except httpx2.TransportError as error:
                raise NoAnswer(f"{method} {path}: {str(error) or type(error).__name__}") from error
            try:
                yield Answer(response, asked_at)
            finally:
                await response.aclose()

    async def ask(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Answer:
        """Send a request and read the whole answer.

        Raises:
            NoAnswer: none came in time.
        """
        try:
            async with (
                asyncio.timeout(ANSWER_TIMEOUT_S),
                self.stream(method, path, headers, body) as answer,
            ):
                async for _ in answer.read_lines():
                    pass
                return answer
        except TimeoutError as error:
            raise NoAnswer(f"{method} {path} has no answer within {ANSWER_TIMEOUT_S:g} s") from error


def judge_certificate(certificate: Mapping[str, Any], subject: str) -> Finding:
    """Judge how long a verified certificate is still valid.

    Args:
        certificate: as `SSLSocket.getpeercert` returns it.
        subject: how the message begins.
    """
    days = (ssl.cert_time_to_seconds(certificate["notAfter"]) - time.time()) / _DAY_S
    message = f"{subject} is trusted, and valid for {days:.0f} days."
    if days < _EXPIRES_SOON_DAYS:
        return warning("TLS", message, "check that its renewal works (certbot renew)")
    return ok("TLS", message)
