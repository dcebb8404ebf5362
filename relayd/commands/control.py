"""`relayd status`, `cancel`, `pause`, `resume`, `reload` and `drain`."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Sequence

from relayd.admin.schema import (
    AcceptState,
    Alert,
    EngineKind,
    InstanceInfo,
    PeriodUse,
    RouteStatus,
    Status,
    epoch_s,
)
from relayd.commands.console import EXIT_FAILED, Console, left, show, size, usd
from relayd.durations import millis, short
from relayd.printable import plural, printable, typeable

_INTAKE = {
    AcceptState.OPEN: "live",
    AcceptState.PAUSED: "paused: new requests are refused until `relayd resume`",
    AcceptState.DRAINING: "draining: it stops when its open streams have ended",
}

_DEMO = " (the offline demo)"
_MAX_MODELS = 5
"""Models of a route that are shown; clients choose their names."""


async def status(args: Namespace, console: Console) -> int:
    """Show the status, with a label and a sentence on each line."""
    found = await console.client(args.socket).status()
    if args.json:
        console.json(found)
    else:
        console.table(_rows(found, time.time()))
    return 0


async def cancel(args: Namespace, console: Console) -> int:
    """End one open stream."""
    await console.client(args.socket).cancel(args.id)
    if args.json:
        console.json({"id": args.id, "cancelled": True})
    else:
        console.say(
            f"Cancelled {args.id}: its client gets an error line, and the provider's stream is closed."
        )
    return 0


async def pause(args: Namespace, console: Console) -> int:
    """Refuse new requests."""
    status = await console.client(args.socket).pause()
    count = _open_streams(status)
    return _show(
        args,
        console,
        status,
        f"Paused{_which(status)}: new requests get 503; {plural(count, 'open stream')} may finish. "
        "`relayd resume` accepts new requests again.",
    )


async def resume(args: Namespace, console: Console) -> int:
    """Accept new requests again."""
    status = await console.client(args.socket).resume()
    return _show(args, console, status, f"Live: new requests are accepted at {status.address}.")


async def reload(args: Namespace, console: Console) -> int:
    """Read configuration, certificates and the provider's key again, and say what changed."""
    report = await console.client(args.socket).reload()
    exit_status = EXIT_FAILED if report.failed else 0
    if args.json:
        console.json(report)
        return exit_status
    for change in report.changed:
        console.say(f"Changed: {change}.")
    if report.waiting:
        console.say(f"Takes effect only after a restart: {', '.join(report.waiting)}.")
    if not report.changed and not report.waiting:
        console.say("The configuration has not changed.")
    for note in report.notes:
        console.note(f"Note: {note}")
    for failure in report.failed:
        console.note(f"relayd: Not reloaded on {failure}")
    return exit_status


async def drain(args: Namespace, console: Console) -> int:
    """Let the open streams finish, then stop the daemon."""
    client = console.client(args.socket)
    # Asked before the drain: after it, instances end and are not listed any more.
    known = [] if args.instance is None else (await client.instances()).instances
    status = await client.drain(args.instance)
    if args.instance is not None:
        return _show(args, console, status, _draining(args.instance, known, status.drain_timeout_s))
    count = _open_streams(status)
    rest = (
        f"{plural(count, 'open stream')} may take {status.drain_timeout_s:g} s more, then relayd stops."
        if count
        else "no stream is open, so relayd stops now."
    )
    return _show(args, console, status, f"Draining{_which(status)}: new requests get 503; {rest}")


def _draining(name: str, known: Sequence[InstanceInfo], timeout_s: float) -> str:
    """Return what a drain of one instance does."""
    named = [one for one in known if name in (one.name, one.boot_id, one.host)]
    stopping = [one for one in known if any(map(one.stops_with, named))]
    what, they = name, "its open streams may take {} s more, then it stops."
    if len(stopping) > 1:
        names = ", ".join(one.name for one in stopping)
        what = f"all {len(stopping)} workers of {named[0].host} ({names})"
        they = "their open streams may take {} s more, then they stop."
    rest = " The other instances serve on." if len(known) > len(stopping) else ""
    return f"Draining {what}: {they.format(f'{timeout_s:g}')}{rest}"


def _show(args: Namespace, console: Console, status: Status, sentence: str) -> int:
    """Say what a command did; return 1 if an instance did not answer it."""
    show(args, console, status, sentence)
    if not status.silent:
        return 0
    console.note(
        f"relayd: No answer came from {', '.join(status.silent)} within a second; there it may happen later."
    )
    return EXIT_FAILED


