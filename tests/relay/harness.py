"""A provider that plays bytes, the product's client of it, and a client that keeps what it is sent."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import pairwise
from typing import Any, TypeAlias

from relayd.relay.errors import ClientGone, ClientStalled, RelayError
from relayd.relay.stream import RelayStream, StreamLimits, Upstream
from relayd.relay.upstream import Upstream as Provider
from relayd.relay.upstream import UpstreamOptions
from relayd.state.records import RequestRecord
from tests.wire import HOST

PROVIDER_KEY = "sk-provider-key-of-these-tests"
BODY = b'{"model":"demo","stream":true,"messages":[{"role":"user","content":"Hi"}]}'
CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
FINISH = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
STREAM_DONE = b"data: [DONE]\n\n"
PATIENCE_S = 30.0


class Break(Enum):
    """How a connection ends before the provider is through."""

    CLOSE = auto()
    RESET = auto()
    WAIT = auto()
    """Nothing more is sent until the relay leaves."""


Step: TypeAlias = bytes | float | asyncio.Event | Break
"""Bytes to send in one write, seconds or an event to wait for, or an end."""


@dataclass(slots=True)
class PlayedProvider:
    """A server that plays one list of steps for each request, the last list again and again."""

    replies: Sequence[Sequence[Step]] = field(repr=False)
    port: int = 0
    connections: int = 0
    requests: list[bytes] = field(default_factory=list, repr=False)
    sent_bytes: int = 0
    """What the kernel has taken."""
    departures: asyncio.Queue[int] = field(default_factory=asyncio.Queue)
    """The number of each connection that the relay closed."""

    @property
    def base_url(self) -> str:
        """What an SDK takes as its base URL."""
        return f"http://{HOST}:{self.port}/v1"

    async def relay_left(self) -> None:
        """Wait until the relay has closed a connection."""
        await asyncio.wait_for(self.departures.get(), PATIENCE_S)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Play the replies on one connection."""
        self.connections += 1
        number = self.connections
        writer.transport.set_write_buffer_limits(high=0)
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0] or b"0")
                self.requests.append(head + await reader.readexactly(length))
                steps = self.replies[min(len(self.requests), len(self.replies)) - 1]
                if not await self._play(steps, reader, writer):
                    return
        except (ConnectionError, asyncio.IncompleteReadError):
            self.departures.put_nowait(number)
        finally:
            writer.close()

    async def _play(
        self, steps: Iterable[Step], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bool:
        for step in steps:
            if isinstance(step, bytes):
                if writer.is_closing():
                    raise ConnectionResetError
                writer.write(step)
                await writer.drain()
                self.sent_bytes += len(step)
            elif isinstance(step, float):
                await asyncio.sleep(step)
            elif isinstance(step, asyncio.Event):
                await step.wait()
            elif step is Break.WAIT:
                await reader.readexactly(1)
            else:
                if step is Break.RESET:
                    raw: socket.socket = writer.transport.get_extra_info("socket")
                    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                return False
        return True


@asynccontextmanager
async def running_provider(
    *replies: Sequence[Step], tls: ssl.SSLContext | None = None, host: str = HOST
) -> AsyncIterator[PlayedProvider]:
    """Serve until the block ends."""
    provider = PlayedProvider(replies)
    tasks: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with suppress(asyncio.CancelledError):
            await provider.serve(reader, writer)

    server = await asyncio.start_server(serve, host, 0, ssl=tls)
    provider.port = server.sockets[0].getsockname()[1]
    try:
        yield provider
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def http(status: int, body: bytes = b"", *headers: str, media_type: str = "application/json") -> bytes:
    """Return a response with a length."""
    lines = [f"HTTP/1.1 {status} Reason", f"Content-Type: {media_type}", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, *headers, "\r\n"]).encode() + body


def error(status: int, message: str, *headers: str, **fields: str | None) -> bytes:
    """Return an error as OpenAI writes it."""
    return http(status, json.dumps({"error": {"message": message, **fields}}).encode(), *headers)


