"""Several processes on one database: one log, one set of bounds, and who ends what a dead one left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import pytest

from relayd.state.budget import Budget, Demand, OverBudget, Standing, Use
from relayd.state.crash_recovery import CrashRecovery
from relayd.state.database import Database
from relayd.state.engine import Connection, Engine, EngineError
from relayd.state.errors import StateError, StateUnreachable
from relayd.state.postgres import Postgres
from relayd.state.reader import LogReader
from relayd.state.records import Client, Ended, LogEvent, Lost, Outcome, RequestRecord, Started, UsageSource
from relayd.state.request_log import RETRY_S, RequestLog
from relayd.state.sqlite import Sqlite
from relayd.state.writer import Writer
from tests.state.harness import (
    Clock,
    a_record,
    as_ended,
    make_database,
    patience,
    patient_url,
)
from tests.state.lossy_proxy import LossyProxy
from tests.state.test_budget import a_client, a_demand
from tests.support.postgres import Postgres as Server
from tests.wire import PATIENCE_S, wait_until

T = TypeVar("T")
_REQUESTS = 50
"""What each process asks for, for each client; in waves, so that the processes take turns."""
_WAVE = 10
_CLIENTS = (
    a_client("requests", requests_per_minute=50),
    a_client("tokens-minute", tokens_per_minute=5000),
    a_client("tokens-day", tokens_per_day=5000),
    a_client("tokens-month", tokens_per_month=5000),
    a_client("usd-day", usd_per_day=0.5),
    a_client("usd-month", usd_per_month=0.5),
)
"""One bound of each kind, each with room for 50 requests."""
_TOKENS = a_client(tokens_per_day=1000)


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


@pytest.fixture(autouse=True)
def _patience() -> Iterator[None]:
    """Let PostgreSQL take as long as a busy machine needs."""
    with patience():
        yield


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Engine]:
    """Returns one process's way to a new database."""
    if request.param == "postgresql":
        url = patient_url(request.getfixturevalue("postgres_url"))
        return lambda: Postgres(url)
    path = make_database(tmp_path / "state")
    return lambda: Sqlite(path)


@pytest.fixture
def live() -> set[str]:
    """Which processes are taken for alive."""
    return set()


@pytest.fixture
def start(engine: Callable[[], Engine], live: set[str]) -> Iterator[Callable[[str], Process]]:
    """Start processes; close them at the end."""
    with ExitStack() as stack:

        def start(boot_id: str) -> Process:
            process = Process(engine(), boot_id, lambda: live)
            stack.callback(process.close)
            live.add(boot_id)
            return process

        yield start


def replayed(process: Process) -> list[Started | Ended | Lost]:
    """Return what the log says happened, which has no gap."""
    events = [
        event for event in process.reader.events(0, 10_000) if isinstance(event, Started | Ended | Lost)
    ]
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    return events


def settle_lost(process: Process) -> None:
    """Settle what the log will not bring, once the database answers."""

    def is_settled() -> bool:
        try:
            return process.do(process.budget.lost_task.run) is None
        except EngineError:
            return False

    wait_until(is_settled)


