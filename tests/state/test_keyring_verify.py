"""What a refusal of the key ring gives away: nothing."""

from __future__ import annotations

import hmac
import statistics
import time
from pathlib import Path

import pytest

from relayd.state.keys import new_key
from tests.state.room import opened
from tests.state.test_keyring import key_of, make_client


async def test_every_live_digest_is_compared_for_any_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right, wrong, mistyped or foreign: the same number of constant-time comparisons, without early exit."""
    with opened(tmp_path / "state") as state:
        changes = [await make_client(state.ring, f"client-{n}") for n in range(5)]
        compared: list[tuple[int, int]] = []

        def counting(left: bytes, right: bytes) -> bool:
            compared.append((len(left), len(right)))
            return real(left, right)

        real = hmac.compare_digest
        monkeypatch.setattr(hmac, "compare_digest", counting)
        good = key_of(changes[0])
        for presented in (good, good[:-1] + b"!", good + b"x", new_key()[1].encode(), b"", b"\xff\x00" * 600):
            compared.clear()
            assert (state.ring.verify(presented) is not None) is (presented == good)
            assert compared == [(32, 32)] * 5


async def test_the_time_of_a_refusal_tells_nothing(tmp_path: Path) -> None:
    """Wrong prefix, wrong checksum, unknown id and near miss take the same time, within the noise."""
    with opened(tmp_path / "state") as state:
        changes = [await make_client(state.ring, f"client-{n}") for n in range(20)]
        good = key_of(changes[7])
        kinds = {
            "prefix": b"xxx_" + good[4:],
            "checksum": good[:-1] + (b"a" if good[-1:] != b"a" else b"b"),
            "unknown": new_key()[1].encode(),
            "near": good[:20] + (b"a" if good[20:21] != b"a" else b"b") + good[21:],
        }
        times: dict[str, list[int]] = {kind: [] for kind in kinds}
        for _ in range(400):
            for kind, presented in kinds.items():
                begin = time.perf_counter_ns()
                state.ring.verify(presented)
                times[kind].append(time.perf_counter_ns() - begin)
        # The fastest tenth: what other work on the machine disturbs least.
        typical = {kind: statistics.median(sorted(taken)[:40]) for kind, taken in times.items()}
        assert max(typical.values()) < 1.5 * min(typical.values()), typical
