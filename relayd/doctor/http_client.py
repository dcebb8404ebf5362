"""HTTP as the doctor needs it: unchanged headers, and the time at which each line arrived."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import time
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult

import httpx2

from relayd.durations import short
from relayd.findings import CheckFailed, Finding, ok, warning

ANSWER_TIMEOUT_S = 15.0
PORTS = {"http": 80, "https": 443}
_MAX_BODY_BYTES = 4 << 20
_GZIP = 16
"""Added to the window bits, it makes zlib expect a gzip header."""
_EXPIRES_SOON = 1 / 6
"""Share of a certificate's lifetime: Caddy and certbot renew at a third of it, or earlier."""
_PROXIES = ("nginx", "Apache", "Caddy", "HAProxy")


class NoAnswer(Exception):
    """No readable answer came; the text says what happened instead."""


class Answer:
    """An answer: its head at once, its lines as they are read, with the time of each (`time.monotonic`)."""

    def __init__(self, response: httpx2.Response, asked_at: float) -> None:
        self.status = response.status_code
        self.asked_at = asked_at
        """Just before the request was sent (`time.monotonic`)."""
        self.lines: list[tuple[float, bytes]] = []
        self._response = response

    def values(self, name: str) -> list[str]:
        """Return the values of a header, one for each line that has it."""
        return self._response.headers.get_list(name)

    def header(self, name: str) -> str:
        """Return the values of a header as one; empty if there is none."""
        return str(self._response.headers.get(name, ""))

    def advice(self, general: str = "", **settings: str) -> str:
        """Return what to set in the proxy that this answer names; in every one if it names none.

        Args:
            general: what to do whichever proxy it is.
            settings: by the name of a proxy.
        """
        names = f"{self.header('Server')} {self.header('Via')}".lower()
        found = {proxy for proxy in _PROXIES if proxy.lower() in names}
        fitting = [
            f"{proxy}: {setting}" for proxy, setting in settings.items() if not found or proxy in found
        ]
        return "; ".join([*fitting, general] if general else fitting or ["see docs/deploy.md for your proxy"])

    def event(self, number: int) -> dict[str, Any]:
        """Return one line as JSON; empty if it is not an object."""
        try:
            event = json.loads(self.lines[number][1])
        except (ValueError, IndexError):
            return {}
        return event if isinstance(event, dict) else {}

    async def read_lines(self) -> AsyncGenerator[bytes, None]:
        """Yield the lines of the body as they come, and keep them in `lines`.

        They end early if the connection breaks, and after 4 MiB.
        """
        rest, left_bytes = b"", _MAX_BODY_BYTES
        # Not httpx2's own: it unpacks a thousandfold without a bound.
        is_gzip = self.header("Content-Encoding").strip().lower() == "gzip"
        unpacker = zlib.decompressobj(zlib.MAX_WBITS | _GZIP) if is_gzip else None
        with suppress(httpx2.TransportError, zlib.error):
            async for read in self._response.aiter_raw():
                piece = read[:left_bytes] if unpacker is None else unpacker.decompress(read, left_bytes)
                *whole, rest = (rest + piece).split(b"\n")
                now = time.monotonic()
                for line in whole:
                    self.lines.append((now, line))
                    yield line
                left_bytes -= len(piece)
                if not left_bytes:
                    break
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
        self,
        method: str,
        path: str,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        *,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> Answer:
        """Send a request and read the whole answer.

        Raises:
            NoAnswer: none came in time.
        """
        try:
            async with (
                asyncio.timeout(timeout_s),
                self.stream(method, path, headers, body) as answer,
            ):
                async for _ in answer.read_lines():
                    pass
                return answer
        except TimeoutError as error:
            raise NoAnswer(f"{method} {path} has no answer within {timeout_s:g} s") from error


async def connect(
    host: str, port: int, tls: ssl.SSLContext | None, *, timeout_s: float, address: str = ""
) -> AsyncIterator[Finding]:
    """Connect once and close; yield findings about the connection and, with `tls`, about the certificate.

    Args:
        host: the name that is looked up, and that the certificate must have.
        port: the port.
        tls: how the certificate is judged; None for plain HTTP.
        timeout_s: for the whole connection.
        address: connect there instead of looking `host` up.

    Raises:
        CheckFailed: there is no address, no connection or no trust.
    """
    where = f"{host} ({address}) port {port}" if address else f"{host} port {port}"
    began = time.monotonic()
    try:
        async with asyncio.timeout(timeout_s):
            _, writer = await asyncio.open_connection(
                address or host, port, ssl=tls, server_hostname=host if tls else None
            )
    except socket.gaierror as fault:
        remedy = "is it spelled right, and does this machine's DNS work?"
        raise CheckFailed("name", f"{host} has no address: {fault.strerror}.", remedy) from fault
    except ssl.SSLCertVerificationError as fault:
        reason = fault.verify_message.rstrip(".")
        raise CheckFailed(
            "TLS",
            f"The certificate of {host} is not trusted: {reason}.",
            "a server needs a certificate for this name from an authority that its clients know (Caddy gets "
            "one by itself, certbot does for nginx; your own: doctor --ca FILE, else $SSL_CERT_FILE); "
            "is this machine's clock right?",
        ) from fault
    except ssl.SSLError as fault:
        raise CheckFailed("TLS", f"{where} does not speak TLS: {fault}.", "is the port right?") from fault
    except TimeoutError as fault:
        remedy = "is the port right, and does no firewall block it?"
        raise CheckFailed("connect", f"{where} does not answer within {timeout_s:g} s.", remedy) from fault
    except OSError as fault:
        reason = os.strerror(fault.errno) if fault.errno else str(fault)
        remedy = "is the address right, and does anything listen there?"
        raise CheckFailed("connect", f"{where}: {reason}.", remedy) from fault
    took_ms, certificate = (time.monotonic() - began) * 1000, writer.get_extra_info("peercert")
    writer.transport.abort()
    yield ok("connect", f"{where} answers after {took_ms:.0f} ms.")
    if certificate:
        yield judge_certificate(certificate, time.time())


def judge_certificate(certificate: Mapping[str, Any], now_s: float) -> Finding:
    """Say how long a trusted certificate is valid; a warning if its renewal is late.

    Args:
        certificate: as `ssl.SSLSocket.getpeercert` returns it.
        now_s: this machine's time, in seconds since the epoch.
    """
    begins_s, ends_s = (ssl.cert_time_to_seconds(certificate[name]) for name in ("notBefore", "notAfter"))
    message = f"The certificate is trusted, and valid for {short(ends_s - now_s)}."
    if ends_s - now_s < _EXPIRES_SOON * (ends_s - begins_s):
        remedy = "check that its renewal works (certbot renew --dry-run; journalctl -u caddy)"
        return warning("TLS", message, remedy)
    return ok("TLS", message)
