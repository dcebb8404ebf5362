"""The load: opens streams as a plan says, and reads the age of each delta as it arrives.

Run as a process (`python -m benchmark.load`): each line on stdin is one plan in JSON, each line on stdout
its result. A plan names the target (host, port, and the request's bytes) and groups that run together:

    open loop     {"streams": 150, "ramp_s": 1, "deltas": 100}        each stream once
    closed loop   {"workers": 32, "for_s": 4, "deltas": 1, "keep_alive": true, "pause_s": 0}
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from typing import Any, cast

import uvloop

from benchmark.reply import Reply
from relayd.descriptors import MANY_DESCRIPTORS, reserve_descriptors

_LONGEST_S = 120.0
"""A stream that takes longer than all its deltas and this has failed."""


class Connection(asyncio.Protocol):
    """One connection to the relay; `ask` sends a request and waits for the whole reply."""

    def __init__(self) -> None:
        self._over: asyncio.Future[None] | None = None
        self.closed = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Asyncio: the connection is there."""
        self.transport = cast("asyncio.Transport", transport)

    async def ask(self, request: bytes, group: Group) -> None:
        """One stream, measured into the group."""
        self._group = group
        self._reply = Reply()
        self._over = asyncio.get_running_loop().create_future()
        self.deltas = 0
        self._last = self.began = time.monotonic_ns()
        self.transport.write(request)
        await self._over

    def data_received(self, data: bytes) -> None:
        """Asyncio: bytes have come."""
        now = time.monotonic_ns()
        if self._over is None:
            return
        reply = self._reply
        stamps = reply.feed(data)
        if stamps:
            group = self._group
            if not self.deltas:
                group.firsts.append(now - self.began)
            elif now - self._last > group.longest_gap:
                group.longest_gap = now - self._last
            self._last = now
            self.deltas += len(stamps)
            group.ages.extend([now - int(stamp) for stamp in stamps])
        if reply.over:
            self._end()

    def connection_lost(self, error: Exception | None) -> None:
        """Asyncio: it is gone."""
        self.closed = True
        if self._over is not None:
            self._reply.close()
            if not self._reply.over:
                self._reply.error = self._reply.error or f"connection lost: {error or 'closed early'}"
            self._end()

    def _end(self) -> None:
        over, self._over = self._over, None
        self._group.finished(self.deltas, self._reply)
        if over is not None and not over.done():
            over.set_result(None)


class Group:
    """Streams of one kind, and what was seen of them."""

    def __init__(self, plan: dict[str, Any], target: dict[str, Any]) -> None:
        self._plan = plan
        self._host, self._port = target["host"], target["port"]
        self._request = _request(target, plan)
        self.ages: list[int] = []
        self.firsts: list[int] = []
        self.longest_gap = 0
        self.complete = 0
        self.errors: dict[str, int] = {}
        self.began = self.ended = 0.0

    async def run(self) -> None:
        """Play the plan to its end."""
        self.began = time.monotonic()
        if "streams" in self._plan:
            jobs = [self._stream(n) for n in range(self._plan["streams"])]
        else:
            jobs = [self._worker() for _ in range(self._plan["workers"])]
        await asyncio.gather(*jobs)
        self.ended = time.monotonic()

    async def _stream(self, number: int) -> None:
        await asyncio.sleep(number * self._plan["ramp_s"] / self._plan["streams"])
        try:
            longest_s = self._plan["deltas"] * self._plan["interval_ms"] / 1000 + _LONGEST_S
            async with asyncio.timeout(longest_s):
                connection = await self._connect()
                try:
                    await connection.ask(self._request, self)
                finally:
                    connection.transport.close()
        except (OSError, TimeoutError) as error:
            self.failed(str(error) or "too late")

    async def _worker(self) -> None:
        until = self.began + self._plan["for_s"]
        connection: Connection | None = None
        while time.monotonic() < until:
            try:
                async with asyncio.timeout(_LONGEST_S):
                    if connection is None or connection.closed:
                        connection = await self._connect()
                    await connection.ask(self._request, self)
            except (OSError, TimeoutError) as error:
                self.failed(str(error) or "too late")
                return
            if not self._plan["keep_alive"]:
                connection.transport.close()
                connection = None
            if self._plan["pause_s"]:
                await asyncio.sleep(self._plan["pause_s"])
        if connection is not None:
            connection.transport.close()

    async def _connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, self._host, self._port)
        return connection

    def finished(self, deltas: int, reply: Reply) -> None:
        """Count one reply's end."""
        if reply.error is not None:
            self.failed(reply.error)
        elif deltas != self._plan["deltas"] or not reply.whole:
            self.failed(f"{deltas} of {self._plan['deltas']} deltas, {'' if reply.whole else 'not '}whole")
        else:
            self.complete += 1

    def failed(self, why: str) -> None:
        """Count one failure."""
        self.errors[why] = self.errors.get(why, 0) + 1

    def result(self) -> dict[str, Any]:
        """What was seen; times in milliseconds."""
        return {
            "deltas": len(self.ages),
            "complete": self.complete,
            "errors": self.errors,
            "seconds": self.ended - self.began,
            "longest_gap_ms": self.longest_gap / 1e6,
            "age_ms": _percentiles(self.ages),
            "first_ms": _percentiles(self.firsts),
            "very_first_ms": self.firsts[0] / 1e6 if self.firsts else None,
        }


def _percentiles(values: list[int]) -> dict[str, float] | None:
    if not values:
        return None
    values = sorted(values)
    last = len(values) - 1
    return {f"p{q}": values[min(last, len(values) * q // 100)] / 1e6 for q in (50, 90, 99)} | {
        "max": values[-1] / 1e6
    }


def _request(target: dict[str, Any], plan: dict[str, Any]) -> bytes:
    order = f"bench:{plan['deltas']},{plan['interval_ms']:g}"
    body = {**target["body"], "messages": [{"role": "user", "content": order}]}
    encoded = json.dumps(body, separators=(",", ":")).encode()
    headers = {
        "Host": f"{target['host']}:{target['port']}",
        "Content-Type": "application/json",
        "Accept": "*/*",
        **target["headers"],
        "Content-Length": str(len(encoded)),
    }
    if not plan.get("keep_alive", True):
        headers["Connection"] = "close"
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"POST {target['path']} HTTP/1.1\r\n{head}\r\n".encode() + encoded


async def _play(plan: dict[str, Any]) -> list[dict[str, Any]]:
    groups = [Group(group, plan["target"]) for group in plan["groups"]]
    await asyncio.gather(*(group.run() for group in groups))
    return [group.result() for group in groups]


async def _main() -> None:
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        print(json.dumps(await _play(json.loads(line))), flush=True)


if __name__ == "__main__":
    reserve_descriptors(MANY_DESCRIPTORS)
    gc.disable()
    uvloop.run(_main())
