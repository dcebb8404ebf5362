"""`relayd usage`: requests, tokens and money by client, model, day or key."""

from __future__ import annotations

import csv
from argparse import Namespace
from operator import attrgetter

from relayd.admin.schema import UsageRow, UsageSums
from relayd.commands.console import EXIT_USAGE, Console
from relayd.printable import csv_text, printable

_FIELDS = UsageSums.__struct_fields__
_HEADS = ("REQUESTS", "PROMPT", "CACHED", "ANSWER", "COST", "ESTIMATED", "UNPRICED")
_LEAST_USD = 0.0001
_NO_MODEL = "(no answer)"
"""Requests that no model answered."""
_values = attrgetter(*_FIELDS)


async def run(args: Namespace, console: Console) -> int:
    """Show one line for each sum, the largest first, and the total."""
    if args.csv and args.json:
        console.note("relayd: choose one of --csv and --json.")
        return EXIT_USAGE
    client = console.client(args.socket)
    usage = await client.usage(args.by, since=args.since, until=args.until, client=args.client)
    if usage.since > usage.until:
        console.note(f"relayd: The first day, {usage.since}, is after the last, {usage.until}.")
        return EXIT_USAGE
    if args.json:
        console.json(usage)
    elif args.csv:
        writer = csv.writer(console.out, lineterminator="\n")
        writer.writerow((usage.by, *_FIELDS))
        writer.writerows((csv_text(printable(row.name)), *_values(row)) for row in usage.rows)
    elif not usage.rows:
        console.say(f"Nothing was used from {usage.since} to {usage.until}.")
    else:
        rows = [(_name(row), *_cells(row)) for row in usage.rows]
        _write_table(console, [(usage.by.upper(), *_HEADS), *rows, ("TOTAL", *_cells(usage.total))])
        console.note(f"From {usage.since} to {usage.until}.")
    return 0


def _name(row: UsageRow) -> str:
    return printable(row.name) or _NO_MODEL


def _cells(sums: UsageSums) -> tuple[str, ...]:
    return tuple(
        _money(value) if field == "cost_usd" else f"{value:,}"
        for field, value in zip(_FIELDS, _values(sums), strict=True)
    )


def _money(usd: float) -> str:
    return "<$0.0001" if 0 < usd < _LEAST_USD else f"${usd:,.4f}"


def _write_table(console: Console, table: list[tuple[str, ...]]) -> None:
    """Write rows with figures below each other."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for name, *figures in table:
        cells = [figure.rjust(width) for figure, width in zip(figures, widths[1:], strict=True)]
        console.say("  ".join([name.ljust(widths[0]), *cells]))
