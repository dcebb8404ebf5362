"""Chooses the rows, gives each a home of its own, and prints one line of Markdown for each."""

from __future__ import annotations

import argparse
import asyncio
import inspect
import sys
import tempfile
import time
from pathlib import Path

from relayd.descriptors import MANY_DESCRIPTORS, reserve_descriptors
from soaking import attacks, canaries, longrun, readers, shortage, timing, tools
from soaking.row import Row

_ROWS = {
    row.__name__: row
    for module in (attacks, readers, canaries, shortage, longrun, timing, tools)
    for row in module.ROWS
}


def main() -> int:
    """Run; the exit status is 1 where a row's bound did not hold."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description="Attack a real daemon at full size.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help="which; all where none is named")
    parser.add_argument("--size", type=float, default=1.0, help="1 is full size, 0.1 a tenth (default: 1)")
    parser.add_argument("--list", action="store_true", help="name the rows and stop")
    chosen = parser.parse_args()
    if chosen.list:
        for name, row in _ROWS.items():
            print(f"{name:15}{(inspect.getdoc(row) or '').splitlines()[0]}")
        return 0
    unknown = sorted(set(chosen.rows) - set(_ROWS))
    if unknown:
        parser.error(f"no row is called {', '.join(unknown)}; there are {', '.join(_ROWS)}")
    reserve_descriptors(MANY_DESCRIPTORS)
    print("| row | what was seen | held |\n|---|---|---|", flush=True)
    held = [_run(_ROWS[name], chosen.size) for name in chosen.rows or _ROWS]
    return 0 if all(held) else 1


def _run(row: Row, size: float) -> bool:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="relayd-soak-") as home:
        seen = asyncio.run(row(Path(home), size))
    took = f"{time.monotonic() - began:.0f} s"
    print(f"| {row.__name__} | {seen.words} ({took}) | {'yes' if seen.held else '**no**'} |", flush=True)
    return seen.held


sys.exit(main())
