"""A provider that plays bytes with and without a socket, and a client that keeps what it is sent."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum, auto
from itertools import pairwise
from typing import Any, TypeAlias

from relayd.relay.chat_answer import ChatAnswer, ChatUpstream
from relayd.relay.errors import ClientGone, ClientStalled, RelayError
from relayd.relay.redact import Redactor
from relayd.relay.stream import RelayStream, StreamLimits
from relayd.relay.transport.connection import ConnectionBroken
from relayd.relay.upstream import Upstream as Provider
from relayd.relay.upstream import UpstreamOptions
from relayd.state.records import RequestRecord
from tests.wire import HOST, PATIENCE_S

PROVIDER_KEY = "sk-provider-key-of-these-tests"
BODY = b'{"model":"demo","stream":true,"messages":[{"role":"user","content":"Hi"}]}'
CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
FINISH = b'data: {"choices":[{"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9}}\n\n'
STREAM_DONE = b"data: [DONE]\n\n"


class Break(Enum):
    """How a connection ends before the provider is through."""

    CLOSE = auto()
    RESET = auto()
    WAIT = auto()
    """Nothing more is sent until the relay leaves."""


Step: TypeAlias = bytes | float | asyncio.Event | Break | Exception
"""Bytes to send in one write, seconds or an event to wait for, an end, or a bug of the relay's own client."""


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
        _, body = await upstream.open(BODY, lambda _route: None)
        try:
            return await body.read(1 << 30)
        finally:
            body.close()


class ScriptedUpstream:
    """A provider without a socket: it plays steps to one stream, and notes when and how it was let go.

    Args:
        steps: of the answer: bytes of events, waits, and how they end; at their end the answer ends.
        refusal: raised in the place of an answer.
        connect_s: until there is a connection.
        head_s: from then until the head of the answer; None: it never comes.
    """

    def __init__(
        self,
        *steps: Step,
        refusal: Exception | None = None,
        connect_s: float = 0.0,
        head_s: float | None = 0.0,
    ) -> None:
        self.redact = Redactor(PROVIDER_KEY)
        self.is_asked = False
        self.is_let_go = asyncio.Event()
        self.linger_s: float | None = None
        """How long the end of the answer was waited for; None while it is read."""
        self._steps, self._refusal, self._connect_s, self._head_s = steps, refusal, connect_s, head_s
        self._is_wanted = asyncio.Event()
        self._is_wanted.set()

    async def open(
        self, body: bytes, on_connected: Callable[[str | None], None], model: str
    ) -> tuple[str, ScriptedUpstream]:
        """Begin the answer, or fail."""
        assert (body, model) == (BODY, "demo")
        self.is_asked = True
        try:
            await asyncio.sleep(self._connect_s)
            on_connected(None)
            await (asyncio.Event().wait() if self._head_s is None else asyncio.sleep(self._head_s))
        except asyncio.CancelledError:
            self.is_let_go.set()
            raise
        if self._refusal is not None:
            raise self._refusal
        return "req_7", self

    def start(self, on_chunk: Callable[[bytes], None], on_end: Callable[[Exception | None], None]) -> None:
        """Play the steps in a task that `close` ends."""
        self._playing = asyncio.create_task(self._play(on_chunk, on_end), name="scripted upstream")

    async def _play(
        self, on_chunk: Callable[[bytes], None], on_end: Callable[[Exception | None], None]
    ) -> None:
        end: Exception | None = None
        for step in self._steps:
            if isinstance(step, float):
                await asyncio.sleep(step)
            elif isinstance(step, bytes):
                await self._is_wanted.wait()
                try:
                    on_chunk(step)
                except Exception as error:  # noqa: BLE001 - as the product's transport does
                    end = error
                    break
            elif step is Break.WAIT:
                await asyncio.Event().wait()
            else:
                end = step if isinstance(step, Exception) else ConnectionBroken("closed the connection")
                break
        on_end(end)

    def pause_reading(self) -> None:
        """Push nothing until `resume_reading`."""
        self._is_wanted.clear()

    def resume_reading(self) -> None:
        """Push again."""
        self._is_wanted.set()

    def close(self, *, linger_s: float = 0.0) -> None:
        """Stop, and note it."""
        self.linger_s = linger_s
        self._playing.cancel()
        self.is_let_go.set()


class KeptResponse:
    """A client's connection that takes all at once, unless it is told to leave or to stall."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.stalled_s = 0.0
        self.writes: list[bytes] = []
        self.written_at: list[float] = []
        """The loop's time of each write."""
        self.ends = 0
        self.first_line = asyncio.Event()
        self.trouble: ClientGone | ClientStalled | None = None
        """What every write meets from now on."""
        self.on_write: Callable[[bytes], None] = lambda _lines: None
        self._reads = asyncio.Event()
        self._reads.set()

    @property
    def blocked(self) -> bool:
        """Whether the client must read before it is sent more."""
        return not self._reads.is_set()

    def stall(self) -> None:
        """Read nothing more."""
        self._reads.clear()

    def read_on(self) -> None:
        """Read again."""
        self._reads.set()

    def send(self, data: bytes) -> None:
        """Keep the lines."""
        self._keep(data, 200)
        self.first_line.set()
        self.on_write(data)

    async def drain(self) -> None:
        """Wait until the client reads."""
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        await self._reads.wait()
        self.stalled_s += loop.time() - began_at
        if self.trouble is not None:
            raise self.trouble

    async def end(self, data: bytes, error: RelayError | None) -> None:
        """Keep the last lines; this comes once."""
        self._keep(data, 200 if error is None else error.status)
        self.ends += 1
        assert self.ends == 1

    def _keep(self, lines: bytes, status: int) -> None:
        if self.trouble is not None:
            raise self.trouble
        assert lines.endswith(b"\n"), "a write ends inside a line"
        self.status = self.status or status
        self.writes.append(lines)
        self.written_at.append(asyncio.get_running_loop().time())

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


class Running:
    """One stream, its provider, its client and its task.

    Args:
        upstream: the provider.
        limits: the times that its clock watches.
        include_usage: whether the client asked for usage.
        request_id: of its record.
        key_id: of its record.
    """

    def __init__(
        self,
        upstream: ChatUpstream,
        limits: StreamLimits | None = None,
        *,
        include_usage: bool = False,
        request_id: str = "request",
        key_id: str = "key",
    ) -> None:
        self.response = KeptResponse()
        self.record = RequestRecord(
            id=request_id,
            boot_id="boot",
            started_at="2026-01-01T00:00:00.000Z",
            key_id=key_id,
            model="demo",
        )
        self.stream = RelayStream(
            self.record,
            ChatAnswer(upstream, BODY, "demo", include_usage=include_usage),
            writer=self.response,
            limits=limits or StreamLimits(),
        )
        self._task: asyncio.Task[None] | None = None

    @property
    def task(self) -> asyncio.Task[None]:
        """The task of the stream, which this starts."""
        if self._task is None:
            self._task = asyncio.create_task(self.stream.run(), name="stream")
        return self._task

    async def ended(self) -> RequestRecord:
        """Wait for the end of the stream; return its record."""
        await self.task
        assert self.task.cancelling() == 0
        return self.record


async def relayed(
    *steps: Step, limits: StreamLimits | None = None, include_usage: bool = False
) -> tuple[RequestRecord, KeptResponse]:
    """Relay one scripted answer to its end; return its record and what the client was sent."""
    running = Running(ScriptedUpstream(*steps), limits, include_usage=include_usage)
    await running.ended()
    assert running.response.ends == 1
    return running.record, running.response
