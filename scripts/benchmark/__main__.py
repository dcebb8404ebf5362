"""`scripts/bench`: relayd beside its peers on one upstream and one load, in one table."""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import sys
from pathlib import Path

from benchmark.install import CannotRun, install
from benchmark.loads import LOADS, Load
from benchmark.measure import Bench, Figures, bench_of_this_machine
from benchmark.peers import HOME, PEERS, RELAYD, ROOT, Peer, before
from benchmark.process import DidNotStart, machine_ticks
from benchmark.rows import ROWS
from benchmark.table import put_between_markers, render

_PAGE = ROOT / "docs" / "performance.md"


def _arguments() -> argparse.Namespace:
    names = [peer.name for peer in (RELAYD, *PEERS)]
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="relayd alone, one round, nothing held")
    parser.add_argument("--only", type=_names(names), help=f"some relays: {','.join(names)}")
    parser.add_argument("--loads", type=_names([load.name for load in LOADS]), help="some loads")
    parser.add_argument("--rounds", type=int, default=3, help="interleaved; the table has their medians")
    parser.add_argument(
        "--against", type=Path, help="relayd in another checkout, measured beside this one as 'before'"
    )
    parser.add_argument("--no-hold", action="store_true", help="leave out the streams that are held")
    parser.add_argument("--rows", type=_names(list(ROWS)), help=f"instead of relays: {','.join(ROWS)}")
    return parser.parse_args()


def _names(known: list[str]) -> type:
    def read(text: str) -> list[str]:
        names = text.split(",")
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"'{name}' is none of {', '.join(known)}")
        return names

    return read  # type: ignore[return-value]  # argparse takes any callable


def main() -> int:
    """Run what was asked for; 1 where relayd itself could not be measured."""
    asked = _arguments()
    if asked.rows:
        for name in asked.rows:
            text = ROWS[name]()
            print(text, flush=True)
            put_between_markers(_PAGE, name, text)
        return 0
    relays, loads = _chosen(asked)
    versions, notes = _installed(relays)
    figures: dict[str, list[Figures]] = {name: [] for name in versions}
    averages: list[float] = []
    ticks = machine_ticks()
    rounds = 1 if asked.quick else asked.rounds
    with bench_of_this_machine() as bench:
        for number in range(rounds):
            averages.append(os.getloadavg()[0])
            hold = number == rounds - 1 and not (asked.quick or asked.no_hold)
            _one_round(bench, [peer for peer in relays if peer.name in versions], loads, hold, figures, notes)
    stolen = [after - before for before, after in zip(ticks, machine_ticks(), strict=True)]
    disturbed = (
        f"Load average before each round: {', '.join(f'{average:.1f}' for average in averages)}; "
        f"{100 * stolen[1] / stolen[0]:.0f} % of the machine's time went to other machines."
    )
    text = _text(figures, versions, notes, disturbed, len(averages))
    print(text)
    _keep(figures, versions, notes, disturbed)
    if asked.quick or asked.only or asked.loads or asked.no_hold or asked.against:
        print(f"\nA part of the benchmark: docs/{_PAGE.name} stays as it is.", file=sys.stderr)
    else:
        put_between_markers(_PAGE, "relays", text)
    return 0 if figures.get(RELAYD.name) else 1


def _chosen(asked: argparse.Namespace) -> tuple[list[Peer], list[Load]]:
    names = asked.only or ([RELAYD.name] if asked.quick else [peer.name for peer in (RELAYD, *PEERS)])
    relays = [peer for peer in (RELAYD, *PEERS) if peer.name in names]
    if asked.against:
        relays.insert(0, before(asked.against))
    return relays, [load for load in LOADS if not asked.loads or load.name in asked.loads]


def _installed(relays: list[Peer]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Versions of what can run, and why the rest cannot."""
    versions: dict[str, str] = {}
    notes: dict[str, list[str]] = {}
    for peer in relays:
        try:
            versions[peer.name] = install(peer.name) if peer in PEERS else _own_version()
        except CannotRun as reason:
            notes[peer.name] = [f"did not run: {reason}"]
    return versions, notes


def _own_version() -> str:
    from relayd import __version__  # noqa: PLC0415 - peers are measured where relayd is broken, too

    return __version__


def _one_round(
    bench: Bench,
    relays: list[Peer],
    loads: list[Load],
    hold: bool,  # noqa: FBT001 - one caller, by name of the variable
    figures: dict[str, list[Figures]],
    notes: dict[str, list[str]],
) -> None:
    _say("direct")
    direct = bench.direct(loads)
    for relay in relays:
        _say(relay.name)
        try:
            found, wrong = bench.measure(relay, loads, direct, hold=hold)
        except DidNotStart as reason:
            notes.setdefault(relay.name, []).append(f"did not run: {reason}")
            continue
        figures[relay.name].append(found)
        notes.setdefault(relay.name, []).extend(wrong)


def _say(what: str) -> None:
    now = dt.datetime.now(dt.UTC)
    print(f"{now:%H:%M:%S} {what} (load average {os.getloadavg()[0]:.1f})", file=sys.stderr, flush=True)


def _text(
    figures: dict[str, list[Figures]],
    versions: dict[str, str],
    notes: dict[str, list[str]],
    disturbed: str,
    rounds: int,
) -> str:
    named = ", ".join(f"{name} {version}" for name, version in versions.items())
    today = dt.datetime.now(dt.UTC).date()
    about = (
        f"{today}, {f'medians of {rounds} interleaved rounds' if rounds > 1 else 'one round'}. {named}; "
        f"Python {platform.python_version()}, Linux {platform.release().partition('-')[0]}, {_processor()}. "
        f"{disturbed}"
    )
    lines = [about, "", render({name: rounds for name, rounds in figures.items() if rounds})]
    said = [f"- {name}: {note}" for name, all_notes in notes.items() for note in dict.fromkeys(all_notes)]
    return "\n".join([*lines, "", *said] if said else lines)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{os.cpu_count()} cores of {line.partition(':')[2].strip()}"
    return f"{os.cpu_count()} cores"


def _keep(
    figures: dict[str, list[Figures]],
    versions: dict[str, str],
    notes: dict[str, list[str]],
    disturbed: str,
) -> None:
    """Every round's figures, for whoever wants more than medians."""
    folder = HOME / "results"
    folder.mkdir(parents=True, exist_ok=True)
    now = dt.datetime.now(dt.UTC)
    path = folder / f"{now:%Y%m%dT%H%M%SZ}.json"
    kept = {"versions": versions, "disturbed": disturbed, "figures": figures, "notes": notes}
    path.write_text(json.dumps(kept, indent=1))


if __name__ == "__main__":
    sys.exit(main())
