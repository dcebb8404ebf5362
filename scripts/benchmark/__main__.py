"""Measure this tree beside an earlier revision, ferrogw and nginx: one upstream, one load, two tables."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from subprocess import SubprocessError

from httpx2 import HTTPError

from benchmark.programs import CannotRunError
from benchmark.relays import ROOT, Relay, at_v1, before, ferrogw, nginx, on_postgresql, this_tree, with_bounds
from benchmark.rows import ADDED, COST, OWN_ROWS, SHARED_ROWS, Bench, Figures, Run
from benchmark.terminal_rows import terminal

_PAGE = ROOT / "docs/performance.md"
_MARKERS = ("<!-- bench:begin -->", "<!-- bench:end -->")
_OWN_ROWS = OWN_ROWS | {"tui": terminal}
_ROWS = [*SHARED_ROWS, *_OWN_ROWS]
_QUICK_ROWS = ["paced", "churn"]
_FAILURES = (CannotRunError, HTTPError, OSError, RuntimeError, SubprocessError)
"""What ends one relay's row, but not the run."""
_GOALS = {
    "resident MiB, idle": "≤ 70",
    "added ms p99, 150 x 100 at 50 ms": "≤ 10",
    "added to the first delta, ms p99": "≤ 10",
    "added ms p99, 60 x 1,000 at 20 ms": "≤ 10",
    "one-delta requests/s": "≥ 1,200",
    "resident KiB an open stream": "≤ 40",
    "MiB of growth, 10,000th to 100,000th stream": "≤ 2",
    "valid keys refused, under rotation": "≤ 0",
    "expired keys accepted, under rotation": "≤ 0",
    "ms a rotation, p99": "≤ 10",
    "deltas/s of 2 workers by those of 1": "≥ 1.8",
    "tui: ms from the start to the first paint": "≤ 500",
    "tui: % CPU at rest, a key counting down": "≤ 0.5",
    "tui: events/s under load": "≥ 2,000",
    "tui: ms from a key to the screen, p99": "≤ 50",
    "tui: resident MiB after the load": "≤ 60",
    "tui: ms to the answer of a key at 4 kB/s, worst": "≤ 1,000",
    "tui: s from launch to a refused key, 7 keys": "≤ 4",
    "tui: s from W to a refused key, 4 keys and a paste": "≤ 6",
}
"""What relayd wants of itself."""
_RATIO_GOALS = {
    ("150 x 100", "ferrogw"): "≤ 1",
    ("60 x 1,000", "ferrogw"): "≤ 1",
    ("150 x 100", "nginx"): "≤ 3.5",
    ("60 x 1,000", "nginx"): "≤ 2.6",
    ("150 x 100", "/v1"): "≥ 1",
    ("60 x 1,000", "/v1"): "≥ 1",
    ("150 x 100", "bounded"): "≥ 0.97",
    ("60 x 1,000", "bounded"): "≥ 0.97",
}


class Results:
    """All figures by relay and title, each with its rounds, and what went wrong."""

    def __init__(self) -> None:
        self.figures: dict[str, dict[str, dict[int, float]]] = {}
        self.notes: dict[str, None] = {}

    def add(self, relay: Relay, figures: Figures, round_number: int, notes: Sequence[str] = ()) -> None:
        """Take the figures of one run."""
        column = self.figures.setdefault(relay.name, defaultdict(dict))
        for title, value in figures.items():
            column[title][round_number] = value
        self.notes |= {f"{relay.name}: {note}": None for note in notes}

    def medians(self) -> str:
        """Return the medians as a Markdown table, relays across."""
        lines = [["", "goal", *self.figures]]
        for title in dict.fromkeys(title for column in self.figures.values() for title in column):
            medians = {
                name: statistics.median(column[title].values())
                for name, column in self.figures.items()
                if title in column
            }
            goal = _judged(_GOALS.get(title, ""), medians.get("relayd"))
            lines.append([title, goal, *(_number(medians.get(name)) for name in self.figures)])
        return _table(lines)

    def ratios(self) -> str:
        """Return what relayd costs in terms of each other relay: both in the same round."""
        lines = [
            ["relayd's cost by another's, of the same round", "goal", "median", "least to most", "rounds"]
        ]
        ours = self.figures["relayd"]
        for title in (title for title in ours if title.startswith(COST)):
            for other, theirs in self.figures.items():
                rounds = ours[title].keys() & theirs.get(title, {}).keys()
                if other == "relayd" or not rounds:
                    continue
                ratios = sorted(ours[title][number] / theirs[title][number] for number in rounds)
                median = statistics.median(ratios)
                goal = next(
                    (goal for (load, name), goal in _RATIO_GOALS.items() if load in title and name == other),
                    "",
                )
                spread = f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
                lines.append(
                    [f"{title}: {other}", _judged(goal, median), f"{median:.2f}", spread, str(len(rounds))]
                )
        return _table(lines) if lines[1:] else ""


def _judged(goal: str, value: float | None) -> str:
    """Return a goal, and whether it is missed."""
    if not goal or value is None:
        return goal
    sign, bound = goal.split()
    limit = float(bound.replace(",", ""))
    return goal if (value <= limit if sign == "≤" else value >= limit) else f"{goal}: **missed**"


def _number(value: float | None) -> str:
    if value is None:
        return ""
    digits = 0 if abs(value) >= 100 or value == int(value) else 1 if abs(value) >= 10 else 2  # noqa: PLR2004 - 3 digits are enough
    return f"{value:,.{digits}f}"


