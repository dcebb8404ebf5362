"""Whether measured times tell kinds of request apart: a paired test that needs no shape of their spread.

Every round tries each kind once, in an order of its own, so that what else the machine does falls on all
kinds alike. Two kinds are compared round by round: how often the one took longer (a sign test), and the
median of the differences with its interval, which is where the sign test turns (Conover, Practical
Nonparametric Statistics, 3.2 and 3.4).
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

Z = 4.0
"""How many standard errors are chance still: 1 of 16,000 for one pair, 1 of 1,000 for all of a run."""


@dataclass(frozen=True, slots=True)
class Pair:
    """Two kinds, compared."""

    kinds: tuple[str, str]
    longer_share: float
    """Of the rounds in which they differed, those where the first took longer; a half where nothing tells."""
    z: float
    """The same, in standard errors from one half."""
    median_us: float
    low_us: float
    high_us: float

    @property
    def told_apart(self) -> bool:
        """Whether this is more than chance."""
        return abs(self.z) > Z

    def __str__(self) -> str:
        return (
            f"{self.kinds[0]} against {self.kinds[1]}: longer in {self.longer_share:.1%}, by"
            f" {self.median_us:+.2f} µs [{self.low_us:+.2f}, {self.high_us:+.2f}]"
        )


def tried(
    kinds: Mapping[str, Sequence[bytes]], rounds: int, once_ns: Callable[[bytes], int]
) -> dict[str, list[int]]:
    """The times of each kind, round by round, each round with the next of its samples."""
    times: dict[str, list[int]] = {kind: [] for kind in kinds}
    order = list(kinds)
    shuffle = random.Random(4711).shuffle  # noqa: S311 - an order, not a secret
    for number in range(rounds):
        shuffle(order)
        for kind in order:
            times[kind].append(once_ns(kinds[kind][number % len(kinds[kind])]))
    return times


def pairs(times: Mapping[str, Sequence[int]]) -> Iterator[Pair]:
    """Every two kinds."""
    for first, second in itertools.combinations(times, 2):
        yield _pair((first, second), [a - b for a, b in zip(times[first], times[second], strict=True)])


def _pair(kinds: tuple[str, str], differences: list[int]) -> Pair:
    longer = sum(difference > 0 for difference in differences)
    decided = sum(difference != 0 for difference in differences)
    ordered, rounds = sorted(differences), len(differences)
    middle, reach = rounds // 2, math.ceil(Z * math.sqrt(rounds) / 2)
    return Pair(
        kinds,
        longer / decided if decided else 0.5,
        (2 * longer - decided) / math.sqrt(decided) if decided else 0.0,
        ordered[middle] / 1000,
        ordered[max(0, middle - reach)] / 1000,
        ordered[min(rounds - 1, middle + reach)] / 1000,
    )
