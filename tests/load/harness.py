"""A daemon and its provider as processes, what they use, and clients of every kind."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.daemon import KEY, PROVIDER_KEY, Daemon
from tests.support.processes import cpu_s
from tests.wire import DONE, Reply, Wire, body, post

_WORDS = 20
_ORDINARY = f"demo:text=words,deltas={_WORDS},interval_ms=20"
_addresses = count(1)


@contextmanager
def provider() -> Iterator[str]:
    """Run a fault upstream as a process of its own; yield its base URL."""
    command = [sys.executable, "-m", "tests.support.upstream", PROVIDER_KEY]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().decode().strip()
        finally:
            process.kill()


@contextmanager
def loaded_daemon(
    home: Path, settings: Mapping[str, Any] | None = None, env: Mapping[str, str] | None = None
) -> Iterator[Daemon]:
    """Run a daemon that has room for many clients of one address, and its provider."""
    wide = {"server.max_streams": 3000, "server.max_streams_per_address": 3000, "log.level": "warning"}
    with provider() as base_url:
        chosen = {"upstream.base_url": base_url, **wide, **(settings or {})}
        with Daemon(home, settings=chosen, env=env) as daemon:
            yield daemon


@contextmanager
def small_disk(place: Path, mib: int) -> Iterator[Path]:
    """Mount a tmpfs of this size; skip the test if this user may not."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={mib}m,mode=0700", "relayd-test", str(place)]
    mounted = subprocess.run(mount, capture_output=True, check=False, timeout=30)
    if mounted.returncode:
        pytest.skip(
            f"cannot mount a tmpfs ({mounted.stderr.decode().strip()}); as root, or in"
            " `unshare --map-root-user --mount`"
        )
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True, timeout=30)


def fill(ballast: Path) -> None:
    """Take every free block of the file system into this file."""
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 12, 1):
            while True:
                try:
                    file.write(b"x" * size)
                except OSError:
                    break
    assert os.statvfs(ballast).f_bavail == 0


@dataclass(frozen=True, slots=True)
class Usage:
    """What a process holds and has used."""

    rss_kib: int
    descriptors: int
    cpu_s: float

    @classmethod
    def of(cls, daemon: Daemon) -> Usage:
        """Read it from proc(5)."""
        proc = Path(f"/proc/{daemon.pid}")
        lines = (proc / "status").read_text().splitlines()
        rss = next(line for line in lines if line.startswith("VmRSS"))
        return cls(int(rss.split()[1]), len(list((proc / "fd").iterdir())), cpu_s(daemon.pid))


def fresh_address() -> str:
    """Return an address of this machine that no other client or daemon of this process has, nor a proxy."""
    number = next(_addresses)
    return f"127.64.{number >> 8 & 255}.{number & 255}"


async def ask_as(ip: str, port: int, model: str = _ORDINARY) -> Reply:
    """Return the whole reply to one chat that comes from this address."""
    async with await Wire.open(port, source=ip) as wire:
        wire.send(post(KEY, body(model)))
        return await wire.reply()


@dataclass(slots=True)
class Ordinary:
    """What clients saw that did nothing wrong."""

    first_ms: list[float] = field(default_factory=list)
    """From the connection's opening to the first piece of each answer."""
    wrong: int = 0
    """Answers that were not exactly what the provider sent."""

    def __str__(self) -> str:
        p99_ms = sorted(self.first_ms)[len(self.first_ms) * 99 // 100]
        return f"first piece p99 {p99_ms:.0f} ms of {len(self.first_ms)}, {self.wrong} not whole"


async def ordinary(port: int, clients: int, rounds: int) -> Ordinary:
    """Let clients ask again and again."""
    seen = Ordinary()

    async def client() -> None:
        ip = fresh_address()
        for _ in range(rounds):
            began_s = time.monotonic()
            reply = await ask_as(ip, port)
            seen.first_ms.append((reply.pieces[0][0] - began_s) * 1000)
            whole = reply.error is None and reply.lines[-1] == DONE and len(reply.lines) == _WORDS + 1
            seen.wrong += not whole

    await asyncio.gather(*(client() for _ in range(clients)))
    return seen


def report(figures: str) -> None:
    """Print a figure for docs/reliability.md; `scripts/soak` shows it."""
    sys.stdout.write(f"{figures}\n")


async def unread(stack: AsyncExitStack, port: int, requests: Iterable[bytes]) -> list[Wire]:
    """Open connections that ask and do not read; little fits into their receive buffers."""
    wires = []
    for request in requests:
        wire = await stack.enter_async_context(await Wire.open(port, receive_buffer_bytes=4096))
        wire.pause()
        wire.send(request)
        wires.append(wire)
    return wires


async def resumed(wire: Wire, text: str) -> str:
    """Read the rest: `exact` if all of this text came, `cut` if the connection ended, or what was wrong."""
    wire.resume()
    try:
        reply = await wire.reply()
    except (EOFError, ConnectionError):
        return "cut"
    if reply.cut:
        return "cut"
    return "exact" if (reply.text, reply.lines[-1]) == (text, DONE) else f"wrong: {reply.error}"
