"""The database: records written a second, and what a question costs over a million of them."""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from relayd.state.filter import parse_filter
from relayd.state.reader import LogReader
from relayd.state.records import Outcome, Phase, RequestRecord, utc_text
from relayd.state.state import State

_BURST = 4_000
"""Requests whose start and end are queued at once: with what may still wait, less than the queue holds."""
_TRIES = 5
_FILTERS = ("status>=500", "client=web outcome!=completed", "first_token_ms>2900", "ip=10.9.9.9")


_SIZES = (10_000, 100_000, 1_000_000)


def measure(sizes: Sequence[int] = _SIZES) -> str:
    """Write so many requests, ask for them, and say both as a table, a column a size."""
    columns = [dict(_of(records)) for records in sizes]
    head = f"| requests in the database; load average {os.getloadavg()[0]:.1f} "
    return "\n".join(
        [
            head + "".join(f"| {records:,} " for records in sizes) + "|",
            "| --- " + "| --: " * len(sizes) + "|",
            *(f"| {name} | {' | '.join(column[name] for column in columns)} |" for name in columns[0]),
        ]
    )


def _of(records: int) -> Sequence[tuple[str, str]]:
    with tempfile.TemporaryDirectory(prefix="relayd-bench-") as folder:
        state = State.open(
            Path(folder), boot_id="bench", keep_days=3650, max_mib=1 << 20, on_commit=lambda _events: None
        )
        try:
            rate = _write(state, records)
            rows = [("records written a second", f"{rate:,.0f}")]
            rows += _ask(state.reader, records)
            rows.append(("MiB on disk", f"{state.disk().database_bytes / 2**20:,.0f}"))
        finally:
            state.close()
    return rows


def _write(state: State, records: int) -> float:
    """Requests a second, each with a start and an end, until all are on disk."""
    chance = random.Random(1)  # noqa: S311 - a reproducible mixture, nothing secret
    began = time.monotonic()
    started_s = time.time() - records / 10
    for first in range(0, records, _BURST):
        for number in range(first, min(first + _BURST, records)):
            record = _record(number, started_s + number / 10, chance)
            state.log.started(record)
            _finish(record, chance)
            state.log.ended(record)
        while state.log.queued > _BURST // 4:
            time.sleep(0.001)
    while state.log.queued:
        time.sleep(0.001)
    if state.log.lost:
        raise RuntimeError(f"{state.log.lost} records were lost; the figure would be wrong.")
    return records / (time.monotonic() - began)


def _record(number: int, started_s: float, chance: random.Random) -> RequestRecord:
    return RequestRecord(
        id=f"{number:016d}",
        boot_id="bench",
        started_at=utc_text(started_s),
        client=chance.choice(("web", "default", "phone")),
        key_id="key00001",
        ip=f"10.{chance.randrange(10)}.{chance.randrange(10)}.{chance.randrange(10)}",
        user_agent="Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36",
        path="/chat",
        model=chance.choice(("gpt-4o-mini", "gpt-4o", "o4-mini")),
    )


def _finish(record: RequestRecord, chance: random.Random) -> None:
    whole = chance.random() > 0.02  # noqa: PLR2004 - one in fifty fails
    record.phase = Phase.DONE
    record.status = 200 if whole else 502
    record.outcome = Outcome.COMPLETED if whole else Outcome.UPSTREAM_ERROR
    record.connect_ms, record.first_token_ms = chance.randrange(50), chance.randrange(3000)
    record.duration_ms, record.deltas, record.bytes_out = 8000, 300, 20_000
    record.prompt_tokens, record.completion_tokens = 500, 300


def _ask(reader: LogReader, records: int) -> Sequence[tuple[str, str]]:
    middle = records // 2
    day_ago = utc_text(time.time() - 86_400)
    questions: list[tuple[str, Callable[[], object]]] = [
        ("newest 100", lambda: reader.page(limit=100)),
        ("100 from the middle", lambda: reader.page(before=middle, limit=100)),
        ("one by its id", lambda: reader.get(f"{middle:016d}")),
        ("1,000 events to replay", lambda: reader.events(middle, 1000)),
        ("a day in 10-minute buckets", lambda: reader.buckets(day_ago, 600)),
    ]
    for text in _FILTERS:
        where = parse_filter(text)
        questions.append((f"newest 100 with `{text}`", partial(reader.page, where, limit=100)))
    return [(f"ms: {name}", f"{_median_ms(ask):,.1f}") for name, ask in questions]


def _median_ms(ask: Callable[[], object]) -> float:
    times = []
    for _ in range(_TRIES):
        began = time.perf_counter()
        ask()
        times.append((time.perf_counter() - began) * 1000)
    return statistics.median(times)
