"""`relayd log`: the requests to the relay, oldest first, and with `-f` those that end from now on."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import AsyncIterator
from contextlib import aclosing

from relayd.admin.client import AdminClient, AdminClientError, follow
from relayd.admin.schema import (
    Audited,
    Ended,
    Event,
    Filter,
    Gap,
    Hello,
    Lost,
    RequestRecord,
    epoch_s,
    parse_filter,
    utc_text,
)
from relayd.commands.console import Console
from relayd.durations import millis
from relayd.pipes import while_read

_PAGE = 1000
_TAIL = 50
_FOLLOW_TAIL = 10
_OVERLAP_S = 10.0
_COLUMNS = {
    "TIME (UTC)": 24,
    "ST": 3,
    "OUTCOME": 14,
    "CLIENT": 12,
    "MODEL": 18,
    "FIRST": 8,
    "TOTAL": 8,
    "DELTAS": 6,
    "FROM": 15,
    "ID": 16,
}


async def run(args: Namespace, console: Console) -> int:
    """Show the newest records, or all since a time; then follow if asked to."""
    printer = _Printer(console, parse_filter(args.where), as_json=args.json)
    client = console.client(args.socket)
    if args.follow:
        await while_read(console.out, _follow(client, args, printer))
    else:
        async for record in _past(client, args, None, _TAIL):
            printer.record(record)
    return 0


async def _follow(client: AdminClient, args: Namespace, printer: _Printer) -> None:
    def on_trouble(error: AdminClientError) -> None:
        printer.console.note(f"{error} Trying again.")

    async with aclosing(follow(client.events, on_trouble=on_trouble)) as events:
        hello = await anext(events)
        newest = hello.seq if isinstance(hello, Hello) else 0
        # A request that ends while the past is read is in the past and comes as an event too.
        since_s = time.time() - _OVERLAP_S
        async for record in _past(client, args, newest, _FOLLOW_TAIL):
            if record.outcome is not None:
                printer.record(record)
                if epoch_s(record.started_at) + (record.duration_ms or 0) / 1000 >= since_s:
                    printer.printed.add(record.id)
        printer.flush()
        async for event in events:
            printer.event(event)


async def _past(
    client: AdminClient, args: Namespace, newest: int | None, tail: int
) -> AsyncIterator[RequestRecord]:
    """Yield records up to `newest`, oldest first: all since `--since`, else the last few.

    Pages come newest first, so the borders of all are found before any is shown: memory holds one page,
    however many there are.
    """
    before = None if newest is None else newest + 1
    if args.since is None:
        page = await client.requests(where=args.where, before=before, limit=tail)
        for record in reversed(page.records):
            yield record
        return
    since = utc_text(time.time() - args.since)
    borders = [before]
    while True:
        page = await client.requests(where=args.where, before=borders[-1], limit=_PAGE)
        if page.next_before is None or page.records[-1].started_at < since:
            break
        borders.append(page.next_before)
    for border in reversed(borders):
        page = await client.requests(where=args.where, before=border, limit=_PAGE)
        for record in reversed(page.records):
            if record.started_at >= since:
                yield record


class _Printer:
    """Writes records, and what happens between them."""

    def __init__(self, console: Console, where: Filter, *, as_json: bool) -> None:
        self.console = console
        self.printed: set[str] = set()
        """Records whose end may still come as an event."""
        self._where = where
        self._as_json = as_json
        self._has_header = False

    def record(self, record: RequestRecord) -> None:
        """Write one request."""
        if self._as_json:
            self.console.json(record)
            return
        if not self._has_header:
            self._has_header = True
            self.console.say(_line(tuple(_COLUMNS)))
        self.console.say(_record_line(record))

    def event(self, event: Event) -> None:
        """Write an event that came while following; a request is shown when it has ended."""
        match event:
            case Ended(record=record):
                if record.id in self.printed:
                    self.printed.remove(record.id)
                elif self._where.matches(record):
                    self.record(record)
            case Audited(entry=entry) if not self._as_json:
                what = " ".join([entry.action, entry.client or "", *entry.key_ids]).strip()
                detail = f" ({entry.detail})" if entry.detail else ""
                self.console.say(f"{entry.at}  -- {entry.login}: {what}, {entry.result}{detail}")
            case Gap(first=first, last=last):
                self._between(event, f"-- events {first} to {last} are no longer kept")
            case Lost(at=at, count=count, reason=reason):
                self._between(event, f"{at}  -- {count} records were lost: {reason}")
        self.flush()

    def flush(self) -> None:
        """Let a reader of our output see it now, also through a pipe."""
        self.console.out.flush()

    def _between(self, event: Event, sentence: str) -> None:
        if self._as_json:
            self.console.json(event)
        else:
            self.console.say(sentence)


def _record_line(record: RequestRecord) -> str:
    error = "" if record.error is None else f"{record.error.code}: {record.error.message}"
    cells = (
        record.started_at,
        "-" if record.status is None else str(record.status),
        "running" if record.outcome is None else record.outcome.value,
        record.client or "-",
        record.model or "-",
        millis(record.first_token_ms),
        millis(record.duration_ms),
        str(record.deltas),
        record.ip,
        record.id,
    )
    return _line(cells, error)


def _line(cells: tuple[str, ...], rest: str = "") -> str:
    widths = _COLUMNS.items()
    padded = [
        _cut(cell, width).ljust(width) if name in {"CLIENT", "MODEL"} else cell.ljust(width)
        for cell, (name, width) in zip(cells, widths, strict=True)
    ]
    return " ".join([*padded, rest]).rstrip()


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
