"""HTTP/1.1 as the doctor needs it: every header as it came, and the time at which each piece arrived."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
import zlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import SplitResult

PATIENCE_S = 15.0
_MAX_HEAD_BYTES = 64 << 10
_READ_BYTES = 64 << 10
_GZIP = 16 + zlib.MAX_WBITS
_PORTS = {"http": 80, "https": 443}


class Unanswered(Exception):
    """No answer that can be read; the text says what came instead."""


@dataclass(slots=True)
class Answer:
    """An answer as it comes: the head first, then its lines with the time of each (`time.monotonic`)."""

    status: int
    headers: list[tuple[str, str]]
    asked_at: float
    """Just before its request was sent (`time.monotonic`)."""
    lines: list[tuple[float, bytes]] = field(default_factory=list)
    cut: bool = False
    """Whether the connection ended before the body did."""

    def all(self, name: str) -> list[str]:
        """Every value of a header, one for each line that has it."""
        return [value for known, value in self.headers if known == name.lower()]

    def header(self, name: str) -> str:
        """The values of a header as one; empty where there is none."""
        return ", ".join(self.all(name))

    def event(self, number: int) -> dict[str, Any]:
        """One line as JSON; empty where it is none."""
        try:
            event = json.loads(self.lines[number][1])
        except (ValueError, IndexError):
            return {}
        return event if isinstance(event, dict) else {}


@dataclass(frozen=True, slots=True)
class Site:
    """The deployment that is looked at.

    Attributes:
        url: as it was given, without a trailing slash.
        address: of its host, already resolved.
        tls: how its certificate is judged; None for plain HTTP.
    """

    url: SplitResult
    address: str
    tls: ssl.SSLContext | None

    @property
    def host(self) -> str:
        """Its name."""
        return self.url.hostname or ""

    @property
    def port(self) -> int:
        """Its port."""
        return self.url.port or _PORTS[self.url.scheme]

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Connection]:
        """A connection of its own, cut on leaving. Raises OSError, TimeoutError."""
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection(
                self.address,
                self.port,
                ssl=self.tls,
                server_hostname=self.host if self.tls else None,
                limit=_MAX_HEAD_BYTES,
            )
        try:
            yield Connection(reader, writer, self)
        finally:
            writer.transport.abort()

    async def ask(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Answer:
        """One whole exchange. Raises Unanswered."""
        try:
            async with asyncio.timeout(PATIENCE_S), self.connect() as connection:
                answer = await connection.ask(method, path, headers, body)
                async for _ in connection.lines(answer):
                    pass
        except TimeoutError as error:
            raise Unanswered(f"{method} {path} has no answer within {PATIENCE_S:g} s") from error
        except OSError as error:
            raise Unanswered(f"{method} {path}: {error.strerror or error}") from error
        return answer


class Connection:
    """One connection, for one request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, site: Site) -> None:
        self._reader = reader
        self._writer = writer
        self._site = site

    @property
    def certificate(self) -> dict[str, Any]:
        """The site's, once its chain is verified."""
        found: dict[str, Any] = self._writer.get_extra_info("peercert") or {}
        return found

    async def ask(
        self, method: str, path: str, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> Answer:
        """Send a request and read the head of its answer. Raises Unanswered, OSError."""
        fields = {
            "Host": self._site.url.netloc,
            "Accept-Encoding": "gzip",  # as browsers do: a proxy that compresses shows it
            "Connection": "close",
            **(headers or {}),
        }
        if body:
            fields |= {"Content-Type": "application/json", "Content-Length": str(len(body))}
        head = [f"{method} {self._site.url.path}{path} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items())]
        asked_at = time.monotonic()
        self._writer.write("\r\n".join([*head, "", ""]).encode("latin-1") + body)
        # Not drained: who refuses a body answers before it was read, and that answer is of interest.
        return await self._head(method, path, asked_at)

    async def _head(self, method: str, path: str, asked_at: float) -> Answer:
        try:
            raw = await self._reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError) as error:
            raise Unanswered(f"{method} {path} is not answered in HTTP") from error
        first, *rest = raw.decode("latin-1").split("\r\n")[:-2]
        parts = first.split(" ", 2)
        if len(parts) < 2 or not parts[0].startswith("HTTP/1.") or not parts[1].isdecimal():  # noqa: PLR2004 - version and status
            raise Unanswered(f"{method} {path} is not answered in HTTP")
        headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in rest)]
        return Answer(int(parts[1]), headers, asked_at)

    async def lines(self, answer: Answer) -> AsyncGenerator[bytes, None]:
        """The lines of the body as they come, kept in the answer as well."""
        rest = b""
        unzip = zlib.decompressobj(_GZIP) if "gzip" in answer.header("Content-Encoding") else None
        try:
            async for piece in self._pieces(answer):
                data = unzip.decompress(piece) if unzip else piece
                *whole, rest = (rest + data).split(b"\n")
                now = time.monotonic()
                for line in whole:
                    answer.lines.append((now, line))
                    yield line
        except (
            asyncio.IncompleteReadError,
            asyncio.LimitOverrunError,
            ConnectionError,
            ValueError,
            zlib.error,
        ):
            answer.cut = True
        if rest:
            answer.lines.append((time.monotonic(), rest))

    async def _pieces(self, answer: Answer) -> AsyncIterator[bytes]:
        if "chunked" in answer.header("Transfer-Encoding").lower():
            while size := int(await self._reader.readuntil(b"\r\n"), 16):
                yield await self._reader.readexactly(size)
                await self._reader.readexactly(2)
            return
        length = answer.header("Content-Length")
        left = int(length) if length.isdecimal() else None
        while left is None or left > 0:
            piece = await self._reader.read(_READ_BYTES if left is None else min(left, _READ_BYTES))
            if not piece:
                if left is not None:
                    raise asyncio.IncompleteReadError(b"", left)
                return
            left = None if left is None else left - len(piece)
            yield piece
