"""A scripted provider: it plays the bytes, pauses and broken connections that a test's model name asks for.

`tests.support.upstream_script` has the words of such a name, `tests.support.upstream_api` the answers.

In the test's own loop use `FaultUpstream`; behind daemons that are processes of their own use
`fault_upstream` or `fault_upstream_url`; where the provider's work must not count as the test's, run
`python -m tests.support.upstream KEY`, which prints its base URL.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from email.parser import BytesHeaderParser
from functools import cache
from types import TracebackType
from typing import Self, cast

import uvloop

from relayd.processes import reserve_descriptors
from tests.support.upstream_api import Provider, body_of, reply
from tests.support.upstream_script import End, Request, Step, unauthorized
from tests.wire import HOST, until

_SECRET_HEADERS = frozenset({"authorization", "cookie"})
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_DESCRIPTORS = 16_384
"""Room for thousands of connections."""


@dataclass(slots=True)
class Seen:
    """One request as the provider saw it. Times are `time.monotonic()` in seconds."""

    request: Request = field(repr=False)
    headers: dict[str, str]
    """Lower-case names, without those that carry secrets."""
    authorized: bool
    head_at: float | None = None
    """When the reply's head was sent."""
    bytes_sent: int = 0
    """What the kernel has taken."""
    closed_by_client_at: float | None = None
    """When the client left before the reply was whole."""
    completed: bool = False
    """The script was played to its end."""
    ended: bool = False

    @property
    def n(self) -> int:
        """Its number, from 0."""
        return self.request.n

    @property
    def method(self) -> str:
        """Its method."""
        return self.request.method

    @property
    def path(self) -> str:
        """Its path without the query."""
        return self.request.path

    @property
    def query(self) -> str:
        """What follows the question mark."""
        return self.request.query

    @property
    def body(self) -> bytes:
        """Its body, without the chunks' frame."""
        return self.request.body

    @property
    def answer(self) -> bytes:
        """The body that it is answered with when nothing breaks it off: made anew, so that none is kept."""
        return body_of(self.request)


class FaultUpstream:
    """A provider in the running event loop.

    Args:
        key: the bearer key that requests must carry.
        port: on 127.0.0.1; 0 takes a free one.
    """

    def __init__(self, key: str, *, port: int = 0) -> None:
        self.key = key
        self.requests: list[Seen] = []
        self.connections: set[_Connection] = set()
        self.provider = Provider()
        self.held_at_bytes: int | None = None
        """How much of a body is read before `release_uploads`; None: all."""
        self._port = port

    async def __aenter__(self) -> Self:
        self._server = await asyncio.get_running_loop().create_server(
            lambda: _Connection(self), HOST, self._port, backlog=4096
        )
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for connection in self.connections:
            connection.transport.abort()
        await until(lambda: not self.connections)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return self._port

    @property
    def base_url(self) -> str:
        """What an SDK takes as its base URL."""
        return f"http://{HOST}:{self._port}/v1"

    @property
    def uploading(self) -> list[int]:
        """How many bytes have come of each request that is not whole yet."""
        return [connection.unanswered_bytes for connection in self.connections if connection.unanswered_bytes]

    def release_uploads(self) -> None:
        """Read the bodies that `held_at_bytes` holds, and all others."""
        self.held_at_bytes = None
        for connection in self.connections:
            connection.transport.resume_reading()

    @property
    def total_requests(self) -> int:
        """How many requests have arrived."""
        return len(self.requests)

    async def wait_request(self, n: int) -> Seen:
        """Wait until request `n`, from 0, has arrived."""
        await until(lambda: len(self.requests) > n)
        return self.requests[n]

    async def wait_ended(self, n: int) -> Seen:
        """Wait until nothing more will be sent to request `n`."""
        seen = await self.wait_request(n)
        await until(lambda: seen.ended)
        return seen

    async def wait_closed(self, n: int) -> Seen:
        """Wait until request `n` is over, which must be because its client left."""
        seen = await self.wait_ended(n)
        assert seen.closed_by_client_at is not None, f"request {n} was answered whole"
        return seen


