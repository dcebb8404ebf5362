"""What is asked of every relay, and which figures each load gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Group = dict[str, Any]
HELD = (64, 256, 1024, 4096)
HELD_INTERVAL_MS = 500
HELD_DELTAS = 40
_STREAMS_OPENED_A_SECOND = 512


@dataclass(frozen=True, slots=True)
class Load:
    """One load; `ages` says that the deltas' ages mean something (a burst's say how deep buffers are)."""

    name: str
    groups: tuple[Group, ...]
    ages: bool = False
    firsts: bool = False
    rate: str | None = None
    """What to count a second: `deltas` or `complete` (requests)."""

    def plan(self, share: float) -> list[Group]:
        """The groups, with fewer streams for a relay that gets a share."""
        return [
            {
                **group,
                **{
                    name: max(1, round(group[name] * share))
                    for name in ("streams", "workers")
                    if name in group
                },
            }
            for group in self.groups
        ]


def streams(number: int, deltas: int, interval_ms: float, ramp_s: float) -> Group:
    """So many streams, opened evenly within the ramp."""
    return {"streams": number, "deltas": deltas, "interval_ms": interval_ms, "ramp_s": ramp_s}


def _workers(workers: int, *, deltas: int, for_s: float, keep_alive: bool, pause_s: float) -> Group:
    return {
        "workers": workers,
        "deltas": deltas,
        "interval_ms": 0,
        "for_s": for_s,
        "keep_alive": keep_alive,
        "pause_s": pause_s,
    }


LOADS = (
    # First, on a relay that has answered nothing yet: the very first request is in its figures.
    Load("paced", (streams(150, 100, 50, 1.0),), ages=True, firsts=True),
    Load("long", (streams(60, 1000, 20, 1.0),), ages=True),
    Load("burst", (streams(20, 2000, 0, 0.1),), rate="deltas"),
    Load("churn", (_workers(32, deltas=1, for_s=4, keep_alive=True, pause_s=0),), rate="complete"),
    Load("churn-new", (_workers(32, deltas=1, for_s=4, keep_alive=False, pause_s=0),), rate="complete"),
    Load(
        "mix",
        (
            streams(75, 100, 50, 1.0),
            _workers(8, deltas=5, for_s=5, keep_alive=True, pause_s=0.05),
        ),
        ages=True,
    ),
)


def held(number: int) -> list[Group]:
    """Streams that are all open at once for at least half of their time."""
    return [streams(number, HELD_DELTAS, HELD_INTERVAL_MS, number / _STREAMS_OPENED_A_SECOND)]
