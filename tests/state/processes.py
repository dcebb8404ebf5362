"""One process's way to a database that others use too: in a test, and as a program of its own.

As a program it is told where the database is and its own boot id, and takes one command a line.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar

from relayd.state import postgres
from relayd.state.budget import Budget, Demand, Standing, Use
from relayd.state.crash_recovery import CrashRecovery
from relayd.state.database import Database
from relayd.state.engine import Connection, Engine
from relayd.state.errors import StateError
from relayd.state.postgres import Postgres
from relayd.state.reader import LogReader
from relayd.state.records import Client, LogEvent, RequestRecord
from relayd.state.request_log import RequestLog
from relayd.state.sqlite import Sqlite
from relayd.state.writer import Writer
from tests.state.harness import Clock, a_record, as_ended, patient_url
from tests.state.test_budget import a_client, a_demand
from tests.wire import PATIENCE_S

T = TypeVar("T")
REQUESTS = 50
"""What each process asks for, for each client."""
_WAVE = 10
CLIENTS = (
    a_client("requests", requests_per_minute=50),
    a_client("tokens-minute", tokens_per_minute=5000),
    a_client("tokens-day", tokens_per_day=5000),
    a_client("tokens-month", tokens_per_month=5000),
    a_client("usd-day", usd_per_day=0.5),
    a_client("usd-month", usd_per_month=0.5),
)
"""One bound of each kind, each with room for 50 requests."""


class Process:
    """The log, the budget and the crash recovery of one process; they write when they are told to.

    Args:
        engine: the database.
        boot_id: of the process.
        live: returns the boot ids of all that are alive.
    """

    def __init__(self, engine: Engine, boot_id: str, live: Callable[[], Collection[str]] = tuple) -> None:
        self.boot_id = boot_id
        self._runner = asyncio.Runner()
        connection = engine.open()
        self.published: list[LogEvent] = []
        self.database = Database(engine, connection, boot_id, self.published.extend, is_shared=True)
        self.writer = Writer(self.database)
        self.budget = Budget(self.writer, self.database, Clock())
        self.log = RequestLog(
            self.database, lambda: None, Clock(), self.budget.settle, self.budget.settle_lost
        )

        def others(connection: Connection) -> Collection[str]:
            del connection
            return live()

        self.recovery = CrashRecovery(self.database, self.budget, others)
        self.reader = LogReader(engine)
        self.writer.start([self.budget.lost_task])

    def do(self, function: Callable[[], T]) -> T:
        """Run a function on the writer's thread."""
        return self.writer.call(function).result(PATIENCE_S)

    def start(self, *numbers: int) -> list[RequestRecord]:
        """Record that requests start; return their records."""
        records = [a_record(number, self.boot_id) for number in numbers]
        for record in records:
            self.log.started(record)
        self.write()
        return records

    def end(self, *records: RequestRecord) -> None:
        """Record that requests end."""
        for record in records:
            self.log.ended(as_ended(record))
        self.write()

    def write(self) -> None:
        """Write all that waits for the log."""
        while (delay_s := self.do(self.log.write)) is not None:
            time.sleep(delay_s)

    def recover(self) -> None:
        """End what dead processes left."""
        while self.do(self.recovery.run) is not None:
            pass

    def reserve(self, *demands: Demand) -> list[list[Standing] | BaseException]:
        """Reserve at once; return each answer or refusal."""

        async def reserve() -> list[list[Standing] | BaseException]:
            return await asyncio.gather(*map(self.budget.reserve, demands), return_exceptions=True)

        return self._runner.run(reserve())

    def used(self, client: Client) -> Use:
        """Return what a client used today, reservations included."""
        return self._runner.run(self.budget.standing(client))[1][1]

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Return what is in the database."""
        return self.do(lambda: self.database.connection.execute(query).rows)

    def close(self) -> None:
        """Write what waits, and close the connection."""
        self.writer.close(PATIENCE_S, self.log.drain)
        self.database.engine.close()
        self._runner.close()


def engine_at(place: str) -> Engine:
    """Return the engine of a place as a program is given it."""
    if place.startswith("postgresql:"):
        return Postgres(patient_url(place))
    return Sqlite(Path(place))


@contextmanager
def programs(place: str, boot_ids: Sequence[str]) -> Iterator[list[subprocess.Popen[str]]]:
    """Start a process for each boot id, ready for commands; kill them at the end."""
    with ExitStack() as stack:
        made = []
        for boot_id in boot_ids:
            child = subprocess.Popen(
                [sys.executable, "-m", "tests.state.processes", place, boot_id],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(child)
            stack.callback(child.kill)
            made.append(child)
        yield made


def tell(children: Sequence[subprocess.Popen[str]], command: str) -> list[Any]:
    """Give all the same command at once; return what each answers."""
    for child in children:
        assert child.stdin is not None
        child.stdin.write(f"{command}\n")
        child.stdin.flush()
    answers = []
    for child in children:
        assert child.stdout is not None
        answers.append(json.loads(child.stdout.readline()))
    return answers


def _reserve(process: Process, number: int) -> dict[str, list[int]]:
    """Ask for all clients; return the numbers of the requests that passed, by client."""
    passed: dict[str, list[int]] = {client.name: [] for client in CLIENTS}
    # In waves, so that the processes take turns.
    for wave in range(REQUESTS // _WAVE):
        demands = [
            a_demand(10_000 * number + 1000 * at + _WAVE * wave + n, client, 100, usd=0.01)
            for n in range(_WAVE)
            for at, client in enumerate(CLIENTS)
        ]
        while demands:
            answers = process.reserve(*demands)
            for demand, answer in zip(demands, answers, strict=True):
                if isinstance(answer, list):
                    passed[demand.client.name].append(int(demand.request_id.removeprefix("req-")))
            # A busy machine: its client would come again.
            demands = [
                demand
                for demand, answer in zip(demands, answers, strict=True)
                if isinstance(answer, StateError)
            ]
    return passed


def _record(process: Process, passed: dict[str, list[int]]) -> None:
    """Record the requests that passed, and as many of a client without bounds in each process."""
    unbounded = int(process.boot_id.rpartition("-")[2])
    of_all = [
        *passed.items(),
        ("web", range(100_000 * (unbounded + 1), 100_000 * (unbounded + 1) + REQUESTS)),
    ]
    for client, numbers in of_all:
        for at, number in enumerate(numbers, 1):
            record = a_record(number, process.boot_id)
            record.client = client
            process.log.started(record)
            record.prompt_tokens, record.completion_tokens = 10, 30
            process.log.ended(as_ended(record))
            if at % _WAVE == 0:
                process.write()
    process.write()


def _run(place: str, boot_id: str) -> None:
    # A busy machine may need longer.
    postgres.TIMEOUT_S = PATIENCE_S
    process = Process(engine_at(place), boot_id)
    passed: dict[str, list[int]] = {}
    for line in sys.stdin:
        if line == "reserve\n":
            passed = _reserve(process, int(boot_id.rpartition("-")[2]))
        elif line == "record\n":
            _record(process, passed)
        sys.stdout.write(f"{json.dumps(passed)}\n")
        sys.stdout.flush()
    process.close()


if __name__ == "__main__":
    _run(*sys.argv[1:])
