"""The load generator: opens streams as a plan says, and reads the age of each delta as it arrives.

Run as a process with `python -m benchmark.load`. Each line on stdin is a plan in JSON: a target (`port`, and
the parts of a request) and one group of clients. Each line on stdout is its result. A group is either

    {"streams": 150, "ramp_s": 1, "deltas": 100, "interval_ms": 50}                  each stream once
    {"workers": 32, "for_s": 4, "deltas": 1, "interval_ms": 0, "keep_alive": true}   as often as possible
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

import uvloop

from benchmark.programs import reserve_descriptors
from benchmark.upstream import STAMP_DIGITS

_HOST = "127.0.0.1"
_MAX_DELAY_S = 120.0
"""A stream that takes longer than its deltas and this has failed."""
_OK = 200
_STAMP = re.compile(rb'"content": ?"(\d{%d})"' % STAMP_DIGITS)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)


class Reply:
    """Parse one streamed reply (SSE or NDJSON; chunked, with a length, or ended by the close)."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.over = False
        """True once the last byte of the body was read."""
        self.done = False
        """True once `[DONE]` was seen."""
        self.error: str | None = None
        self._unparsed = b""
        self._chunked = False
        self._bytes_left: int | None = None
        self._incomplete_line = b""

    def feed(self, data: bytes) -> list[bytes]:
        """Parse bytes; return the times of sending of the deltas in them."""
        data = self._unparsed + data if self._unparsed else data
        self._unparsed = b""
        if self.status is None:
            data = self._without_head(data)
        if not data:
            return []
        return self._stamps(self._dechunked(data) if self._chunked else self._sized(data))

    def close(self) -> None:
        """Note that the connection ended, which ends a body without length and chunks."""
        self.over = self.over or (self.status is not None and not self._chunked and self._bytes_left is None)

    def _without_head(self, data: bytes) -> bytes:
        end = data.find(b"\r\n\r\n")
        if end < 0:
            self._unparsed = data
            return b""
        head = data[: end + 2]
        self.status = int(head[9:12])
        self._chunked = _CHUNKED.search(head) is not None
        length = _LENGTH.search(head)
        if length and not self._chunked:
            self._bytes_left = int(length[1])
        return data[end + 4 :]

    def _sized(self, data: bytes) -> bytes:
        if self._bytes_left is not None:
            self._bytes_left -= len(data)
            self.over = self._bytes_left <= 0
        return data

    def _dechunked(self, data: bytes) -> bytes:
        parts, at = [], 0
        while (line_end := data.find(b"\r\n", at)) >= 0:
            size = int(data[at:line_end], 16)
            after = line_end + 4 + size
            if len(data) < after:
                break
            parts.append(data[line_end + 2 : after - 2])
            at = after
            if not size:
                self.over = True
                break
        self._unparsed = data[at:]
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _stamps(self, body: bytes) -> list[bytes]:
        text = self._incomplete_line + body if self._incomplete_line else body
        if self.status != _OK:
            self.error = f"status {self.status}: {text[:200].decode(errors='replace')}"
            self._incomplete_line = text[:200]
            return []
        end = text.rfind(b"\n") + 1
        self._incomplete_line = text[end:]
        stamps = _STAMP.findall(text, 0, end)
        if text.find(b"[DONE]", 0, end) >= 0:
            self.done = True
        elif not stamps and (text.find(b'"error":true', 0, end) >= 0 or text.find(b'{"error"', 0, end) >= 0):
            self.error = text[:200].decode(errors="replace")
        return stamps


class Connection(asyncio.Protocol):
    """One connection to the relay; `ask` sends a request and waits for the whole reply."""

    def __init__(self) -> None:
        self._over: asyncio.Future[None] | None = None
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self.transport = cast("asyncio.Transport", transport)

    async def ask(self, request: bytes, group: Group) -> None:
        """Run one stream and measure it into the group."""
        self._group = group
        self._reply = Reply()
        self._over = asyncio.get_running_loop().create_future()
        self._deltas = 0
        self._last_ns = self._began_ns = time.monotonic_ns()
        self.transport.write(request)
        await self._over

    def data_received(self, data: bytes) -> None:
        """Measure the deltas in these bytes."""
        now_ns = time.monotonic_ns()
        if self._over is None:
            return
        stamps = self._reply.feed(data)
        if stamps:
            group = self._group
            if not self._deltas:
                group.firsts_ns.append(now_ns - self._began_ns)
            elif now_ns - self._last_ns > group.longest_gap_ns:
                group.longest_gap_ns = now_ns - self._last_ns
            self._last_ns = now_ns
            self._deltas += len(stamps)
            group.ages_ns.extend([now_ns - int(stamp) for stamp in stamps])
        if self._reply.over:
            self._end()

    def connection_lost(self, error: Exception | None) -> None:
        """End the stream; it has failed unless the close ends its body."""
        self.closed = True
        if self._over is not None:
            self._reply.close()
            if not self._reply.over:
                self._reply.error = self._reply.error or f"connection lost: {error or 'closed early'}"
            self._end()

    def _end(self) -> None:
        over, self._over = self._over, None
        self._group.finished(self._deltas, self._reply)
        if over is not None and not over.done():
            over.set_result(None)


class Group:
    """Clients of one kind, and what they measured."""

    def __init__(self, plan: dict[str, Any], target: dict[str, Any]) -> None:
        self._plan = plan
        self._port: int = target["port"]
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
            clients = [self._worker() for _ in range(self._plan["workers"])]
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
                    await connection.ask(self._request, self)
                finally:
                    connection.transport.close()
        except (OSError, TimeoutError) as error:
            self._errors[str(error) or "too late"] += 1

    async def _worker(self) -> None:
        connection: Connection | None = None
        while time.monotonic() < self._began_s + self._plan["for_s"]:
            try:
                async with asyncio.timeout(_MAX_DELAY_S):
                    if connection is None or connection.closed:
                        connection = await self._connect()
                    await connection.ask(self._request, self)
            except (OSError, TimeoutError) as error:
                self._errors[str(error) or "too late"] += 1
                return
            if not self._plan["keep_alive"]:
                connection.transport.close()
                connection = None
        if connection is not None:
            connection.transport.close()

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(Connection, _HOST, self._port))[1]

    def finished(self, deltas: int, reply: Reply) -> None:
        """Count the end of one reply."""
        if reply.error is not None:
            self._errors[reply.error] += 1
        elif deltas != self._plan["deltas"] or not reply.done:
            ending = "with" if reply.done else "without"
            self._errors[f"{deltas} of {self._plan['deltas']} deltas, {ending} [DONE]"] += 1
        else:
            self._complete += 1


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
    if not plan.get("keep_alive", True):
        headers["Connection"] = "close"
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