def _table(lines: list[list[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join(
        "| " + " | ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) + " |"
        for line in lines
    )


def main() -> None:
    """Run the rows that were asked for."""
    args = _arguments()
    results = Results()
    try:
        versions = [*([before(args.against)] if args.against else []), this_tree()]
    except CannotRunError as reason:
        raise SystemExit(str(reason)) from None
    ours = versions[-1]
    shared = [name for name in args.rows if name in SHARED_ROWS]
    peers = [] if args.quick or not shared else [*_variants(ours), *_peers(results)]
    averages, direct = [], {}
    with Bench() as bench:
        for number in range(args.rounds if shared else 0):
            averages.append(f"{os.getloadavg()[0]:.1f}")
            relays = versions[::-1]
            # Every second round is enough for what differs by so much.
            if number % 2 == 0:
                relays = [*versions, *peers]
                direct = _measured(bench.direct(), [name for name in shared if name != "idle"])
            for relay in relays:
                _shared_rows(bench, relay, shared, direct, results, number)
        for name in (name for name in args.rows if name in _OWN_ROWS):
            _own_row(bench, ours, name, results)
    about = (
        f"{datetime.now(UTC):%Y-%m-%d}."
        f" {', '.join(f'{relay.name} {relay.version}' for relay in [*versions, *peers])};"
        f" Python {platform.python_version()}, Linux {platform.release().partition('-')[0]},"
        f" {_processor()}."
    )
    if averages:
        about += f" Medians of {args.rounds} rounds; load average before each: {', '.join(averages)}."
    notes = "\n".join(f"- {note}" for note in results.notes)
    text = "\n\n".join(filter(None, [about, results.medians(), results.ratios(), notes]))
    print(text, flush=True)
    if args.write:
        _put_between_markers(_PAGE, text)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=__doc__,
        epilog=f"Rows: {', '.join(_ROWS)}. All are measured if none is named, in about half an hour.",
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="what to measure")
    parser.add_argument("--against", metavar="REV", help="also measure this git revision")
    parser.add_argument("--rounds", type=int, default=4, help="interleaved; the table has the medians (4)")
    parser.add_argument(
        "--quick", action="store_true", help="did a delta get dearer? Two rows, no peers: two minutes"
    )
    parser.add_argument("--write", action="store_true", help=f"put the tables into docs/{_PAGE.name}")
    args = parser.parse_args()
    if unknown := set(args.rows) - set(_ROWS):
        parser.error(f"There is no row {', '.join(unknown)}; there are {', '.join(_ROWS)}.")
    args.rows = args.rows or (_QUICK_ROWS if args.quick else _ROWS)
    return args


def _variants(relayd: Relay) -> list[Relay]:
    """Return the same relayd, used in other ways."""
    shared = on_postgresql(relayd)
    return [at_v1(relayd), with_bounds(relayd), shared, with_bounds(shared, "PostgreSQL, bounded")]


def _peers(results: Results) -> list[Relay]:
    """Return the peers that can run; note why others cannot."""
    peers = []
    for make in (ferrogw, nginx):
        try:
            peers.append(make())
        except CannotRunError as reason:
            results.notes[f"not measured: {reason}"] = None
    return peers


def _shared_rows(
    bench: Bench, relay: Relay, rows: Sequence[str], direct: Figures, results: Results, number: int
) -> None:
    """Start a relay, and measure all rows that share one start."""
    try:
        with bench.running(relay) as run:
            figures = _measured(run, rows)
    except _FAILURES as reason:
        results.add(relay, {}, number, [f"round {number + 1} failed: {reason}"])
        return
    for title in figures.keys() & direct.keys():
        if title.startswith(ADDED):
            figures[title] -= direct[title]
    results.add(relay, figures, number, run.notes)


def _measured(run: Run, rows: Sequence[str]) -> Figures:
    figures: Figures = {}
    for name in rows:
        _report(run.relay, name)
        figures |= SHARED_ROWS[name](run)
    return figures


def _own_row(bench: Bench, relay: Relay, name: str, results: Results) -> None:
    _report(relay, name)
    try:
        # The app is what the row `tui` measures: it has the core alone.
        with bench.running(relay, bench.cores.load if name == "tui" else bench.cores.measured) as run:
            results.add(relay, _OWN_ROWS[name](run), 0, run.notes)
    except _FAILURES as reason:
        results.add(relay, {}, 0, [f"{name} failed: {reason}"])


def _report(relay: Relay, row: str) -> None:
    now, average = datetime.now(UTC), os.getloadavg()[0]
    print(f"{now:%H:%M:%S} {relay.name}: {row} (load average {average:.1f})", file=sys.stderr, flush=True)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{os.cpu_count()} cores of {line.partition(':')[2].strip()}"
    return f"{os.cpu_count()} cores"


def _put_between_markers(path: Path, text: str) -> None:
    head, _, rest = path.read_text().partition(_MARKERS[0])
    _, found, tail = rest.partition(_MARKERS[1])
    if not found:
        raise SystemExit(f"{path.name} needs the lines {' and '.join(_MARKERS)}, in this order.")
    path.write_text(f"{head}{_MARKERS[0]}\n\n{text}\n\n{_MARKERS[1]}{tail}")


if __name__ == "__main__":
    main()
