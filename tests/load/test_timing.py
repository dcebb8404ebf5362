"""Whether the time of a refusal tells one kind of wrong key from another.

A paired test that needs no shape of the spread: every round tries each kind once, in random order, so that
other work on the machine falls on all kinds alike. Two kinds are compared by how often one took
longer (a sign test; Conover, Practical Nonparametric Statistics, 3.4).
"""

from __future__ import annotations

import asyncio
import itertools
import math
import random
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from relayd.state.keys import ALPHABET, CHECKSUM_CHARS, SECRET_CHARS, checksum, new_key
from tests.load.harness import loaded_daemon
from tests.wire import HOST, post

pytestmark = pytest.mark.usefixtures("only_large")

_ROUNDS = 50_000
_KEYS_PER_KIND = 1000
_MAX_STANDARD_ERRORS = 4.0
"""More is no chance: 1 of 16,000 for one pair, 1 of 1,000 for all pairs of a run."""


def _unknown() -> list[str]:
    return [new_key()[1] for _ in range(_KEYS_PER_KIND)]


def _near_miss(live: str, number: int) -> str:
    """Return a live key with one character of its secret changed, and the checksum that belongs to that."""
    start = live[:-CHECKSUM_CHARS]
    at = len(start) - 1 - number % SECRET_CHARS
    others = ALPHABET.replace(start[at], "")
    start = start[:at] + others[number // SECRET_CHARS % len(others)] + start[at + 1 :]
    return start + checksum(start.encode())


def _refused_ns(port: int, key: str) -> int:
    with socket.create_connection((HOST, port), timeout=30) as client:
        began_ns = time.perf_counter_ns()
        client.sendall(post(key, b"", {"Connection": "close"}))
        answer = bytearray()
        while piece := client.recv(4096):
            answer += piece
        took_ns = time.perf_counter_ns() - began_ns
    assert b" 401 " in answer
    return took_ns


def _standard_errors(first: Sequence[int], second: Sequence[int]) -> float:
    """Return how far the share of rounds in which the first took longer is from one half."""
    longer = sum(a > b for a, b in zip(first, second, strict=True))
    decided = sum(a != b for a, b in zip(first, second, strict=True))
    return (2 * longer - decided) / math.sqrt(decided)


def _measured(port: int, kinds: Mapping[str, Sequence[str]]) -> dict[str, list[int]]:
    times: dict[str, list[int]] = {kind: [] for kind in kinds}
    order, shuffle = list(kinds), random.Random(4711).shuffle  # noqa: S311 - an order, not a secret
    for number in range(_ROUNDS):
        shuffle(order)
        for kind in order:
            times[kind].append(_refused_ns(port, kinds[kind][number % _KEYS_PER_KIND]))
    return times


@pytest.mark.timeout(seconds=1800)
async def test_the_time_of_a_refusal_tells_nothing(tmp_path: Path) -> None:
    """Wrong prefix, wrong checksum, unknown id, and one character away from a live key take equally long."""
    with loaded_daemon(tmp_path, {"log.level": "error"}) as daemon:
        made = await daemon.admin.add_key("near", generation=1, idempotency_key="near")
        assert made.secret is not None
        kinds = {
            "wrong prefix": ["x" + key[1:] for key in _unknown()],
            "wrong checksum": [key[:-1] + "~" for key in _unknown()],
            "unknown id": _unknown(),
            "near miss": [_near_miss(made.secret, number) for number in range(_KEYS_PER_KIND)],
        }
        times = await asyncio.to_thread(_measured, daemon.port, kinds)
    told_apart = {
        pair: errors
        for pair in itertools.combinations(kinds, 2)
        if abs(errors := _standard_errors(times[pair[0]], times[pair[1]])) > _MAX_STANDARD_ERRORS
    }
    assert told_apart == {}
