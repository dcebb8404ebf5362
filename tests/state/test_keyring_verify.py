"""What a refusal of the key ring gives away: nothing."""

from __future__ import annotations

import hmac
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
