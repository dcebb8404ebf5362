"""HTTP as the doctor needs it: every header as it came, and the time at which each line arrived."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult

import httpx2

from relayd.findings import CheckFailed, Finding, ok, warning

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


@dataclass(frozen=True, slots=True)
class Connected:
    """What a connection showed before it was closed again."""

    address: str
    took_s: float
    tls_version: str
    """Empty for plain TCP."""
    days_valid: float
    """How long the certificate is still valid."""

    def judge_certificate(self, subject: str) -> Finding:
        """Judge how long the certificate is still valid; the message begins with `subject`."""
        message = f"{subject} is trusted, and valid for {self.days_valid:.0f} days."
        if self.days_valid < _EXPIRES_SOON_DAYS:
            return warning("TLS", message, "check that its renewal works (certbot renew)")
        return ok("TLS", message)


async def connect(
    host: str,
    port: int,
    tls: ssl.SSLContext | None,
    *,
    address: str = "",
    timeout_s: float = ANSWER_TIMEOUT_S,
    address_remedy: str,
    certificate_remedy: str,
) -> Connected:
    """Connect, and shake hands if `tls` is given.

    Args:
        host: the name, which the certificate must be for.
        port: the TCP port.
        tls: judges the certificate; None for plain TCP.
        address: where to connect instead of where the name points to.
        timeout_s: for all of it.
        address_remedy: what to check if nothing answers.
        certificate_remedy: what to check if the certificate is not trusted.

    Raises:
        CheckFailed: in `name`, `connect` or `TLS`.
    """
    where = f"{host} ({address}) port {port}" if address and address != host else f"{host} port {port}"
    began = time.monotonic()
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(
                address or host, port, ssl=tls, server_hostname=host if tls else None
            )
    except socket.gaierror as fault:
        message = f"{host} has no address: {fault.strerror}."
        raise CheckFailed(
            "name", message, "is it spelled right, and does this machine's DNS work?"
        ) from fault
    except ssl.SSLCertVerificationError as fault:
        message = f"The certificate of {host} is not trusted: {fault.verify_message.rstrip('.')}."
        raise CheckFailed("TLS", message, certificate_remedy) from fault
    except ssl.SSLError as fault:
        message = f"{where} does not speak TLS: {fault.reason}."
        raise CheckFailed("TLS", message, "is the port right?") from fault
    except TimeoutError as fault:
        message = f"{where} does not answer within {timeout_s:g} s."
        raise CheckFailed(
            "connect", message, "does a firewall on the way block it, is the port right?"
        ) from fault
    except OSError as fault:
        message = f"{where}: {os.strerror(fault.errno) if fault.errno else fault}."
        raise CheckFailed("connect", message, address_remedy) from fault
    took_s = time.monotonic() - began
    peer = str(writer.get_extra_info("peername")[0])
    writer.transport.abort()
    if tls is None:
        return Connected(peer, took_s, "", 0)
    expires_s = ssl.cert_time_to_seconds(writer.get_extra_info("peercert")["notAfter"])
    version = str(writer.get_extra_info("ssl_object").version())
    return Connected(peer, took_s, version, (expires_s - time.time()) / _DAY_S)