def chunked(*pieces: bytes) -> bytes:
    """Return the whole chunks of a body, without its last one."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces)


def answer(*pieces: bytes) -> list[Step]:
    """Return the steps of a whole streamed answer, each piece in a write of its own."""
    return [CHUNKED_HEAD, *(chunked(piece) for piece in pieces), b"0\r\n\r\n"]


def script(*steps: Step) -> list[Step]:
    """Return steps of several types as one list."""
    return list(steps)


def delta(text: str, **choice: Any) -> bytes:
    """Return the event of one piece of text, with more fields of its choice."""
    return event({"choices": [{"index": 0, "delta": {"content": text}, **choice}]})


def event(value: object) -> bytes:
    """Return an event with this JSON."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """Cut bytes at some places, whatever the numbers are."""
    bounds = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[a:b] for a, b in pairwise(bounds)]


@asynccontextmanager
async def client_of(base_url: str, **options: Any) -> AsyncIterator[Provider]:
    """Make the product's client of a provider, without retries unless the options say so."""
    upstream = Provider(PROVIDER_KEY, UpstreamOptions(base_url, **{"max_retries": 0, **options}))
    try:
        yield upstream
    finally:
        await upstream.close()


async def read_answer(upstream: Provider) -> bytes:
    """Ask for one answer and return its bytes; raise what the client raises."""
    async with asyncio.timeout(PATIENCE_S):
        _, body = await upstream.open(BODY, lambda: None)
        try:
            return await body.read(1 << 30)
        finally:
            body.close()


class KeptResponse:
    """A client's connection that takes all at once, unless it is told to leave or to stall."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.stalled_s = 0.0
        self.writes: list[bytes] = []
        self.ends = 0
        self.first_line = asyncio.Event()
        self.trouble: ClientGone | ClientStalled | None = None
        """What every write meets from now on."""
        self.blocked = False
        self.on_write: Callable[[bytes], None] = lambda _lines: None

    def write_lines(self, lines: bytes) -> None:
        """Keep the lines."""
        self._keep(lines, 200)
        self.first_line.set()
        self.on_write(lines)

    async def drain(self) -> None:
        """Wait until the test unblocks the client."""
        began_at = time.monotonic()
        while self.blocked:  # noqa: ASYNC110 - the test's own bounded wait
            await asyncio.sleep(0.005)
        self.stalled_s += time.monotonic() - began_at
        if self.trouble is not None:
            raise self.trouble

    async def end(self, lines: bytes, error: RelayError | None) -> None:
        """Keep the last lines; this comes once."""
        self._keep(lines, 200 if error is None else error.status)
        self.ends += 1
        assert self.ends == 1

    def _keep(self, lines: bytes, status: int) -> None:
        if self.trouble is not None:
            raise self.trouble
        assert lines.endswith(b"\n"), "a write ends inside a line"
        self.status = self.status or status
        self.writes.append(lines)

    @property
    def sent(self) -> bytes:
        """All that was sent."""
        return b"".join(self.writes)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The lines so far; exactly one of an ended response is the last."""
        lines = [json.loads(line) for line in self.sent.split(b"\n")[:-1]]
        if self.ends:
            assert [line["done"] for line in lines].count(True) == 1, lines
            assert lines[-1]["done"]
        return lines

    @property
    def text(self) -> str:
        """What a client that appends content ends up with."""
        return "".join(line["content"] for line in self.lines if not (line["done"] or line["error"]))

    @property
    def error(self) -> str | None:
        """The content of the one error line, which only the done line follows."""
        found = [number for number, line in enumerate(self.lines) if line["error"]]
        assert found in ([], [len(self.lines) - 2]), self.lines
        return str(self.lines[-2]["content"]) if found else None


def new_record(request_id: str = "request", key_id: str = "key") -> RequestRecord:
    """Return the record of a request that was just admitted."""
    return RequestRecord(
        id=request_id, boot_id="boot", started_at="2026-01-01T00:00:00.000Z", key_id=key_id, model="demo"
    )


def new_stream(
    upstream: Upstream,
    response: KeptResponse,
    *,
    limits: StreamLimits | None = None,
    record: RequestRecord | None = None,
    include_usage: bool = False,
) -> RelayStream:
    """Return a stream that has not begun."""
    return RelayStream(
        record or new_record(),
        BODY,
        include_usage=include_usage,
        upstream=upstream,
        writer=response,
        limits=limits or StreamLimits(),
    )


async def relayed(
    *steps: Step, limits: StreamLimits | None = None, include_usage: bool = False
) -> tuple[RequestRecord, KeptResponse]:
    """Relay one played reply to its end; return its record and what the client was sent."""
    response = KeptResponse()
    async with running_provider(steps) as provider, client_of(provider.base_url) as upstream:
        stream = new_stream(upstream, response, limits=limits, include_usage=include_usage)
        await asyncio.wait_for(stream.run(), PATIENCE_S)
    assert response.ends == 1
    return stream.record, response
