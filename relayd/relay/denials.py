"""Keeps a flood of refused keys from burying the request log: a few are recorded, the rest counted."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from relayd.state.records import RecordedError, RequestRecord

WINDOW_S = 60.0
RECORDED_PER_NETWORK = 60
RECORDED_IN_ALL = 1000
MAX_NETWORKS = 1000
_THE_REST = "other addresses"


@dataclass(slots=True)
class _Network:
    seen: int = 0
    untold: int = 0
    last: RequestRecord | None = None


class Denials:
    """The refusals of one minute.

    In a minute each network has its first 60 recorded one by one, all together 1,000. Of the rest the
    last one is recorded when the minute is over, and says for how many it stands. Counters see them all.
    """

    def __init__(self) -> None:
        self._networks: dict[str, _Network] = {}
        self._recorded = 0

    def is_told(self, record: RequestRecord, network: str) -> bool:
        """Whether this refusal is recorded by itself; else it is kept for the sum."""
        if network not in self._networks and len(self._networks) >= MAX_NETWORKS:
            network = _THE_REST
        mine = self._networks.setdefault(network, _Network())
        mine.seen += 1
        if mine.seen <= RECORDED_PER_NETWORK and self._recorded < RECORDED_IN_ALL:
            self._recorded += 1
            return True
        mine.untold += 1
        mine.last = record
        return False

    def settle(self) -> list[RequestRecord]:
        """The sums of the minute, one record a network; a new minute begins."""
        sums = [
            _sum_of(mine.last, network, mine.untold)
            for network, mine in self._networks.items()
            if mine.last is not None
        ]
        self._networks.clear()
        self._recorded = 0
        return sums


def _sum_of(last: RequestRecord, network: str, count: int) -> RequestRecord:
    """The last of them, which says for how many it stands."""
    if last.error is None or count == 1:
        return last
    told = f"{last.error.message} This stands for {count} such requests of {network} within a minute."
    return msgspec.structs.replace(last, error=RecordedError(last.error.code, told))