def _which(status: Status) -> str:
    """Return which instances have done it, if there are several."""
    silent = len(status.silent)
    # Without a database, nothing tells whether the silent ones still live.
    count = max(status.instances.live, silent + 1)
    if count == 1:
        return ""
    return f" {count - silent} of {count} instances" if silent else f" all {count} instances"


def _open_streams(status: Status) -> int:
    streams = status.streams
    return streams.connecting + streams.waiting + streams.streaming


def _routes(status: Status, now_s: float) -> list[tuple[str, str]]:
    return [(f"route {route.name}", typeable(_route(route, now_s))) for route in status.routes]


def _route(route: RouteStatus, now_s: float) -> str:
    counts = f"{plural(route.requests, 'request')}, {plural(route.failures, 'failure')}"
    said = f"{route.base_url}, {counts}: "
    said += "ok" if route.until is None else f"cools down, {_again(route.until, now_s)}: {route.error}"
    shown, hidden = route.models[:_MAX_MODELS], len(route.models) - _MAX_MODELS
    models = [f"{printable(model.model)} ({_again(model.until, now_s)})" for model in shown]
    if hidden > 0:
        models.append(f"{hidden} more")
    return f"{said}; cools down for {', '.join(models)}" if models else said


def _again(until: str, now_s: float) -> str:
    left_s = epoch_s(until) - now_s
    return f"tried again in {short(left_s)}" if left_s > 0 else "tried by the next request"


def _used(use: PeriodUse | None) -> str:
    return "unknown" if use is None else f"{plural(use.tokens, 'token')} ({usd(use.cost_usd)})"


def _alert(alert: Alert, now_s: float) -> str:
    where = f" ({alert.instance})" if alert.instance else ""
    return f"for {short(now_s - epoch_s(alert.since))}{where}: {printable(alert.sentence)}"


def _rows(status: Status, now_s: float) -> list[tuple[str, str]]:
    streams, rates, ring, log, disk = status.streams, status.rates, status.ring, status.log, status.disk
    median, p95 = rates.first_token_p50_ms, rates.first_token_p95_ms
    expiry = "" if ring.next_expiry_at is None else f" ({left(ring.next_expiry_at, now_s)})"
    phases = f"{streams.connecting} connecting, {streams.waiting} waiting, {streams.streaming} streaming"
    counts = f"{plural(rates.requests_1m, 'request')} in 1m, {plural(rates.errors_5m, 'error')} in 5m"
    queue = f"{log.queued} waiting for the disk, {plural(log.lost, 'record')} lost"
    instances, engine = status.instances, status.engine
    rows = [
        ("relayd", typeable(f"{status.version}, {_INTAKE[status.intake]}")),
        ("up", f"{short(status.uptime_s)} (pid {status.pid}, boot {status.boot_id})"),
        ("serving", status.address),
        *(_routes(status, now_s) or [("upstream", f"{status.upstream}{_DEMO if status.demo else ''}")]),
        ("streams", f"{_open_streams(status)} of {status.max_streams} open: {phases}"),
        ("lately", f"{counts}, {rates.deltas_per_s:.1f} deltas/s"),
        (
            "first token",
            "none in 5m" if median is None else f"half within {millis(median)}, 95% within {millis(p95)}",
        ),
        ("used", f"{_used(status.today)} today, {_used(status.month)} this month"),
        ("keys", f"{ring.active} active, {ring.retiring} retiring{expiry}, generation {ring.generation}"),
        ("log", f"{plural(status.seq, 'event')}, {queue}"),
    ]
    if disk is not None:
        rows.append(("disk", f"{size(disk.database_bytes)} used, {size(disk.free_bytes)} free"))
    rows.append(("state", status.state_dir))
    if engine.kind is EngineKind.POSTGRESQL:
        took = "" if engine.latency_ms is None else f", answers within {engine.latency_ms:.1f} ms"
        rows.append(("database", f"PostgreSQL, {engine.where}{took}"))
    if instances.live > 1:
        have = f"{instances.have_ring} of {instances.live} have the newest keys"
        rows.append(("instances", f"{have}; this is the answer of {status.instance}"))
    if status.first_key is not None:
        rows.append(("first key", status.first_key))
    if status.silent:
        rows.append(("PROBLEM", f"No answer within a second from {', '.join(status.silent)}"))
    rows += [("ALERT", _alert(alert, now_s)) for alert in status.alerts]
    rows += [("PROBLEM", problem) for problem in dict.fromkeys((engine.error, log.error)) if problem]
    return rows
