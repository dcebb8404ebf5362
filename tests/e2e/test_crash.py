"""`kill -9` under load, and the start after it."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from relayd.state.records import Outcome, Phase, RequestRecord
from tests.e2e.daemon import KEY, Daemon
from tests.wire import ask, body, until

_CLIENTS = 16
_MODEL = "demo:text=words,deltas=5,interval_ms=10"
_MAY_BE_LOST_S = 3.0
"""A group of records is written after 50 ms; how long that takes is the disk's and the machine's affair."""


class _Load:
    """Clients that ask again and again, and note when each answer was whole."""

    def __init__(self, daemon: Daemon) -> None:
        self.finished: dict[str, float] = {}
        self._port = daemon.port

    @property
    def safe(self) -> set[str]:
        """The requests that ended so long ago that a crash must not lose them."""
        return {known for known, at in self.finished.items() if at < time.monotonic() - _MAY_BE_LOST_S}

    async def _client(self) -> None:
        while True:
            reply = await ask(self._port, KEY, body(_MODEL))
            request_id = reply.header("X-Request-Id")
            if reply.cut or request_id is None:
                return
            assert reply.error is None
            self.finished[request_id] = time.monotonic()

    async def run(self, clients: int) -> None:
        """Ask until the daemon is gone."""
        tasks = [asyncio.create_task(self._client(), name=f"client {n}") for n in range(clients)]
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            # The daemon's end breaks connections at any place; a wrong answer is another matter.
            if isinstance(ended, AssertionError):
                raise ended


async def test_a_crash_loses_no_more_than_the_last_moment(tmp_path: Path) -> None:
    """What ended before is there as it ended; what was open is `crashed`; the ring holds."""
    with Daemon(tmp_path) as daemon:
        load = _Load(daemon)
        running = asyncio.create_task(load.run(_CLIENTS), name="load")
        await until(lambda: len(load.safe) > 3 * _CLIENTS)
        safe = load.safe
        daemon.kill()
        await running
        daemon.start()
        _check({record.id: record for record in daemon.records()}, safe)
        assert (await ask(daemon.port, KEY, body(_MODEL))).status == 200
        assert daemon.stop() == 0
    with closing(sqlite3.connect(daemon.database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def _check(records: dict[str, RequestRecord], safe: set[str]) -> None:
    assert safe <= set(records), f"{len(safe - set(records))} finished requests are lost"
    assert {records[request_id].outcome for request_id in safe} == {Outcome.COMPLETED}
    assert {record.phase for record in records.values()} == {Phase.DONE}
    crashed = [record for record in records.values() if record.outcome is Outcome.CRASHED]
    assert crashed, "nothing was open when the daemon was killed"
    assert all(record.status is None or record.duration_ms is None for record in crashed)


async def test_how_long_answers_usually_are_survives_a_restart(tmp_path: Path) -> None:
    """Otherwise a client whose bound is small would be refused until its day ends, for a mere guess."""
    with Daemon(tmp_path) as daemon:
        bounds = {"tokens_per_day": 5000}
        generation = (await daemon.admin.status()).ring.generation
        added = await daemon.admin.add_client("web", bounds, generation=generation, idempotency_key="add")
        assert added.secret is not None
        payload = body("demo:deltas=5,interval_ms=0,prompt_tokens=1000")
        await daemon.record(await ask(daemon.port, added.secret, payload))
        assert daemon.stop() == 0
        daemon.start()
        assert (await ask(daemon.port, added.secret, payload)).error is None
