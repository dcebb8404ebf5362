"""Measure relayd beside the version before and its peers: one upstream, one load, one table."""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from benchmark.programs import CannotRunError, machine_ticks, stolen_share
from benchmark.relays import MORE_PEERS, PEERS, ROOT, Relay, before, this_tree
from benchmark.rows import ADDED, ROWS, Bench, Figures, Run

_PAGE = ROOT / "docs/performance.md"
_MARKERS = ("<!-- bench:begin -->", "<!-- bench:end -->")
_QUICK_ROWS, _QUICK_ROUNDS = ["paced", "churn"], 4


class Results:
    """All figures by relay and title, each with its rounds, and what went wrong."""

    def __init__(self) -> None:
        self.figures: dict[str, dict[str, list[float]]] = {}
        self.notes: dict[str, None] = {}

    def add(self, relay: Relay, figures: Figures, notes: Sequence[str] = ()) -> None:
        """Take the figures of one run."""
        column = self.figures.setdefault(relay.name, defaultdict(list))
        for title, value in figures.items():
            column[title].append(value)
        self.notes |= {f"{relay.name}: {note}": None for note in notes}

    def table(self) -> str:
        """Return the medians as a Markdown table, relays across."""
        titles = dict.fromkeys(title for column in self.figures.values() for title in column)
        cells = [["", *self.figures]]
        for title in titles:
            rounds = [column.get(title) for column in self.figures.values()]
            cells.append([title, *("" if r is None else _number(statistics.median(r)) for r in rounds)])
        widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
        cells.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
        return "\n".join(
            "| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |"
            for row in cells
        )


def _number(value: float) -> str:
    digits = 0 if abs(value) >= 100 or value == int(value) else 1 if abs(value) >= 10 else 2  # noqa: PLR2004 - 3 digits are enough
    return f"{value:,.{digits}f}"


def main() -> int:
    """Run the rows that were asked for; return 1 if this tree could not be measured."""
    args = _arguments()
    if args.go_first:
        # The session that this process shares with all that it starts (sched(7)).
        Path("/proc/self/autogroup").write_text("-19")
    results = Results()
    relays = _installed(args, results)
    averages, ticks = [], machine_ticks()
    with Bench() as bench:
        for _ in range(args.rounds):
            averages.append(f"{os.getloadavg()[0]:.1f}")
            _one_round(bench, relays, args.rows, results, compare=not args.quick)
        for name in args.rows:
            if ROWS[name].fresh:
                _fresh(bench, relays, name, results)
    named = ", ".join(f"{relay.name} {version}" for relay, version in relays.items())
    stolen = stolen_share(ticks, machine_ticks())
    about = (
        f"{datetime.now(UTC):%Y-%m-%d}, medians of {args.rounds} interleaved rounds. {named}; Python"
        f" {platform.python_version()}, Linux {platform.release().partition('-')[0]}, {_processor()}."
        f" Load average before each round: {', '.join(averages)}; {stolen:.0%} of the machine's time went"
        " to other machines."
    )
    text = "\n".join([about, "", results.table(), *(f"\n- {note}" for note in results.notes)])
    print(text, flush=True)
    if args.write:
        _put_between_markers(_PAGE, text)
    return 0 if "relayd" in results.figures else 1


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description=__doc__, epilog=f"Rows: {', '.join(ROWS)}. All if none is named."
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="what to measure")
    parser.add_argument("--against", metavar="DIR_OR_REV", help="also measure this checkout or git revision")
    parser.add_argument("--all-peers", action="store_true", help="also LiteLLM, Portkey and openai-forward")
    parser.add_argument("--only-relayd", action="store_true", help="no peers")
    parser.add_argument("--rounds", type=int, help="interleaved; the table has the medians (default: 3)")
    parser.add_argument(
        "--quick",
        action="store_true",
        help="did a delta get dearer? Three minutes: two rows, no peer but nginx",
    )
    parser.add_argument("--write", action="store_true", help=f"put the table into docs/{_PAGE.name}")
    parser.add_argument("--go-first", action="store_true", help="ahead of others on this machine (as root)")
    args = parser.parse_args()
    if unknown := set(args.rows) - set(ROWS):
        parser.error(f"There is no row {', '.join(unknown)}; there are {', '.join(ROWS)}.")
    args.rows = args.rows or (_QUICK_ROWS if args.quick else list(ROWS))
    args.rounds = args.rounds or (_QUICK_ROUNDS if args.quick else 3)
    return args


def _installed(args: argparse.Namespace, results: Results) -> dict[Relay, str]:
    """Return the relays that can run, with their versions; note why others cannot."""
    relays = [this_tree()]
    if args.against:
        relays.insert(0, before(args.against))
    if not args.only_relayd:
        relays += [peer for peer in PEERS if not args.quick or peer.name == "nginx"]
    if args.all_peers:
        relays += MORE_PEERS
    versions = {}
    for relay in relays:
        try:
            versions[relay] = relay.install()
        except CannotRunError as reason:
            results.notes[f"{relay.name} did not run: {reason}"] = None
    return versions


def _one_round(
    bench: Bench, relays: Mapping[Relay, str], rows: Sequence[str], results: Results, *, compare: bool
) -> None:
    """Start every relay once, and measure all rows that share one start."""
    rows = [name for name in rows if not ROWS[name].fresh]
    if not rows:
        return
    direct = _measured(bench.direct(), [name for name in rows if name != "idle"]) if compare else {}
    for relay in relays:
        try:
            with bench.running(relay) as run:
                figures = _measured(run, rows)
        except CannotRunError as reason:
            results.add(relay, {}, [f"did not run: {reason}"])
            continue
        added = {title: value for title, value in figures.items() if title.startswith(ADDED)}
        for title, value in added.items():
            figures[title] = value - direct.get(title, 0.0)
        results.add(relay, figures, run.notes)


def _measured(run: Run, rows: Sequence[str]) -> Figures:
    figures: Figures = {}
    for name in rows:
        _report(run.relay, name)
        figures |= ROWS[name].measure(run)
    return figures


def _fresh(bench: Bench, relays: Mapping[Relay, str], name: str, results: Results) -> None:
    for relay in relays:
        if ROWS[name].only_relayd and relay.python is None:
            continue
        _report(relay, name)
        try:
            with bench.running(relay) as run:
                results.add(relay, ROWS[name].measure(run), run.notes)
        except CannotRunError as reason:
            results.add(relay, {}, [f"did not run: {reason}"])


def _report(relay: Relay, row: str) -> None:
    now = datetime.now(UTC)
    average = os.getloadavg()[0]
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
    sys.exit(main())