def _reserve(process: Process) -> dict[str, list[int]]:
    """Ask for all clients; return the numbers of the requests that passed, by client."""
    passed: dict[str, list[int]] = {client.name: [] for client in _CLIENTS}
    number = int(process.boot_id.rpartition("-")[2])
    for wave in range(_REQUESTS // _WAVE):
        demands = [
            a_demand(10_000 * number + 1000 * at + _WAVE * wave + n, client, 100, usd=0.01)
            for n in range(_WAVE)
            for at, client in enumerate(_CLIENTS)
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
        ("web", range(100_000 * (unbounded + 1), 100_000 * (unbounded + 1) + _REQUESTS)),
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


def test_processes_share_the_bounds_and_the_log(start: Callable[[str], Process]) -> None:
    """Of 200 requests at once in 4 processes, as many pass as a bound has room for, whatever its kind.

    The log has the starts and ends of all, without a gap, and what was used is counted once.
    """
    boots = [f"boot-{n}" for n in range(4)]
    processes = [start(boot) for boot in boots]
    with ThreadPoolExecutor(len(boots)) as pool:
        passed = list(pool.map(_reserve, processes))
        for client in _CLIENTS:
            assert sum(len(each[client.name]) for each in passed) == _REQUESTS, client.name
        list(pool.map(_record, processes, passed))
    looking = processes[0]
    events = replayed(looking)
    assert len(events) == 2 * _REQUESTS * (len(_CLIENTS) + len(boots))
    assert {event.boot_id for event in events} == set(boots)
    for client in _CLIENTS:
        assert looking.used(client) == Use(_REQUESTS, 40 * _REQUESTS, _REQUESTS * 12_500_000)
    assert looking.rows("SELECT count(*) FROM reservations") == [(0,)]


def test_a_live_process_ends_what_a_dead_one_left(start: Callable[[str], Process], live: set[str]) -> None:
    """Its open requests are closed as crashed and charged what they reserved, once; nobody else's are."""
    dead, first, second = map(start, ("boot-dead", "boot-1", "boot-2"))
    dead.end(*dead.start(1))
    dead.start(2, 3)
    first.start(4)
    dead.reserve(a_demand(2, _TOKENS, 300))
    first.reserve(a_demand(4, _TOKENS, 100))
    for process in (first, second):
        process.recover()
    assert len(replayed(first)) == 5
    live.remove("boot-dead")
    for process in (second, first, dead):
        process.recover()
    *_, one, other = events = replayed(first)
    assert len(events) == 7
    assert events == sorted(
        [*dead.published, *first.published, *second.published], key=lambda event: event.seq
    )
    assert isinstance(one, Ended)
    assert isinstance(other, Ended)
    assert [(end.boot_id, end.record.id, end.record.outcome) for end in (one, other)] == [
        ("boot-dead", "req-000002", Outcome.CRASHED),
        ("boot-dead", "req-000003", Outcome.CRASHED),
    ]
    assert (one.record.prompt_tokens, one.record.usage_source) == (10, UsageSource.ESTIMATE)
    assert first.used(_TOKENS) == Use(3, 400, 12_500_000)
    assert first.rows("SELECT id FROM reservations") == [("req-000004",)]


def test_a_process_that_was_taken_for_dead_charges_and_ends_nothing_twice(
    start: Callable[[str], Process], live: set[str]
) -> None:
    """Its requests stay as the others closed them, which counts as a loss; new ones are recorded as ever."""
    stopped, other = map(start, ("boot-stopped", "boot-1"))
    records = stopped.start(1, 2)
    stopped.reserve(a_demand(1, _TOKENS, 300))
    live.remove("boot-stopped")
    other.recover()
    # It goes on.
    live.add("boot-stopped")
    for record in records:
        record.prompt_tokens, record.completion_tokens = 10, 30
    stopped.end(*records)
    stopped.end(*stopped.start(3))
    events = replayed(other)
    assert {event.record.id: event.record.outcome for event in events if isinstance(event, Ended)} == {
        "req-000001": Outcome.CRASHED,
        "req-000002": Outcome.CRASHED,
        "req-000003": Outcome.COMPLETED,
    }
    (lost,) = [event for event in events if isinstance(event, Lost)]
    assert (lost.count, "another instance had closed them" in lost.reason) == (2, True)
    # The first was charged what it reserved, the second what it used, as it had no reservation.
    assert other.used(_TOKENS).tokens == 300 + 40
    assert other.rows(
        "SELECT sum(prompt_tokens + completion_tokens) FROM usage WHERE length(period) = 7"
    ) == [(340,)]
    with_room = other.reserve(a_demand(5, _TOKENS, 660))
    assert isinstance(with_room[0], list)
    assert isinstance(other.reserve(a_demand(6, _TOKENS, 1))[0], OverBudget)


@pytest.fixture
def far(proxy: LossyProxy, postgres_url: str) -> Iterator[Process]:
    """A process whose connections go through the proxy."""
    process = Process(Postgres(patient_url(proxy.url(postgres_url))), "boot-1")
    yield process
    proxy.mend()
    process.close()


@pytest.mark.parametrize("is_done_first", [True, False])
def test_a_batch_whose_commit_got_no_answer_is_written_once(
    proxy: LossyProxy, far: Process, *, is_done_first: bool
) -> None:
    """Whether the server did it or not: each request is in the log once, and charged once."""
    (first,) = far.start(1)
    far.reserve(a_demand(1, _TOKENS, 300))
    first.prompt_tokens, first.completion_tokens = 10, 30
    proxy.lose_commit(is_done_first=is_done_first)
    far.log.ended(as_ended(first))
    far.log.started(a_record(2, "boot-1"))
    assert far.do(far.log.write) == RETRY_S
    assert "is known once the database answers" in (far.log.error or "")
    far.log.started(a_record(3, "boot-1"))
    assert far.do(far.log.write) == RETRY_S
    proxy.mend()
    far.write()
    events = [(type(event), event.record.id) for event in replayed(far) if not isinstance(event, Lost)]
    assert events == [
        (Started, "req-000001"),
        (Ended, "req-000001"),
        (Started, "req-000002"),
        (Started, "req-000003"),
    ]
    assert far.published == replayed(far)
    assert far.used(_TOKENS) == Use(1, 40, 12_500_000)
    assert far.rows("SELECT * FROM reservations") == []
    assert (far.log.lost, far.log.error, far.log.queued) == (0, None, 0)


@pytest.mark.parametrize("is_done_first", [True, False])
def test_a_reservation_whose_commit_got_no_answer_is_refused_and_not_kept(
    proxy: LossyProxy, far: Process, *, is_done_first: bool
) -> None:
    """Its client gets 503, the next ones at once; when the database is back, it has reserved nothing."""
    far.reserve(a_demand(1, _TOKENS, 300))
    proxy.lose_commit(is_done_first=is_done_first)
    (answer,) = far.reserve(a_demand(2, _TOKENS, 400))
    assert isinstance(answer, StateError)
    (answer,) = far.reserve(a_demand(3, _TOKENS, 100))
    assert isinstance(answer, StateUnreachable)
    proxy.mend()
    settle_lost(far)
    assert far.used(_TOKENS) == Use(1, 300, 0)
    assert far.rows("SELECT id FROM reservations") == [("req-000001",)]


@pytest.mark.parametrize("is_done_first", [True, False])
def test_a_lost_charge_whose_commit_got_no_answer_is_charged_once(
    proxy: LossyProxy, far: Process, *, is_done_first: bool
) -> None:
    """A request that the log has no room for is charged once, with a reservation or without."""
    far.reserve(a_demand(1, _TOKENS, 300))
    proxy.lose_commit(is_done_first=is_done_first)
    for number in (1, 2):
        record = a_record(number, "boot-1")
        record.prompt_tokens, record.completion_tokens = 10, 30
        far.budget.settle_lost(as_ended(record))
    wait_until(lambda: far.database.is_undecided)
    proxy.mend()
    settle_lost(far)
    assert far.used(_TOKENS) == Use(2, 80, 25_000_000)


def test_records_wait_for_a_database_that_is_down_and_losses_are_counted(
    postgres: Server, postgres_url: str
) -> None:
    """What finds room in memory is written when it is back, what does not is told; bounds refuse at once."""
    process = Process(Postgres(patient_url(postgres_url)), "boot-1")
    process.log._capacity = 3
    (first,) = process.start(0)
    postgres.kill()
    records = [a_record(number, "boot-1") for number in range(1, 6)]
    for record in records:
        process.log.started(record)
    assert process.do(process.log.write) == RETRY_S
    for record in (first, *records):
        process.log.ended(as_ended(record))
    assert "does not answer" in (process.log.error or "")
    assert (process.log.queued, process.log.lost) == (7, 2)
    assert process.database.engine.error is not None
    (answer,) = process.reserve(a_demand(9, _TOKENS))
    assert isinstance(answer, StateUnreachable)
    postgres.start()
    process.write()
    *events, lost = replayed(process)
    ended = {event.record.id for event in events if isinstance(event, Ended)}
    assert ended == {f"req-{number:06d}" for number in range(4)}
    assert isinstance(lost, Lost)
    assert (lost.count, process.log.lost, process.log.error) == (2, 2, None)
    assert isinstance(process.reserve(a_demand(9, _TOKENS))[0], list)
    process.close()
