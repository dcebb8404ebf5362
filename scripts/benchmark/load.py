"""The load generator: opens streams as a plan says, and reads the age of each delta as it arrives.

Run as a process with `python -m benchmark.load`. Each line on stdin is a plan in JSON: a target (`port`, and
the parts of a request) and one group of clients. Each line on stdout is its result. A group is either

    {"streams": 150, "ramp_s": 1, "deltas": 100, "interval_ms": 50}                  each stream once
    {"workers": 32, "for_s": 4, "deltas": 1, "interval_ms": 0}     as often as possible
    {"workers": 70, "every_ms": 60000, "for_s": 90, ...}     each once a minute, evenly spread
"""

from __future__ import annotations

import asyncio
import gc
import json
import re
import sys
import time
from collections import Counter
from typing import Any, cast

import httptools
import uvloop

from benchmark.programs import reserve_descriptors
from benchmark.upstream import STAMP_DIGITS

_HOST = "127.0.0.1"
_MAX_DELAY_S = 120.0
"""A stream that takes longer than its deltas and this has failed."""
_OK = 200
_STAMP = re.compile(rb'"content": ?"(\d{%d})"' % STAMP_DIGITS)


class Connection(asyncio.Protocol):
    """One connection to the relay; httptools calls the methods that begin with `on`."""

    def __init__(self) -> None:
        self.closed = False
        self._parser: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)
        self._over: asyncio.Future[str | None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast("asyncio.Transport", transport)

    async def ask(self, request: bytes, group: Group) -> str | None:
        """Run one stream, SSE or NDJSON, and measure it into the group; return what went wrong."""
        self._group = group
        self._over = asyncio.get_running_loop().create_future()
        self._deltas, self._done = 0, False
        self._error: str | None = None
        self._incomplete_line = b""
        self._last_ns = self._began_ns = time.monotonic_ns()
        self.transport.write(request)
        error = await self._over
        if error is None and (self._deltas != group.deltas or not self._done):
            error = f"{self._deltas} of {group.deltas} deltas, {'with' if self._done else 'without'} [DONE]"
        return error

    def data_received(self, data: bytes) -> None:
        """Parse, and note when these bytes came."""
        self._now_ns = time.monotonic_ns()
        if self._parser is not None and self._over is not None:
            self._parser.feed_data(data)

    def on_body(self, data: bytes) -> None:
        """Measure the deltas of each complete line."""
        assert self._parser is not None  # noqa: S101 - it is calling
        text = self._incomplete_line + data if self._incomplete_line else data
        if self._parser.get_status_code() != _OK:
            self._error = f"status {self._parser.get_status_code()}: {text[:200].decode(errors='replace')}"
            return
        end = text.rfind(b"\n") + 1
        self._incomplete_line = text[end:]
        stamps = _STAMP.findall(text, 0, end)
        if stamps:
            self._measure(stamps)
        if text.find(b"[DONE]", 0, end) >= 0:
            self._done = True
        elif not stamps and (text.find(b'"error":true', 0, end) >= 0 or text.find(b'{"error"', 0, end) >= 0):
            self._error = text[:200].decode(errors="replace")

    def _measure(self, stamps: list[bytes]) -> None:
        group, now_ns = self._group, self._now_ns
        if not self._deltas:
            group.firsts_ns.append(now_ns - self._began_ns)
        elif now_ns - self._last_ns > group.longest_gap_ns:
            group.longest_gap_ns = now_ns - self._last_ns
        self._last_ns = now_ns
        self._deltas += len(stamps)
        group.ages_ns.extend([now_ns - int(stamp) for stamp in stamps])

    def on_message_complete(self) -> None:
        """End the stream."""
        self._end(self._error)

    def connection_lost(self, error: Exception | None) -> None:
        """End a stream that is not over; it has failed."""
        self.closed = True
        self._parser = None  # it refers to this object, and the garbage collector is off
        self._end(f"connection lost: {error or 'closed early'}")

    def _end(self, error: str | None) -> None:
        over, self._over = self._over, None
        if over is not None and not over.done():
            over.set_result(error)


class Group:
    """Clients of one kind, and what they measured."""

    def __init__(self, plan: dict[str, Any], target: dict[str, Any]) -> None:
        self._plan = plan
        self._port: int = target["port"]
        self.deltas: int = plan["deltas"]
        self._request = request_bytes(target, plan)
        self.ages_ns: list[int] = []
        self.firsts_ns: list[int] = []
        self.longest_gap_ns = 0
        self._complete = 0
        self._errors: Counter[str] = Counter()

    async def run(self) -> dict[str, Any]:
        """Follow the plan to its end; return the result, times in milliseconds."""
        self._began_s = time.monotonic()
        if "streams" in self._plan:
            clients = [self._stream(number) for number in range(self._plan["streams"])]
        else:
            clients = [self._worker(number) for number in range(self._plan["workers"])]
        await asyncio.gather(*clients)
        return {
            "deltas": len(self.ages_ns),
            "complete": self._complete,
            "errors": self._errors,
            "seconds": time.monotonic() - self._began_s,
            "longest_gap_ms": self.longest_gap_ns / 1e6,
            "age_ms": _percentiles(self.ages_ns),
            "first_ms": _percentiles(self.firsts_ns),
        }

    async def _stream(self, number: int) -> None:
        await asyncio.sleep(number * self._plan["ramp_s"] / self._plan["streams"])
        try:
            async with asyncio.timeout(
                self._plan["deltas"] * self._plan["interval_ms"] / 1000 + _MAX_DELAY_S
            ):
                connection = await self._connect()
                try:
                    await self._ask(connection)
                finally:
                    connection.transport.close()
        except (OSError, TimeoutError) as error:
            self._errors[str(error) or "too late"] += 1

    async def _worker(self, number: int) -> None:
        connection: Connection | None = None
        every_s = self._plan.get("every_ms", 0) / 1000
        turn_s = self._began_s + every_s * number / self._plan["workers"]
        while time.monotonic() < self._began_s + self._plan["for_s"]:
            if every_s:
                # One that is late leaves turns out instead of catching up.
                await asyncio.sleep((turn_s - time.monotonic()) % every_s)
            try:
                async with asyncio.timeout(_MAX_DELAY_S):
                    if connection is None or connection.closed:
                        connection = await self._connect()
                    await self._ask(connection)
            except (OSError, TimeoutError) as error:
                self._errors[str(error) or "too late"] += 1
                return
        if connection is not None:
            connection.transport.close()

    async def _ask(self, connection: Connection) -> None:
        error = await connection.ask(self._request, self)
        if error is None:
            self._complete += 1
        else:
            self._errors[error] += 1

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(Connection, _HOST, self._port))[1]


def _percentiles(values_ns: list[int]) -> dict[str, float]:
    values_ns = sorted(values_ns) or [0]
    return {f"p{q}": values_ns[(len(values_ns) - 1) * q // 100] / 1e6 for q in (50, 99)}


def request_bytes(target: dict[str, Any], plan: dict[str, Any]) -> bytes:
    """Return the request that orders the plan's deltas from the upstream behind this target."""
    order = f"bench:{plan['deltas']},{plan['interval_ms']:g},{plan.get('wait_ms', 0)}"
    body = json.dumps({**target["body"], "messages": [{"role": "user", "content": order}]}).encode()
    headers = {
        "Host": f"{_HOST}:{target['port']}",
        "Content-Type": "application/json",
        "Accept": "*/*",
        **target["headers"],
        "Content-Length": str(len(body)),
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {target['path']} HTTP/1.1\r\n{head}\r\n".encode() + body


async def _main() -> None:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        plan = json.loads(line)
        print(json.dumps(await Group(plan["group"], plan["target"]).run()), flush=True)


if __name__ == "__main__":
    reserve_descriptors()
    gc.disable()
    uvloop.run(_main())
