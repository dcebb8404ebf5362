"""Known keys and a known prompt, looked for wherever the daemon writes."""

from __future__ import annotations

from pathlib import Path

from soaking.row import Row, Seen
from tests.support.canaries import CODES, OUTCOMES, Aviary
from tests.support.siege import provider


async def canaries(home: Path, size: float) -> Seen:
    """1,000 requests of each kind, over a crash and a restart: keys and prompts in files, log and /proc."""
    each = max(1, round(1000 * size))
    with provider() as base_url:
        aviary = Aviary(home, base_url, each)
        with aviary.daemon:
            flight = await aviary.fly()
    mib = flight.bytes_looked_at >> 20
    missing = [str(name) for name in (OUTCOMES | CODES) - set(flight.outcomes) - flight.codes]
    return Seen(
        f"{flight.outcomes.total()} records, of {len(flight.outcomes)} outcomes and {len(flight.codes)} codes"
        f"{f' (missing: {missing})' if missing else ''}; {len(flight.hits)} hits"
        f"{f' ({flight.hits[:3]})' if flight.hits else ''} in {mib} MiB of database, WAL, log, environment,"
        " arguments, metrics and status",
        held=not flight.hits and not missing,
    )


ROWS: tuple[Row, ...] = (canaries,)
