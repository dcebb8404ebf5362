"""Several processes on one database: one log, one set of bounds, and who ends what a dead one left."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from relayd.state.budget import OverBudget, Use
from relayd.state.records import Ended, Lost, Outcome, Started, UsageSource
from tests.state.harness import make_database
from tests.state.processes import CLIENTS, REQUESTS, Process, engine_at, programs, tell
from tests.state.test_budget import a_client, a_demand

_TOKENS = a_client(tokens_per_day=1000)


@pytest.fixture
def place(tmp_path: Path) -> str:
    """Where a new database is."""
    return str(make_database(tmp_path / "state"))


@pytest.fixture
def live() -> set[str]:
    """Which processes are taken for alive."""
    return set()


@pytest.fixture
def start(place: str, live: set[str]) -> Iterator[Callable[[str], Process]]:
    """Start processes; close them at the end."""
    with ExitStack() as stack:

        def start(boot_id: str) -> Process:
            process = Process(engine_at(place), boot_id, lambda: live)
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


def test_processes_share_the_bounds_and_the_log(place: str) -> None:
    """Of 200 requests at once in 4 processes, as many pass as a bound has room for, whatever its kind.

    The log has the starts and ends of all, without a gap, and what was used is counted once.
    """
    boots = [f"boot-{n}" for n in range(4)]
    Process(engine_at(place), "boot-9").close()
    with programs(place, boots) as children:
        tell(children, "wait")
        passed = tell(children, "reserve")
        for client in CLIENTS:
            assert sum(len(each[client.name]) for each in passed) == REQUESTS, client.name
        tell(children, "record")
    looking = Process(engine_at(place), "boot-9")
    events = replayed(looking)
    assert len(events) == 2 * REQUESTS * (len(CLIENTS) + len(boots))
    assert {event.boot_id for event in events} == set(boots)
    for client in CLIENTS:
        assert looking.used(client) == Use(REQUESTS, 40 * REQUESTS, REQUESTS * 12_500_000)
    assert looking.rows("SELECT count(*) FROM reservations") == [(0,)]
    looking.close()


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
