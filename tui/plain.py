"""Line mode: every request as one line of plain text, for screen readers, dumb terminals and pipes."""

from __future__ import annotations

import asyncio
import sys
from typing import TextIO

from relayd.admin.client import AdminClientError
from relayd.admin.link import Link
from relayd.admin.schema import Audited, Ended, Gap, Hello, Lost, RequestRecord, Started, epoch_s
from tui.model.descriptions import cause
from tui.model.text import neutral, neutral_entry, neutral_record
from tui.model.units import clock, duration, plural

_AGAIN_S = (0.25, 0.5, 1.0, 2.0, 5.0)
_BACKLOG = 10


def ended_line(record: RequestRecord) -> str:
    """One ended request in words."""
    outcome = record.outcome.value.replace("_", " ") if record.outcome is not None else "running"
    error = f", {record.error.code}" if record.error is not None else ""
    return (
        f"{clock(epoch_s(record.started_at))} {outcome}{error}:"
        f" {record.client or 'no client'} at {record.ip}, model {record.model or 'none'},"
        f" status {record.status or 'none'},"
        f" first token {duration(record.first_token_ms)}, took {duration(record.duration_ms)},"
        f" {plural(record.completion_tokens or record.deltas, 'token')}. {cause(record)}"
    )


def event_line(event: object) -> str | None:
    """One event in words; None for what line mode leaves out."""
    match event:
        case Ended():
            return ended_line(neutral_record(event.record))
        case Started() if event.record.outcome is not None:
            return None
        case Audited():
            entry = neutral_entry(event.entry)
            keys = f" keys {', '.join(entry.key_ids)}" if entry.key_ids else ""
            return f"{clock(epoch_s(entry.at))} audit: {entry.login} {entry.action} {entry.result}{keys}"
        case Lost():
            return (
                f"{clock(epoch_s(event.at))} lost: {plural(event.count, 'record')}, {neutral(event.reason)}"
            )
        case Gap():
            return f"gap: events {event.first} to {event.last} are no longer kept"
        case _:
            return None


def run_plain(link: Link, out: TextIO) -> int:
    """Write lines until interrupted; 0 then, 1 when the reader of the lines is gone."""
    try:
        asyncio.run(_Lines(link, out).run())
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:
        # Python would try to flush into the broken pipe again at exit.
        sys.stderr.close()
        return 1
    return 0


class _Lines:
    """One run of line mode: where it is in the log, and the daemon's life it belongs to."""

    def __init__(self, link: Link, out: TextIO) -> None:
        self._link = link
        self._out = out
        self._seq: int | None = None
        self._boot_id = ""
        self._tries = 0

    def _say(self, line: str) -> None:
        self._out.write(line + "\n")
        self._out.flush()

    async def run(self) -> None:
        while True:
            try:
                await self._session()
            except AdminClientError as error:
                if self._tries == 0:
                    self._say(f"no contact: {neutral(str(error), 500)}")
            await asyncio.sleep(_AGAIN_S[min(self._tries, len(_AGAIN_S) - 1)])
            self._tries += 1

    async def _session(self) -> None:
        if self._seq is None:
            status = await self._link.status()
            self._boot_id, self._seq = status.boot_id, status.seq
            self._say(f"relayd {neutral(status.version)} {status.intake.value} at {neutral(status.address)}")
            for record in reversed((await self._link.requests(limit=_BACKLOG)).records):
                self._say(ended_line(neutral_record(record)))
        async for event in self._link.events(self._seq):
            self._tries = 0
            if isinstance(event, Hello):
                if event.boot_id != self._boot_id:
                    self._say("daemon restarted: what was open then is lost")
                self._boot_id = event.boot_id
                continue
            self._seq = max(self._seq, getattr(event, "seq", 0) or getattr(event, "last", 0))
            line = event_line(event)
            if line is not None:
                self._say(line)
