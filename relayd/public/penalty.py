"""Makes addresses that keep showing wrong keys wait for their refusals, longer and longer.

A key is always looked at, whatever its address did before: behind one address may be many people, and
one of them must not be able to lock out the others. A valid key is never delayed. What grows is the
time that a wrong one costs its sender; it costs the relay a socket that waits.
"""

from __future__ import annotations

import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager

FREE_FAILURES = 3
"""Failures that cost nothing: typing errors, a key that was just rotated."""
FIRST_HOLD_S = 0.1
MAX_HOLD_S = 5.0
FORGIVEN_EVERY_S = 30.0
"""One failure is forgotten after each of these."""
MAX_SCORE = 30.0
"""So that all is forgotten after 15 minutes, however many there were."""
MAX_NETWORKS = 10_000
MAX_HELD_PER_NETWORK = 64
MAX_HELD = 512


class Penalties:
    """Remembers failures of up to 10,000 networks; the one that failed longest ago is forgotten first.

    Args:
        clock: monotonic seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # A network's score, and when it was that.
        self._scores: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._held: Counter[str] = Counter()
        self._held_in_all = 0

    def __len__(self) -> int:
        """How many networks are remembered."""
        return len(self._scores)

    @property
    def held_now(self) -> int:
        """How many refusals are being held."""
        return self._held_in_all

    def failed(self, network: str) -> float:
        """Count one failure of this network; the seconds that its refusal is to be held."""
        now_s = self._clock()
        score, at_s = self._scores.pop(network, (0.0, now_s))
        score = min(MAX_SCORE, max(0.0, score - (now_s - at_s) / FORGIVEN_EVERY_S) + 1)
        self._scores[network] = (score, now_s)
        if len(self._scores) > MAX_NETWORKS:
            self._scores.popitem(last=False)
        if score <= FREE_FAILURES:
            return 0.0
        return float(min(MAX_HOLD_S, FIRST_HOLD_S * 2 ** (score - FREE_FAILURES - 1)))

    @contextmanager
    def held(self, network: str) -> Iterator[bool]:
        """Count a refusal that is being held; False where too many are, and this one must not be."""
        if self._held[network] >= MAX_HELD_PER_NETWORK or self._held_in_all >= MAX_HELD:
            yield False
            return
        self._held[network] += 1
        self._held_in_all += 1
        try:
            yield True
        finally:
            self._held_in_all -= 1
            self._held[network] -= 1
            if not self._held[network]:
                del self._held[network]
