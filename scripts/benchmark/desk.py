"""A simulated daemon behind a Unix socket: feeds the operator's app at a rate, in a process of its own.

`python -m benchmark.desk SOCKET REQUESTS_A_SECOND BACKLOG`. Each request is two events, a start and,
a second later, an end; once a second the open ones are told as `progress`.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import msgspec

from relayd.admin.schema import (
    PROTOCOL,
    PROTOCOL_HEADER,
    AuditPage,
    Disk,
    Hello,
    Intake,
    LogHealth,
    Progress,
    Rates,
    RequestPage,
    Ring,
    RingSummary,
    Status,
    StreamCounts,
    StreamProgress,
)
from relayd.state.events import Ended, Started
from relayd.state.records import Outcome, Phase, RequestRecord, utc_text

_BOOT = "bench"
_TICK_S = 0.05
_CLIENTS = ("web", "default", "phone", "ci")
_MODELS = ("gpt-4o-mini", "gpt-4o", "o4-mini")
_encode = msgspec.json.Encoder().encode


def _record(number: int, seq: int, at_s: float) -> RequestRecord:
    return RequestRecord(
        id=f"{number:016d}",
        boot_id=_BOOT,
        started_at=utc_text(at_s),
        seq=seq,
        client=_CLIENTS[number % len(_CLIENTS)],
        key_id="key00001",
        ip=f"10.0.{number % 7}.{number % 31}",
        user_agent="Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36",
        path="/chat",
        model=_MODELS[number % len(_MODELS)],
    )


def _end(record: RequestRecord, number: int) -> None:
    whole = number % 50 > 0
    record.phase, record.status = Phase.DONE, 200 if whole else 502
    record.outcome = Outcome.COMPLETED if whole else Outcome.UPSTREAM_ERROR
    record.connect_ms, record.first_token_ms, record.duration_ms = number % 50, 80 + number % 400, 1000
    record.deltas, record.bytes_out = 60 + number % 200, 20_000
    record.prompt_tokens, record.completion_tokens = 500, 60 + number % 200


@dataclass
class Desk:
    """What the daemon would hold."""

    requests_per_s: float
    records: list[RequestRecord] = field(default_factory=list)
    seq: int = 0
    began_s: float = field(default_factory=time.time)

    def fill(self, backlog: int) -> None:
        """So many ended requests, ten a second until now."""
        for number in range(backlog):
            record = _record(number, self.seq + 1, self.began_s - (backlog - number) / 10)
            _end(record, number)
            self.records.append(record)
            self.seq += 2

    def status(self) -> Status:
        """At a glance."""
        return Status(
            version="bench",
            boot_id=_BOOT,
            pid=1,
            started_at=utc_text(self.began_s),
            uptime_s=int(time.time() - self.began_s),
            intake=Intake.LIVE,
            address="http://127.0.0.1:1",
            upstream="http://127.0.0.1:2/v1",
            demo=False,
            state_dir="(simulated)",
            seq=self.seq,
            streams=StreamCounts(streaming=int(self.requests_per_s)),
            max_streams=4096,
            drain_timeout_s=30.0,
            rates=Rates(
                requests_1m=int(self.requests_per_s * 60),
                deltas_per_s=self.requests_per_s * 100,
                errors_5m=0,
                first_token_p50_ms=300,
                first_token_p95_ms=900,
            ),
            log=LogHealth(queued=0, lost=0, error=None),
            disk=Disk(1 << 20, 1 << 30),
            ring=RingSummary(generation=1, active=0, retiring=0, next_expiry_at=None),
        )

    def page(self, query: dict[str, list[str]]) -> RequestPage:
        """Newest first; the filter is none of the benchmark's."""
        limit = int(query.get("limit", ["100"])[0])
        before = int(query.get("before", [str(self.seq + 1)])[0])
        # Records have every second number, from 1.
        last = min(len(self.records), before // 2)
        first = max(0, last - limit)
        records = self.records[first:last][::-1]
        return RequestPage(records, records[-1].seq if first and records else None)

    async def feed(self, writer: asyncio.StreamWriter) -> None:
        """Events until the reader leaves; a reader that is late makes us late, as the daemon's hub is."""
        _chunk(writer, Hello(_BOOT, "bench", self.seq))
        open_now: deque[tuple[float, int, RequestRecord]] = deque()
        number, begun, told_s = len(self.records), time.monotonic(), time.monotonic()
        done = 0
        while not writer.is_closing():
            now, now_s = time.monotonic(), time.time()
            due = int((now - begun) * self.requests_per_s)
            for _ in range(due - done):
                self.seq += 1
                record = _record(number, self.seq, now_s)
                open_now.append((now + 1, number, record))
                number += 1
                _chunk(writer, Started(self.seq, _BOOT, record))
            done = due
            while open_now and open_now[0][0] <= now:
                _, which, record = open_now.popleft()
                _end(record, which)
                self.seq += 1
                _chunk(writer, Ended(self.seq, _BOOT, record))
            if open_now and now - told_s >= 1:
                told_s = now
                _chunk(
                    writer, Progress(utc_text(now_s), [_progress(r, now + 1 - end) for end, _, r in open_now])
                )
            await writer.drain()
            await asyncio.sleep(_TICK_S)


def _progress(record: RequestRecord, age_s: float) -> StreamProgress:
    return StreamProgress(
        id=record.id,
        client=record.client,
        key_id=record.key_id,
        ip=record.ip,
        model=record.model,
        phase=Phase.STREAMING,
        waiting_for="upstream",
        age_ms=int(age_s * 1000),
        deltas=int(age_s * 100),
        bytes_out=int(age_s * 20_000),
        stalled_ms=0,
        last_delta_ms=10,
    )


def _chunk(writer: asyncio.StreamWriter, event: object) -> None:
    line = _encode(event) + b"\n"
    writer.write(b"%x\r\n%s\r\n" % (len(line), line))


async def _answer(desk: Desk, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    head = f"HTTP/1.1 200 OK\r\n{PROTOCOL_HEADER}: {PROTOCOL}\r\n"
    try:
        request = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        target = urlsplit(request.split(" ")[1])
        if target.path == "/events":
            writer.write(f"{head}Transfer-Encoding: chunked\r\n\r\n".encode())
            await desk.feed(writer)
            return
        answers = {
            "/status": desk.status,
            "/keys": lambda: Ring(1, []),
            "/audit": lambda: AuditPage([], None),
        }
        found = answers.get(target.path, lambda: desk.page(parse_qs(target.query)))()
        body = _encode(found)
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        await writer.drain()
    except (ConnectionError, asyncio.IncompleteReadError):
        # The app ended: nobody is left to answer.
        return
    finally:
        writer.close()


async def _serve(socket: Path, requests_per_s: float, backlog: int) -> None:
    desk = Desk(requests_per_s)
    desk.fill(backlog)
    server = await asyncio.start_unix_server(lambda r, w: _answer(desk, r, w), socket)
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve(Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])))
