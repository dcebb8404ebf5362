"""What one delta and one request may cost, counted in calls and never in seconds.

The upstream sends a delta only after the client has read the line of the one before, so that each delta
takes its own way through the relay: the counts are the same on every machine and in every run. Figures in
time are the benchmark's (docs/performance.md). A bound that is missed says that something was added to the
way of every delta; where that is meant, raise the bound in the same commit and say why.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from itertools import pairwise
from types import FrameType
from typing import Any, Self

from relayd.relay.upstream import Upstream, UpstreamOptions
from tests.public.room import KEY, PROVIDER_KEY, Setup, public_room
from tests.wire import DONE_BYTES, HOST, body, post

MAX_CALLS_A_DELTA = 43
MAX_CALLS_A_REQUEST = 575
"""Functions entered or resumed, and C functions called, by the relay and its libraries (Python 3.11)."""

_COUNTED = ("/relayd/relay/", "/relayd/public/", "/site-packages/")
_CHUNK = (
    b'data: {"id":"chatcmpl-1","object":"chat.completion.chunk","created":1,"model":"m","choices":'
    b'[{"index":0,"delta":%b,"logprobs":null,"finish_reason":%b}]}\n\n'
)
_DELTA = _CHUNK % (b'{"content":"word "}', b"null")
_END = _CHUNK % (b"{}", b'"stop"') + b"data: [DONE]\n\n"
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_LINE = b'{"done":false,"error":false,"content":"word "}\n'


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class StepUpstream:
    """A provider that sends one delta a step."""

    def __init__(self) -> None:
        self._asked: asyncio.Queue[asyncio.StreamWriter] = asyncio.Queue()
        self._handlers: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self._server.close()
        await asyncio.gather(*self._handlers)

    @property
    def base_url(self) -> str:
        """What the relay is told."""
        return f"http://{HOST}:{self._server.sockets[0].getsockname()[1]}/v1"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._handlers.add(task)
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-len"))
                await reader.readexactly(int(length.partition(b":")[2]))
                self._asked.put_nowait(writer)
        except asyncio.IncompleteReadError:
            writer.close()

    async def asked(self) -> asyncio.StreamWriter:
        """The way back to whoever asked next, its head sent."""
        writer = await self._asked.get()
        writer.write(_HEAD)
        return writer


class Client:
    """One connection to the relay, read line by line."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def stream(
        self, upstream: StepUpstream, pieces: Sequence[int], seen: Callable[[], None] = lambda: None
    ) -> None:
        """One answer in steps.

        Args:
            upstream: who answers.
            pieces: how many deltas come together, step by step.
            seen: called before each step, and after the last.
        """
        self._writer.write(post(KEY, body("m")))
        source = await upstream.asked()
        for deltas in pieces:
            seen()
            source.write(_chunk(_DELTA * deltas))
            for _ in range(deltas):
                assert (await self._reader.readuntil(b"}\n")).endswith(_LINE)
        seen()
        source.write(_chunk(_END) + b"0\r\n\r\n")
        assert (await self._reader.readuntil(b"}\n")).endswith(DONE_BYTES)
        await self._reader.readuntil(b"0\r\n\r\n")

    def close(self) -> None:
        """Leave."""
        self._writer.close()


class Calls:
    """Counts calls while it is entered; what the test itself does is not counted."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> Self:
        sys.setprofile(self._note)
        return self

    def __exit__(self, *_exception: object) -> None:
        sys.setprofile(None)

    def _note(self, frame: FrameType, event: str, _arg: Any) -> None:
        if event in {"call", "c_call"} and any(part in frame.f_code.co_filename for part in _COUNTED):
            self.count += 1


@asynccontextmanager
async def stepping() -> AsyncIterator[tuple[StepUpstream, Client]]:
    """The public side before a provider that goes in steps, and one client that was served before."""
    async with StepUpstream() as upstream:
        options = UpstreamOptions(upstream.base_url, max_retries=0)
        async with public_room(Setup(upstream=lambda _demo: Upstream(PROVIDER_KEY, options))) as room:
            client = Client(*await asyncio.open_connection(HOST, room.port))
            # The first requests fill caches and pools.
            for _ in range(3):
                await client.stream(upstream, [1, 1])
            yield upstream, client
            client.close()


async def test_a_delta_costs_no_more_calls_than_recorded() -> None:
    """From the provider's bytes to the client's line, a delta costs at most the recorded number of calls."""
    async with stepping() as (upstream, client):
        seen: list[int] = []
        with Calls() as calls:
            await client.stream(upstream, [1] * 101, lambda: seen.append(calls.count))
    # The first delta carries the head of the reply.
    steps = sorted(later - earlier for earlier, later in pairwise(seen[1:]))
    assert len(steps) == 100
    # The middle one: a timer may fall into any of the others.
    assert 0 < steps[50] <= MAX_CALLS_A_DELTA, steps


async def test_a_request_costs_no_more_calls_than_recorded() -> None:
    """Admission, the provider's request, the head, the record and the end cost at most the recorded calls."""
    async with stepping() as (upstream, client):
        costs = []
        for _ in range(11):
            with Calls() as calls:
                await client.stream(upstream, [1])
            costs.append(calls.count)
    assert 0 < sorted(costs)[5] <= MAX_CALLS_A_REQUEST, costs


async def test_deltas_that_come_together_cost_less_than_half() -> None:
    """Fifty deltas in one piece are relayed for less than half of what fifty single ones cost."""
    async with stepping() as (upstream, client):
        with Calls() as single:
            await client.stream(upstream, [1] * 50)
        with Calls() as joined:
            await client.stream(upstream, [50])
    assert 0 < joined.count < single.count / 2
