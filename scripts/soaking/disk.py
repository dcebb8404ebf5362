"""A full disk under load."""

from __future__ import annotations

from pathlib import Path

from soaking.row import Row, Seen
from tests.support.fulldisk import filled
from tests.support.siege import provider
from tests.support.tmpfs import CannotMount

_FULL_S = 60.0
_CLIENTS = 50
_RECOVERY_S = 1.0


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


ROWS: tuple[Row, ...] = (disk,)
