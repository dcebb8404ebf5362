"""A scripted provider: it plays the bytes, pauses and broken connections that a test's model name asks for.

In the test's own loop use `FaultUpstream`; in front of daemons that are processes of their own use
`fault_upstream_url`; where the provider's work must not count as the test's, run
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
from functools import cache, partial
from types import TracebackType
from typing import Self, cast

import uvloop

from relayd.descriptors import MANY_DESCRIPTORS, reserve_descriptors
from tests.support.upstream_script import End, Request, Step, reply, unauthorized
from tests.wire import HOST, until

_SECRET_HEADERS = frozenset({"authorization", "cookie"})
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(slots=True)
class Seen:
    """One request as the provider saw it. Times are `time.monotonic()` in seconds."""

    n: int
    method: str
    path: str
    headers: dict[str, str]
    """Lower-case names, without those that carry secrets."""
    body: bytes = field(repr=False)
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
        self.attempts: dict[str, int] = {}
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
        self._writable = asyncio.Event()
        self._writable.set()
        self._playing: asyncio.Task[None] | None = None
        self._seen: Seen | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        # A write counts as done only when the kernel has it, so that a slow reader slows the script.
        self.transport.set_write_buffer_limits(high=0)
        self._upstream.connections.add(self)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._playing is None:
            self._begin()

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
        end_of_head = self._received.find(b"\r\n\r\n")
        if end_of_head < 0:
            return
        start, _, fields = bytes(self._received[: end_of_head + 4]).partition(b"\r\n")
        headers = {name.lower(): value for name, value in BytesHeaderParser().parsebytes(fields).items()}
        end = end_of_head + 4 + int(headers.get("content-length", "0"))
        if len(self._received) < end:
            return
        body = bytes(self._received[end_of_head + 4 : end])
        del self._received[:end]
        method, target, _ = start.decode().split(" ")
        authorization = headers.get("authorization", "")
        self._seen = seen = Seen(
            n=len(self._upstream.requests),
            method=method,
            path=target.partition("?")[0],
            headers={name: value for name, value in headers.items() if name not in _SECRET_HEADERS},
            body=body,
            authorized=authorization == f"Bearer {self._upstream.key}",
        )
        self._upstream.requests.append(seen)
        request = Request(seen.n, f"{method} {seen.path}", body, authorization)
        steps = reply(request, self._upstream.attempts) if seen.authorized else iter([unauthorized(request)])
        self._playing = asyncio.create_task(self._play(seen, steps), name="fault upstream")
        self._playing.add_done_callback(lambda _task: self._on_played())

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
def fault_upstream_url(key: str) -> str:
    """Return the base URL of an upstream for the rest of the test run, in a thread of its own."""
    started: Future[str] = Future()
    serving = threading.Thread(target=_serve, args=(key, started.set_result), daemon=True)
    serving.start()
    return started.result(30)


def _serve(key: str, on_start: Callable[[str], object]) -> None:
    async def serve() -> None:
        async with FaultUpstream(key) as upstream:
            on_start(upstream.base_url)
            await asyncio.get_running_loop().create_future()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve())


if __name__ == "__main__":
    reserve_descriptors(MANY_DESCRIPTORS)
    _serve(sys.argv[1], partial(print, flush=True))
