"""Hostile clients: what they cost, and what ordinary clients notice."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

from soaking.row import Row, Seen
from tests.support.siege import (
    LONG,
    SLOW_BODY,
    SLOW_BODY_WITHOUT_KEY,
    SLOW_HEAD,
    Elsewhere,
    Long,
    Usage,
    WrongKeys,
    besieged,
    fresh_address,
    ordinary,
    ordinary_during,
    provider,
    resumed,
    stuck_readers,
)

_CLIENTS = 20
_STUCK_S = 60.0
_GUESSING = WrongKeys(parallel=50, patience_s=0.05, limit_s=60)
_MIB = 1024
_GONE_S = 15.0
_MAX_RECORDS = 1000


async def stuck(home: Path, size: float) -> Seen:
    """1,000 clients that never read, for a minute; 50 ordinary ones beside them."""
    return await _stuck(home, size, LONG)


async def stuck_large(home: Path, size: float) -> Seen:
    """The same with deltas of 5 KB, of which much more fits into every buffer on the way."""
    return await _stuck(home, size, Long(delta_bytes=5000, deltas=100))


async def _stuck(home: Path, size: float, answer: Long) -> Seen:
    number = round(1000 * size)
    with provider() as base_url, besieged(home, base_url, {"server.write_timeout_s": 300}) as daemon:
        await ordinary(daemon.port, 50, 2)
        before = Usage.of(daemon.pid)
        async with AsyncExitStack() as stack:
            wires = await stuck_readers(stack, daemon.port, number, answer)
            began, most_kib, seen = time.monotonic(), 0, []
            while time.monotonic() - began < _STUCK_S * min(1.0, size):
                seen.append(await ordinary(daemon.port, 50, 1))
                most_kib = max(most_kib, Usage.of(daemon.pid).rss_kib)
            streaming = (await daemon.admin.status()).streams.streaming
            ends = Counter(await asyncio.gather(*(resumed(wire, answer) for wire in wires)))
    grown = (most_kib - before.rss_kib) / _MIB
    wrong = sum(one.wrong for one in seen)
    asked = sum(len(one.first_ms) for one in seen)
    return Seen(
        f"{streaming} stuck; memory {before.rss_kib / _MIB:.0f} MiB, +{grown:.0f} MiB;"
        f" {asked} ordinary answers, {wrong} not whole; resumed: {dict(ends)}",
        held=grown <= 64 * max(size, 0.2) and not wrong and set(ends) <= {"exact", "typed"},
    )


async def slow_heads(home: Path, size: float) -> Seen:
    """1,000 connections that never finish their head."""
    return await _slow(home, round(1000 * size), SLOW_HEAD, b"x")


async def slow_bodies(home: Path, size: float) -> Seen:
    """1,000 connections with a valid key that never finish their body."""
    return await _slow(home, round(1000 * size), SLOW_BODY, b" ")


async def slow_refused(home: Path, size: float) -> Seen:
    """1,000 connections without a valid key that never finish their body."""
    return await _slow(home, round(1000 * size), SLOW_BODY_WITHOUT_KEY, b" ")


async def _slow(home: Path, number: int, start: bytes, trickle: bytes) -> Seen:
    with provider() as base_url, besieged(home, base_url) as daemon:
        await ordinary(daemon.port, _CLIENTS, 5)
        calm = await ordinary(daemon.port, _CLIENTS, 30)
        before = Usage.of(daemon.pid)
        async with Elsewhere() as attacker:
            attack = asyncio.create_task(
                attacker.slow(daemon.port, number, start, trickle, 60), name="slow clients"
            )
            seen = await ordinary_during(daemon.port, _CLIENTS, attack)
            gone_s = await attack
        most = Usage.of(daemon.pid)
    p99, was = seen.percentile(99), calm.percentile(99)
    return Seen(
        f"all {number} gone after {gone_s:.1f} s; ordinary first delta p99 {p99:.0f} ms of"
        f" {len(seen.first_ms)}, before {was:.0f} ms of {len(calm.first_ms)};"
        f" +{(most.rss_kib - before.rss_kib) / _MIB:.0f} MiB; {seen.wrong} answers not whole",
        held=gone_s <= _GONE_S and p99 <= 2 * was and not seen.wrong,
    )


async def keys(home: Path, size: float) -> Seen:
    """10,000 wrong keys from one address, 50 at a time, which do not wait for a refusal that is held back."""
    number = round(10_000 * size)
    with provider() as base_url, besieged(home, base_url, {"log.level": "warning"}) as daemon:
        await ordinary(daemon.port, _CLIENTS, 5)
        calm = await ordinary(daemon.port, _CLIENTS, 30)
        before = Usage.of(daemon.pid)
        async with Elsewhere() as attacker:
            began = time.monotonic()
            attack = asyncio.create_task(
                attacker.wrong_keys(daemon.port, number, fresh_address(), _GUESSING), name="wrong keys"
            )
            seen = await ordinary_during(daemon.port, _CLIENTS, attack)
            tried, refused = await attack
        took_s = time.monotonic() - began
        used = Usage.of(daemon.pid)
        looked_at = _denials(await daemon.admin.metrics())
        daemon.stop()
        records = daemon.records()
        lines = daemon.stderr.count("outcome=denied")
    p99, was = seen.percentile(99), calm.percentile(99)
    told = sum(record.outcome == "denied" for record in records)
    return Seen(
        f"{tried} of {number} tries in {took_s:.0f} s, {looked_at} keys looked at, {refused} waited for their"
        f" 401; first delta p99 elsewhere {p99:.0f} ms of {len(seen.first_ms)}, before {was:.0f} ms;"
        f" {told} records, {lines} log lines; {used.cpu_s - before.cpu_s:.1f} s of CPU,"
        f" +{(used.rss_kib - before.rss_kib) / _MIB:.1f} MiB",
        held=tried == number and p99 <= 2 * was and not seen.wrong and told < _MAX_RECORDS,
    )


def _denials(metrics: str) -> int:
    """How many requests were denied, by the daemon's own count."""
    found = re.search(r'^relayd_requests_total\{outcome="denied"\} ([0-9.]+)', metrics, re.MULTILINE)
    return 0 if found is None else round(float(found[1]))


ROWS: tuple[Row, ...] = (stuck, stuck_large, slow_heads, slow_bodies, slow_refused, keys)
