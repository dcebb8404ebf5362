"""What attackers do to a daemon, in any size, and what it costs the daemon and its ordinary clients."""

from __future__ import annotations

import asyncio
import os
import select
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count as counting
from pathlib import Path
from typing import Any, Self

from tests.e2e.daemon import KEY, PROVIDER_KEY, Daemon
from tests.wire import DONE, Reply, Wire, body, post

ORDINARY = "demo:text=words,deltas=20,interval_ms=20,first_ms=0"
PATIENCE_S = 120.0
_TURN_S = 0.05
_TRICKLE_TURNS = 20
_addresses = counting(1)
_network = os.environ.get("RELAYD_SIEGE_NETWORK", "64")
"""An attacker's process comes from another one than its parent."""


@dataclass(frozen=True, slots=True)
class Long:
    """An answer with more in it than the kernel keeps for a client with a small receive buffer."""

    delta_bytes: int = 200
    deltas: int = 1500

    @property
    def model(self) -> str:
        """Asks the provider for it."""
        return f"demo:text=x{self.delta_bytes},deltas={self.deltas},interval_ms=0,first_ms=0"

    @property
    def text(self) -> str:
        """All of it."""
        return "x" * self.delta_bytes * self.deltas


LONG = Long()


@contextmanager
def provider() -> Iterator[str]:
    """A demo upstream as a process of its own, so that only the daemon is measured; gives its base URL."""
    command = [sys.executable, "-m", "tests.support.upstream", PROVIDER_KEY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().decode().strip()
        finally:
            process.kill()


def besieged(
    home: Path, base_url: str, settings: Mapping[str, Any] | None = None, env: Mapping[str, str] | None = None
) -> Daemon:
    """A daemon in front of `provider`, with room for many clients of one address."""
    room = {"upstream.base_url": base_url, "server.max_streams": 3000, "server.max_streams_per_address": 3000}
    return Daemon(home, settings={**room, "log.level": "error", **(settings or {})}, env=env)


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process holds and has used."""

    rss_kib: int
    descriptors: int
    cpu_s: float

    @classmethod
    def of(cls, pid: int) -> Usage:
        """Read it from proc(5)."""
        status = Path(f"/proc/{pid}/status").read_text()
        rss = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        times = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        cpu_s = (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")
        return cls(int(rss.split()[1]), len(list(Path(f"/proc/{pid}/fd").iterdir())), cpu_s)


@dataclass(slots=True)
class Ordinary:
    """What clients saw that did nothing wrong."""

    first_ms: list[float] = field(default_factory=list)
    wrong: int = 0
    """Answers that were not exactly what the provider sent."""

    def percentile(self, percent: int) -> float:
        """The nearest rank of the time to the first delta."""
        ordered = sorted(self.first_ms)
        return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def fresh_address() -> str:
    """An address of this machine that no other client of this process came from, and no trusted proxy."""
    number = next(_addresses)
    return f"127.{_network}.{number >> 8 & 255}.{number & 255}"


async def ask_one(port: int, model: str, ip: str, seen: Ordinary | None = None, words: int = 20) -> Reply:
    """One ordinary request from an address, on a connection of its own."""
    began = time.monotonic()
    async with asyncio.timeout(PATIENCE_S), await Wire.open(port, source=ip) as wire:
        wire.send(post(KEY, body(model)))
        reply = await wire.head()
        async for _ in wire.pieces(reply):
            pass
    if seen is not None:
        seen.first_ms.append((reply.pieces[0][0] - began) * 1000)
        whole = reply.lines[-1] == DONE and reply.error is None
        seen.wrong += not (whole and sum(1 for line in reply.lines if line["content"]) == words + 1)
    return reply


async def ordinary(port: int, clients: int, rounds: int) -> Ordinary:
    """So many clients at the same time, each of which asks again and again."""
    seen = Ordinary()

    async def client() -> None:
        ip = fresh_address()
        for _ in range(rounds):
            await ask_one(port, ORDINARY, ip, seen)

    await asyncio.gather(*(client() for _ in range(clients)))
    return seen


async def ordinary_during(port: int, clients: int, attack: asyncio.Future[Any]) -> Ordinary:
    """As `ordinary`, for as long as an attack lasts."""
    seen = Ordinary()

    async def client() -> None:
        ip = fresh_address()
        while not attack.done():
            await ask_one(port, ORDINARY, ip, seen)

    await asyncio.gather(*(client() for _ in range(clients)))
    return seen


async def stuck_readers(stack: AsyncExitStack, port: int, number: int, answer: Long = LONG) -> list[Wire]:
    """Clients that ask for a long answer and do not read."""
    request = post(KEY, body(answer.model), {"X-Forwarded-For": "198.19.0.1"})
    return await unread(stack, port, [request] * number)


async def unread(stack: AsyncExitStack, port: int, requests: Iterable[bytes]) -> list[Wire]:
    """Connections that ask and do not read; little fits into their receive buffers."""
    wires = []
    for request in requests:
        wire = await stack.enter_async_context(await Wire.open(port, receive_buffer_bytes=4096))
        wire.pause()
        wire.send(request)
        wires.append(wire)
    return wires


async def resumed(wire: Wire, answer: Long = LONG) -> str:
    """Read on: `exact`, `typed` (an error line and the done line), `cut`, or what was wrong."""
    wire.resume()
    async with asyncio.timeout(PATIENCE_S):
        try:
            reply = await wire.head()
            async for _ in wire.pieces(reply):
                pass
        except (EOFError, ConnectionError):
            return "cut"
    if reply.cut:
        return "cut"
    if reply.lines[-1] != DONE:
        return "no done line"
    if reply.error is not None:
        return "typed"
    return "exact" if reply.text == answer.text else "wrong text"


async def gone_after_s(wires: list[Wire], trickle: bytes, limit_s: float) -> float:
    """Feed connections a byte now and then; the seconds until the last one was cut."""
    began = time.monotonic()
    poll, left = select.poll(), {wire.socket.fileno(): wire for wire in wires}
    for number in left:
        poll.register(number, select.POLLRDHUP)
    for turn in counting():
        for number, _ in poll.poll(0):
            poll.unregister(number)
            del left[number]
        if not left:
            return time.monotonic() - began
        assert time.monotonic() - began < limit_s, f"{len(left)} of {len(wires)} are still there"
        # A few at a time: it is the daemon that is to be kept busy.
        for wire in list(left.values())[turn % _TRICKLE_TURNS :: _TRICKLE_TURNS]:
            wire.send(trickle)
        await asyncio.sleep(_TURN_S)
    raise AssertionError


async def slow(stack: AsyncExitStack, port: int, number: int, start: bytes) -> list[Wire]:
    """Connections that begin a request and then take their time, each from an address of its own."""
    wires = []
    for _ in range(number):
        wire = await stack.enter_async_context(await Wire.open(port, source=fresh_address()))
        wire.send(start)
        wires.append(wire)
    return wires


SLOW_HEAD = f"POST /chat HTTP/1.1\r\nHost: relay\r\nAuthorization: {KEY}\r\nX-".encode()
SLOW_BODY = post(KEY, b"{", length=1000)
SLOW_BODY_WITHOUT_KEY = post("a-key-that-is-wrong", b"{", length=1000)


@dataclass(frozen=True, slots=True)
class WrongKeys:
    """How many connections guess at a time, how long each waits for its answer, and all in all."""

    parallel: int
    patience_s: float
    limit_s: float


async def wrong_keys(port: int, number: int, ip: str, attack: WrongKeys) -> tuple[int, int]:
    """So many requests with wrong keys from one address, as far as there is time: tried, and given a 401."""
    left, tried, refused = iter(range(number)), 0, 0

    async def attacker() -> None:
        nonlocal tried, refused
        for n in left:
            with suppress(OSError, EOFError, TimeoutError):
                async with await Wire.open(port, source=ip) as wire:
                    wire.send(post(f"wrong-key-number-{n:08}", b""))
                    tried += 1
                    answer = await asyncio.wait_for(wire.ended(), attack.patience_s)
                    refused += b" 401 " in answer

    with suppress(TimeoutError):
        async with asyncio.timeout(attack.limit_s):
            await asyncio.gather(*(attacker() for _ in range(attack.parallel)))
    return tried, refused


async def slow_until_gone(port: int, number: int, start: bytes, trickle: bytes, limit_s: float) -> float:
    """Begin so many slow requests; the seconds from the last one's beginning until all were cut."""
    async with AsyncExitStack() as stack:
        return await gone_after_s(await slow(stack, port, number, start), trickle, limit_s)


class Elsewhere:
    """A process of its own for an attacker, so that the ordinary clients are measured alone.

    As a context manager it is started and ended; entering waits until it has loaded everything. It attacks
    once.
    """

    async def __aenter__(self) -> Self:
        code = (
            "import asyncio; from tests.support.siege import *; print('ready', flush=True);"
            " print(asyncio.run(eval(input())))"
        )
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", code),
            env={**os.environ, "RELAYD_SIEGE_NETWORK": "65"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        assert await self._process.stdout.readline() == b"ready\n"
        return self

    async def __aexit__(self, *_exception: object) -> None:
        with suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    async def slow(self, port: int, number: int, start: bytes, trickle: bytes, limit_s: float) -> float:
        """As `slow_until_gone`."""
        return float(
            await self._call(f"slow_until_gone({port}, {number}, {start!r}, {trickle!r}, {limit_s})")
        )

    async def wrong_keys(self, port: int, number: int, ip: str, attack: WrongKeys) -> tuple[int, int]:
        """As the function `wrong_keys`."""
        said = await self._call(f"wrong_keys({port}, {number}, {ip!r}, {attack!r})")
        tried, refused = map(int, said.strip("()").split(","))
        return tried, refused

    async def _call(self, call: str) -> str:
        said, _ = await self._process.communicate(call.encode() + b"\n")
        assert self._process.returncode == 0
        return said.decode().strip()
