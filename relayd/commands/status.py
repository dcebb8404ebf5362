"""`relayd status`: the daemon at a glance."""

from __future__ import annotations

import time
from argparse import Namespace

from relayd.admin.schema import Intake, Status
from relayd.commands.console import Console, counted, left
from relayd.durations import millis, short

_KIB = 1024
_INTAKE = {
    Intake.OPEN: "live",
    Intake.PAUSED: "paused: new requests are refused until `relayd resume`",
    Intake.DRAINING: "draining: it stops when its open streams have ended",
}


async def run(args: Namespace, console: Console) -> int:
    """Show the status as a label and a sentence a line."""
    status = await console.client(args.socket).status()
    if args.json:
        console.json(status)
    else:
        console.table(_rows(status, time.time()))
    return 0


def _rows(status: Status, now_s: float) -> list[tuple[str, str]]:
    streams, rates, ring, log, disk = status.streams, status.rates, status.ring, status.log, status.disk
    open_streams = streams.connecting + streams.waiting + streams.streaming
    median, p95 = rates.first_token_p50_ms, rates.first_token_p95_ms
    expiry = "" if ring.next_expiry_at is None else f" ({left(ring.next_expiry_at, now_s)})"
    phases = f"{streams.connecting} connecting, {streams.waiting} waiting, {streams.streaming} streaming"
    counts = f"{counted(rates.requests_1m, 'request')} in 1m, {counted(rates.errors_5m, 'error')} in 5m"
    queue = f"{log.queued} waiting for the disk, {counted(log.lost, 'record')} lost"
    rows = [
        ("relayd", f"{status.version}, {_INTAKE[status.intake]}"),
        ("up", f"{short(status.uptime_s)} (pid {status.pid}, boot {status.boot_id})"),
        ("serving", status.address),
        ("upstream", f"{status.upstream}{' (the offline demo)' if status.demo else ''}"),
        ("streams", f"{open_streams} of {status.max_streams} open: {phases}"),
        ("lately", f"{counts}, {rates.deltas_per_s:.1f} deltas/s"),
        (
            "first token",
            "none in 5m" if median is None else f"half within {millis(median)}, 95% within {millis(p95)}",
        ),
        ("keys", f"{ring.active} active, {ring.retiring} retiring{expiry}, generation {ring.generation}"),
        ("log", f"{counted(status.seq, 'event')}, {queue}"),
        ("disk", f"{_size(disk.database_bytes)} used, {_size(disk.free_bytes)} free"),
        ("state", status.state_dir),
    ]
    return rows if log.error is None else [*rows, ("PROBLEM", log.error)]


def _size(count: int) -> str:
    """Return `512 B`, `1.5 MiB`."""
    amount, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < _KIB:
            break
        amount, unit = amount / _KIB, larger
    return f"{amount:.0f} {unit}" if unit == "B" else f"{amount:.1f} {unit}"
