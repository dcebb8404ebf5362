"""The one table: measures down, relays across; printed, and put between markers in docs/performance.md."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

_MEASURES = (
    ("paced.cpu_us", "CPU µs a delta, 150 x 100 at 50 ms", 0),
    ("long.cpu_us", "CPU µs a delta, 60 x 1,000 at 20 ms", 0),
    ("burst.cpu_us", "CPU µs a delta, burst", 0),
    ("mix.cpu_us", "CPU µs a delta, mix", 0),
    ("burst.rate", "deltas/s, burst", -2),
    ("paced.age_p50", "added ms p50, 150 x 100", 2),
    ("paced.age_p99", "added ms p99, 150 x 100", 1),
    ("long.age_p99", "added ms p99, 60 x 1,000", 1),
    ("mix.age_p99", "added ms p99, mix", 1),
    ("paced.first_p50", "first delta over direct ms p50", 1),
    ("paced.first_p99", "first delta over direct ms p99", 1),
    ("paced.very_first", "very first request over direct ms", 1),
    ("churn.rate", "one-delta answers/s, keep-alive", 0),
    ("churn-new.rate", "one-delta answers/s, new connections", 0),
    ("held.streams", "streams held of 4,096", 0),
    ("memory.idle", "resident MiB, idle", 0),
    ("memory.stream_kib", "resident KiB an open stream", 0),
    ("memory.after", "resident MiB, after", 0),
    ("start.cpu_s", "CPU s to start", 1),
    ("paced.waited_share", "% of the time ready but without its core", 0),
)
Rounds = Sequence[Mapping[str, float]]


def medians(rounds: Rounds) -> dict[str, float]:
    """The median of every figure over the rounds that have it."""
    names = {name for figures in rounds for name in figures}
    return {name: statistics.median([one[name] for one in rounds if name in one]) for name in names}


def render(figures: Mapping[str, Rounds]) -> str:
    """The table as Markdown, aligned to be read as it is.

    Args:
        figures: for each relay its rounds, in the order of the columns.
    """
    middle = {relay: medians(rounds) for relay, rounds in figures.items()}
    head = ["", *middle]
    rows = [
        [title, *(_cell(values.get(name), digits) for values in middle.values())]
        for name, title, digits in _MEASURES
        if any(name in values for values in middle.values())
    ]
    widths = [max(len(row[column]) for row in [head, *rows]) for column in range(len(head))]
    ruler = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [
        "| " + " | ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]) + " |"
        for row in [head, ruler, *rows]
    ]
    return "\n".join(lines)


def _cell(value: float | None, digits: int) -> str:
    if value is None:
        return ""
    return f"{round(value, digits):,.{max(0, digits)}f}"


def put_between_markers(path: Path, name: str, text: str) -> None:
    """Replace what stands between the markers of this name.

    Raises:
        ValueError: the file does not have both, in order.
    """
    whole = path.read_text()
    markers = f"<!-- bench:{name}:begin -->", f"<!-- bench:{name}:end -->"
    before, begin, rest = whole.partition(markers[0])
    _, end, after = rest.partition(markers[1])
    if not begin or not end:
        raise ValueError(f"{path.name} needs the lines {' and '.join(markers)}, in this order.")
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
