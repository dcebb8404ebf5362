"""What the machine runs out of: disk, descriptors."""

from __future__ import annotations

from http import HTTPStatus
from pathlib import Path

from soaking.row import Row, Seen
from tests.support.descriptors import exhausted
from tests.support.fulldisk import filled
from tests.support.siege import provider
from tests.support.tmpfs import CannotMount

_FULL_S = 60.0
_CLIENTS = 50
_RECOVERY_S = 1.0
_SPIN = 0.5


async def disk(home: Path, size: float) -> Seen:
    """The disk of the state full for a minute under load, then not (root, or in unshare -rm)."""
    with provider() as base_url:
        try:
            seen = await filled(home, base_url, _FULL_S * size, _CLIENTS)
        except CannotMount as error:
            return Seen(
                f"not run: {error}; try `unshare --map-root-user --mount scripts/soak disk`", held=False
            )
    return Seen(
        f"{seen.streams} streams, {seen.wrong} not whole, beside {seen.refused} refused requests;"
        f" {seen.queued} entries waited; {seen.records} requests recorded, {seen.lost} lost, and"
        f" {seen.told} by the log's own word{'' if seen.exact else ', NOT exact'}; written again after"
        f" {seen.writes_after_s:.2f} s, nothing waited after {seen.caught_up_after_s:.2f} s",
        held=seen.exact
        and seen.was_full
        and not seen.wrong
        and bool(seen.lost)
        and seen.writes_after_s <= _RECOVERY_S,
    )


async def descriptors(home: Path, size: float) -> Seen:
    """All descriptors taken by silent connections: CPU meanwhile, and the next client after it."""
    del size  # it has one
    with provider() as base_url:
        seen = await exhausted(home, base_url)
    return Seen(
        f"{seen.spin:.0%} of a core while none was left; an open stream {'' if seen.whole else 'NOT '}whole;"
        f" a new client got {seen.served}, and one after it within {seen.recovered_s:.2f} s",
        held=seen.spin < _SPIN
        and seen.whole
        and seen.served == HTTPStatus.OK
        and seen.recovered_s <= _RECOVERY_S,
    )


ROWS: tuple[Row, ...] = (disk, descriptors)