class _Connection(asyncio.Protocol):
    """One client connection: requests come in turn, a script is played for each."""

    def __init__(self, upstream: FaultUpstream) -> None:
        self._upstream = upstream
        self._received = bytearray()
        self._head: tuple[str, str, dict[str, str]] | None = None
        self._body = bytearray()
        self._writable = asyncio.Event()
        self._writable.set()
        self._playing: asyncio.Task[None] | None = None
        self._seen: Seen | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        # A write counts as done only when the kernel has it, so that a slow reader slows the script.
        self.transport.set_write_buffer_limits(high=0)
        self._upstream.connections.add(self)

    @property
    def unanswered_bytes(self) -> int:
        """How much has come of a request that is not whole yet."""
        return 0 if self._playing is not None else len(self._received) + len(self._body)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._playing is None:
            self._begin()
        held_at = self._upstream.held_at_bytes
        if held_at is not None and self.unanswered_bytes > held_at:
            self.transport.pause_reading()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def eof_received(self) -> None:
        self._note_departure()
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._note_departure()
        if self._playing is None:
            self._upstream.connections.discard(self)
        else:
            self._playing.cancel()

    def _note_departure(self) -> None:
        if self._seen is not None and self._seen.closed_by_client_at is None:
            self._seen.closed_by_client_at = time.monotonic()

    def _begin(self) -> None:
        """Answer the next request, once all of it has come."""
        if self._head is None and not self._read_head():
            return
        if not self._read_body():
            return
        assert self._head is not None
        (method, target, headers), body = self._head, bytes(self._body)
        self._head = None
        self._body.clear()
        path, _, query = target.partition("?")
        authorization = headers.get("authorization", "")
        n = len(self._upstream.requests)
        request = Request(n, method, path, query, headers, body, authorization)
        self._seen = seen = Seen(
            request=request,
            headers={name: value for name, value in headers.items() if name not in _SECRET_HEADERS},
            authorized=authorization == f"Bearer {self._upstream.key}",
        )
        self._upstream.requests.append(seen)
        steps = reply(request, self._upstream.provider) if seen.authorized else iter([unauthorized(request)])
        self._playing = asyncio.create_task(self._play(seen, steps), name="fault upstream")
        self._playing.add_done_callback(lambda _task: self._on_played())

    def _read_head(self) -> bool:
        head, end, rest = self._received.partition(b"\r\n\r\n")
        if not end:
            return False
        start, _, fields = bytes(head + end).partition(b"\r\n")
        headers = {name.lower(): value for name, value in BytesHeaderParser().parsebytes(fields).items()}
        method, target, _ = start.decode().split(" ")
        self._head = method, target, headers
        self._received = rest
        if headers.get("expect") == "100-continue":
            self.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return True

    def _read_body(self) -> bool:
        """Move what has come of the body; return whether that is all."""
        assert self._head is not None
        headers = self._head[2]
        if headers.get("transfer-encoding") != "chunked":
            length = int(headers.get("content-length", "0"))
            more = length - len(self._body)
            self._body += self._received[:more]
            del self._received[:more]
            return len(self._body) == length
        while (end := self._received.find(b"\r\n")) >= 0:
            size = int(self._received[:end], 16)
            if len(self._received) < end + size + 4:
                break
            self._body += self._received[end + 2 : end + 2 + size]
            del self._received[: end + size + 4]
            if size == 0:
                return True
        return False

    async def _play(self, seen: Seen, steps: Iterator[Step]) -> None:
        for step in steps:
            if isinstance(step, bytes):
                seen.head_at = seen.head_at or time.monotonic()
                self.transport.write(step)
                await self._writable.wait()
                seen.bytes_sent += len(step)
            elif isinstance(step, float):
                await asyncio.sleep(step)
            elif step is End.SILENCE:
                await asyncio.get_running_loop().create_future()
            else:
                self._break_off(step)
                break
        seen.completed = True

    def _break_off(self, how: End) -> None:
        if how is End.RESET:
            connection: socket.socket = self.transport.get_extra_info("socket")
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self.transport.close()

    def _on_played(self) -> None:
        seen, self._seen, self._playing = self._seen, None, None
        assert seen is not None
        seen.ended = True
        if seen.completed:
            seen.closed_by_client_at = None
        if self.transport.is_closing():
            self._upstream.connections.discard(self)
        else:
            self._begin()


@cache
def fault_upstream(key: str) -> FaultUpstream:
    """Return an upstream for the rest of the test run, in a thread of its own."""
    started: Future[FaultUpstream] = Future()
    serving = threading.Thread(target=_serve, args=(key, started.set_result), daemon=True)
    serving.start()
    return started.result(30)


def fault_upstream_url(key: str) -> str:
    """Return the base URL of `fault_upstream`."""
    return fault_upstream(key).base_url


def _serve(key: str, on_start: Callable[[FaultUpstream], object]) -> None:
    async def serve() -> None:
        async with FaultUpstream(key) as upstream:
            on_start(upstream)
            await asyncio.get_running_loop().create_future()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())


if __name__ == "__main__":
    reserve_descriptors(_DESCRIPTORS)
    _serve(sys.argv[1], lambda upstream: print(upstream.base_url, flush=True))  # noqa: T201 - what is waited for
