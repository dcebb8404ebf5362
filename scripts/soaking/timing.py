"""Whether the time of a refusal tells one kind of wrong key from another."""

from __future__ import annotations

import asyncio
import socket
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from relayd.state.keys import ALPHABET, CHECKSUM_CHARS, SECRET_CHARS, checksum, new_key
from relayd.state.records import Peer
from soaking.row import Row, Seen
from soaking.separation import pairs, tried
from tests.state.room import opened
from tests.support.siege import besieged, provider
from tests.wire import HOST, post

_TRIES = 50_000
_LIVE_KEYS = 10
_KEYS_A_KIND = 1000
_TIMEOUT_S = 30.0
_OWN = ("unknown id", "another unknown id")
"""Twice the same kind: what the method finds between these is the method's own."""


def _kinds(live: str) -> dict[str, list[bytes]]:
    """Wrong keys, each kind wrong in a way of its own; many of each, for each key has a time of its own."""
    return {
        "wrong prefix": [b"x" + key[1:] for key in _unknown()],
        "wrong checksum": [key[:-1] + b"~" for key in _unknown()],
        _OWN[0]: _unknown(),
        "near miss": [_near(live, number) for number in range(_KEYS_A_KIND)],
        _OWN[1]: _unknown(),
    }


def _unknown() -> list[bytes]:
    return [new_key()[1].encode() for _ in range(_KEYS_A_KIND)]


def _near(live: str, number: int) -> bytes:
    """A live key with one character of its secret changed, and the checksum that belongs to that."""
    body = live[:-CHECKSUM_CHARS]
    at = len(body) - 1 - number % SECRET_CHARS
    others = ALPHABET.replace(body[at], "")
    body = body[:at] + others[number // SECRET_CHARS % len(others)] + body[at + 1 :]
    return (body + checksum(body.encode())).encode()


async def timing(home: Path, size: float) -> Seen:
    """50,000 tries each of four kinds of wrong key, over sockets: whether time tells them apart."""
    with provider() as base_url, besieged(home, base_url, {"log.level": "error"}) as daemon:
        made = await daemon.admin.add_key("near", generation=1, idempotency_key="near")
        assert made.secret is not None  # noqa: S101 - a new key's
        kinds = _kinds(made.secret)

        def once_ns(key: bytes) -> int:
            return _refused_ns(daemon.port, post(key, b""))

        return _seen(await asyncio.to_thread(tried, kinds, round(_TRIES * size), once_ns))


async def timing_inside(home: Path, size: float) -> Seen:
    """The same tries on the key ring itself, in this process: verification alone, of ten live keys."""
    with opened(home / "state") as state:
        peer = Peer(uid=0, pid=0, login="")
        live = ""
        for number in range(_LIVE_KEYS):
            change = await state.ring.add(
                f"c{number}", peer=peer, expected_generation=None, idempotency_key=None
            )
            live = change.secret or live
        ring = state.ring

        def once_ns(key: bytes) -> int:
            began = time.perf_counter_ns()
            found = ring.verify(key) or ring.former(key)
            took = time.perf_counter_ns() - began
            assert found is None  # noqa: S101 - else another thing is measured
            return took

        return _seen(await asyncio.to_thread(tried, _kinds(live), round(_TRIES * size), once_ns))


def _refused_ns(port: int, request: bytes) -> int:
    with socket.create_connection((HOST, port), timeout=_TIMEOUT_S) as client:
        began = time.perf_counter_ns()
        client.sendall(request)
        answer = bytearray()
        while piece := client.recv(4096):
            answer += piece
        took = time.perf_counter_ns() - began
    assert b" 401 " in answer  # noqa: S101 - else another thing is measured
    return took


def _seen(times: Mapping[str, Sequence[int]]) -> Seen:
    found = list(pairs(times))
    worst = max((pair for pair in found if pair.kinds != _OWN), key=lambda pair: abs(pair.z))
    own = next(pair for pair in found if pair.kinds == _OWN)
    medians = ", ".join(f"{kind} {statistics.median(some) / 1000:.2f}" for kind, some in times.items())
    return Seen(
        f"{len(times[_OWN[0]])} tries each; medians in µs: {medians};"
        f" most apart: {worst}; of one kind: {own}",
        held=not any(pair.told_apart for pair in found),
    )


ROWS: tuple[Row, ...] = (timing, timing_inside)
