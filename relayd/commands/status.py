"""`relayd status`: the daemon at a glance."""

from __future__ import annotations

import time
from argparse import Namespace

from relayd.admin.schema import Intake, Status
from relayd.commands.console import Console
from relayd.commands.words import counted, left, millis, size
from relayd.durations import short


async def run(args: Namespace, console: Console) -> int:
    """Show it."""
    status = await console.client(args.socket).status()
    if args.json:
        console.json(status)
    else:
        console.table(rows(status, time.time()))
    return 0


def rows(status: Status, now_s: float) -> list[tuple[str, str]]:
    """What there is to say, a label and a sentence each."""
    demo = " (the offline demo)" if status.demo else ""
    lines = [
        ("relayd", f"{status.version}, {_INTAKE[status.intake]}"),
        ("up", f"{short(status.uptime_s)} (pid {status.pid}, boot {status.boot_id})"),
        ("serving", status.address),
        ("upstream", f"{status.upstream}{demo}"),
        ("streams", _streams(status)),
        ("lately", _lately(status)),
        ("first token", _first_token(status)),
        ("keys", _keys(status, now_s)),
        ("log", _log(status)),
        ("disk", f"{size(status.disk.database_bytes)} used, {size(status.disk.free_bytes)} free"),
        ("state", status.state_dir),
    ]
    if status.log.error is not None:
        lines.append(("PROBLEM", status.log.error))
    return lines


_INTAKE = {
    Intake.OPEN: "live",
    Intake.PAUSED: "paused: new requests are refused until `relayd resume`",
    Intake.DRAINING: "draining: it stops when its open streams have ended",
}


def _streams(status: Status) -> str:
    streams = status.streams
    opened = streams.connecting + streams.waiting + streams.streaming
    return (
        f"{opened} of {status.max_streams} open: {streams.connecting} connecting, {streams.waiting} waiting, "
        f"{streams.streaming} streaming"
    )


def _lately(status: Status) -> str:
    rates = status.rates
    return (
        f"{counted(rates.requests_1m, 'request')} in 1m, {counted(rates.errors_5m, 'error')} in 5m, "
        f"{rates.deltas_per_s:.1f} deltas/s"
    )


def _first_token(status: Status) -> str:
    half, most = status.rates.first_token_p50_ms, status.rates.first_token_p95_ms
    return "none in 5m" if half is None else f"half within {millis(half)}, 95% within {millis(most)}"


def _keys(status: Status, now_s: float) -> str:
    ring = status.ring
    expiry = "" if ring.next_expiry_at is None else f" ({left(ring.next_expiry_at, now_s)})"
    return f"{ring.active} active, {ring.retiring} retiring{expiry}, generation {ring.generation}"


def _log(status: Status) -> str:
    log = status.log
    return (
        f"{counted(status.seq, 'event')}, {log.queued} waiting for the disk, "
        f"{counted(log.lost, 'record')} lost"
    )
