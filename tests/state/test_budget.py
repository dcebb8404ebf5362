"""Reservations and settlement: what bounds let pass, and what is charged whatever happens."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relayd.state.budget import BOUNDS, NANO, Demand, OverBudget, Standing, Use
from relayd.state.engine import EngineError
from relayd.state.errors import StateBusy
from relayd.state.records import Client, Outcome, Phase, RequestRecord, UsageSource, utc_text
from relayd.state.state import State
from tests.state.harness import NOON_S, Clock, Disk, a_record, opened
from tests.wire import wait_until

pytestmark = pytest.mark.usefixtures("engine_kind")

DAY_S = 86_400


def a_client(name: str = "web", **bounds: Any) -> Client:
    """Return a client with these bounds."""
    return Client(name=name, created_at=utc_text(0), **bounds)


def a_demand(
    number: int, client: Client, tokens: int = 100, *, least: int | None = None, usd: float = 0.0
) -> Demand:
    """Return what a request wants; with `least`, all above it is a guess."""
    most = Use(1, tokens, round(usd * NANO))
    sure = most if least is None else Use(1, least, 0)
    return Demand(f"req-{number:06d}", client, "abcd1234", "gpt-4o-mini", most, sure, prompt_tokens=10)


def an_end(
    number: int,
    tokens: tuple[int, int] | None,
    *,
    usd: float | None = None,
    source: UsageSource | None = UsageSource.PROVIDER,
    outcome: Outcome = Outcome.COMPLETED,
    started_s: float = NOON_S,
) -> RequestRecord:
    """Return a request that ended after using so many tokens in and out."""
    record = a_record(number, started_s=started_s)
    record.phase, record.outcome = Phase.DONE, outcome
    record.connect_ms = None if outcome in {Outcome.DENIED, Outcome.REJECTED} else 5
    if tokens is not None:
        record.prompt_tokens, record.completion_tokens = tokens
        record.cost_usd, record.usage_source = usd, source
    return record


def end(state: State, *records: RequestRecord) -> None:
    """Record requests that ended, and wait until they are settled."""
    for record in records:
        state.log.started(record)
        state.log.ended(record)
    wait_until(lambda: not state.log.queued)


async def used(state: State, client: Client) -> tuple[Use, Use, Use]:
    """Return what a client used this minute, today and this month, reservations included."""
    return (await state.budget.standing(client))[1]


async def reserved(state: State, *demands: Demand) -> list[BaseException | list[Standing]]:
    """Reserve at once; return each answer or refusal."""
    return await asyncio.gather(*map(state.budget.reserve, demands), return_exceptions=True)


@contextmanager
def busy_writer(state: State) -> Iterator[None]:
    """Keep the writer busy, as a disk that hangs does: what it is asked for waits until the end."""
    release = threading.Event()
    state.budget._writer.call(partial(release.wait, 30))
    try:
        yield
    finally:
        release.set()


async def settle_lost(state: State) -> None:
    """Settle now what the log will not bring."""
    # The writer answers in order: after this, what it reserved was delivered.
    await used(state, a_client())
    await asyncio.wrap_future(state.budget._writer.call(state.budget.lost_task.run))


def rows(state: State, query: str) -> list[tuple[Any, ...]]:
    """Return what is on disk, seen from another connection."""
    with state.engine.reading(lambda: False, 10.0) as connection:
        return connection.execute(query).rows


@pytest.mark.parametrize("requests", [50, 200])
async def test_requests_at_once_get_no_more_than_the_bound(tmp_path: Path, requests: int) -> None:
    """Of many requests at the same moment, as many pass as the bound has room for, not one more."""
    client = a_client(tokens_per_day=1000)
    with opened(tmp_path / "state", clock=Clock()) as state:
        answers = await reserved(state, *(a_demand(n, client, 20) for n in range(requests)))
        assert sum(isinstance(answer, list) for answer in answers) == 50
        refusals = [answer for answer in answers if isinstance(answer, OverBudget)]
        assert len(refusals) == requests - 50
        assert {refusal.standing.used for refusal in refusals} <= {1000}
        assert (await used(state, client))[1] == Use(50, 1000, 0)
        assert rows(state, "SELECT count(*), sum(prompt_tokens + completion_tokens) FROM reservations") == [
            (50, 1000)
        ]


@pytest.mark.parametrize(
    ("bounds", "tokens", "usd", "field"),
    [
        ({"requests_per_minute": 2}, 5, 0.0, "requests_per_minute"),
        ({"tokens_per_minute": 25}, 10, 0.0, "tokens_per_minute"),
        ({"tokens_per_day": 29}, 10, 0.0, "tokens_per_day"),
        ({"tokens_per_month": 20}, 10, 0.0, "tokens_per_month"),
        ({"usd_per_day": 0.000_000_02}, 10, 0.000_000_01, "usd_per_day"),
        ({"usd_per_month": 0.05, "usd_per_day": 0.05, "tokens_per_day": 20}, 10, 0.02, "usd_per_month"),
    ],
)
async def test_each_bound_refuses_what_does_not_fit(
    tmp_path: Path, bounds: dict[str, Any], tokens: int, usd: float, field: str
) -> None:
    """The third request is refused by name of the bound that lasts longest, and reserves nothing."""
    client = a_client(**bounds)
    with opened(tmp_path / "state", clock=Clock()) as state:
        for number in range(2):
            await state.budget.reserve(a_demand(number, client, tokens, usd=usd))
        before = await used(state, client)
        with pytest.raises(OverBudget) as caught:
            await state.budget.reserve(a_demand(3, client, tokens, usd=usd))
        assert caught.value.standing.bound.field == field
        assert await used(state, client) == before
        assert before[0] == Use(2, 2 * tokens, round(2 * usd * NANO))


async def test_a_bound_begins_again_with_its_window(tmp_path: Path) -> None:
    """A minute, a day and a month later the client may go on; the refusal says when that is."""
    for field, wait_s in (
        ("requests_per_minute", 60),
        ("tokens_per_day", DAY_S),
        ("tokens_per_month", 31 * DAY_S),
    ):
        clock = Clock()
        bounds: dict[str, Any] = {field: 1}
        client = a_client(**bounds)
        with opened(tmp_path / field, clock=clock) as state:
            await state.budget.reserve(a_demand(1, client, 1))
            with pytest.raises(OverBudget) as caught:
                await state.budget.reserve(a_demand(2, client, 1))
            assert clock.now_s < caught.value.standing.resets_at_s <= clock.now_s + wait_s
            clock.now_s = caught.value.standing.resets_at_s
            assert await state.budget.reserve(a_demand(3, client, 1))


async def test_clients_do_not_share_a_bound(tmp_path: Path) -> None:
    """What one client uses is not taken from another."""
    with opened(tmp_path / "state") as state:
        for name in ("web", "phone"):
            await state.budget.reserve(a_demand(len(name), a_client(name, tokens_per_day=100), 100))


async def test_a_lowered_bound_holds_for_the_next_request(tmp_path: Path) -> None:
    """What was reserved under the old bound counts under the new one."""
    with opened(tmp_path / "state") as state:
        await state.budget.reserve(a_demand(1, a_client(tokens_per_day=1000), 500))
        with pytest.raises(OverBudget):
            await state.budget.reserve(a_demand(2, a_client(tokens_per_day=400), 1))


async def test_a_bound_set_later_knows_what_was_used_before(tmp_path: Path) -> None:
    """Clients without bounds are counted too, though their requests never wait."""
    with opened(tmp_path / "state", clock=Clock()) as state:
        end(state, an_end(1, (60, 30)))
        assert await used(state, a_client()) == (Use(1, 90, 0),) * 3
        with pytest.raises(OverBudget):
            await state.budget.reserve(a_demand(2, a_client(tokens_per_month=100), 11))


async def test_a_guess_alone_never_exceeds_a_bound(tmp_path: Path) -> None:
    """A guess of the answer's length is cut to what a bound has in all, a prompt is not."""
    client = a_client(tokens_per_day=1000, usd_per_day=1.0)
    with opened(tmp_path / "state", clock=Clock()) as state:
        with pytest.raises(OverBudget) as caught:
            await state.budget.reserve(a_demand(1, client, 5000, least=1001))
        assert caught.value.wanted == 1001
        await state.budget.reserve(a_demand(2, client, 5000, least=10, usd=7.0))
        assert (await used(state, client))[1] == Use(1, 1000, NANO)
        # It reserved all there is, so nothing runs beside it.
        with pytest.raises(OverBudget):
            await state.budget.reserve(a_demand(3, client, 5000, least=10))
        end(state, an_end(2, (10, 90), usd=0.25))
        assert (await used(state, client))[1] == Use(1, 100, NANO // 4)


@pytest.mark.parametrize(
    ("tokens", "usd", "source", "charged"),
    [
        ((10, 30), 0.001, UsageSource.PROVIDER, Use(1, 40, 1_000_000)),
        ((10, 200), None, UsageSource.PROVIDER, Use(1, 210, 0)),
        ((0, 0), 0.0, UsageSource.PROVIDER, Use(1, 0, 0)),
        ((10, 7), 0.000_000_001, UsageSource.ESTIMATE, Use(1, 17, 1)),
        (None, None, None, Use(1, 0, 0)),
    ],
    ids=["less", "more", "zero", "estimate", "never asked"],
)
async def test_the_end_replaces_the_reservation_by_what_was_used(
    tmp_path: Path,
    tokens: tuple[int, int] | None,
    usd: float | None,
    source: UsageSource | None,
    charged: Use,
) -> None:
    """Usage is charged once, whether it is less, more, nothing or an estimate; the request stays counted."""
    client = a_client(tokens_per_day=1000, usd_per_day=1)
    with opened(tmp_path / "state", clock=Clock()) as state:
        await state.budget.reserve(a_demand(1, client, 100, usd=0.5))
        end(state, an_end(1, tokens, usd=usd, source=source))
        assert await used(state, client) == (charged,) * 3
        assert rows(state, "SELECT * FROM reservations") == []
        ((requests, nano_usd, estimated),) = rows(
            state, "SELECT DISTINCT requests, nano_usd, estimated FROM usage"
        )
        assert (requests, nano_usd, estimated) == (1, charged.nano_usd, source is UsageSource.ESTIMATE)


async def test_an_end_counts_where_its_reservation_was_made(tmp_path: Path) -> None:
    """A stream that ends after midnight is charged to the day on which it began, and leaves no rest there."""
    clock = Clock()
    client = a_client(tokens_per_day=100)
    with opened(tmp_path / "state", clock=clock) as state:
        await state.budget.reserve(a_demand(1, client, 100))
        clock.now_s += DAY_S
        await state.budget.reserve(a_demand(2, client, 100))
        end(state, an_end(1, (10, 30)))
        assert (await used(state, client))[1] == Use(1, 100, 0)
        clock.now_s -= DAY_S
        assert (await used(state, client))[1] == Use(1, 40, 0)


async def test_refused_requests_count_nowhere(tmp_path: Path) -> None:
    """What relayd itself refused is neither a request nor usage of the client."""
    with opened(tmp_path / "state", clock=Clock()) as state:
        end(state, an_end(1, None, outcome=Outcome.DENIED), an_end(2, None, outcome=Outcome.REJECTED))
        assert await used(state, a_client()) == (Use(),) * 3
        assert rows(state, "SELECT * FROM usage") == []


async def test_usage_adds_up_by_day_client_key_and_model(tmp_path: Path) -> None:
    """A model that no provider answered for is not listed by its name, which may be any text."""
    with opened(tmp_path / "state", clock=Clock()) as state:
        odd = an_end(3, None, outcome=Outcome.UPSTREAM_ERROR)
        odd.model = "made up"
        cached = an_end(2, (20, 5), usd=0.5, source=UsageSource.ESTIMATE)
        cached.cached_tokens = 8
        end(state, an_end(1, (10, 30), usd=0.25), cached, odd, an_end(4, (1, 1), started_s=NOON_S + DAY_S))
        assert rows(state, "SELECT * FROM usage ORDER BY period, model") == [
            ("2027-01", "web", "abcd1234", "", 1, 0, 0, 0, 0, 0),
            ("2027-01", "web", "abcd1234", "gpt-4o-mini", 3, 31, 8, 36, 750_000_000, 1),
            ("2027-01-15", "web", "abcd1234", "", 1, 0, 0, 0, 0, 0),
            ("2027-01-15", "web", "abcd1234", "gpt-4o-mini", 2, 30, 8, 35, 750_000_000, 1),
            ("2027-01-16", "web", "abcd1234", "gpt-4o-mini", 1, 1, 0, 1, 0, 0),
        ]


async def test_the_usage_of_any_text_is_not_listed_by_its_name(tmp_path: Path) -> None:
    """Estimates name a model that has a price; what is served is named up to a number of models."""
    with opened(tmp_path / "state", clock=Clock()) as state:
        made_up = [an_end(n, (1, 1), source=UsageSource.ESTIMATE) for n in range(50)]
        served = [an_end(n, (1, 1)) for n in range(100, 600)]
        for record in (*made_up, *served):
            record.model = f"model-{record.id}"
        end(state, *made_up, *served)
        by_name = "SELECT model, requests FROM usage WHERE period = '2027-01' ORDER BY requests DESC, model"
        listed = rows(state, by_name)
        assert listed[:3] == [("(other)", 251), ("model-req-000100", 1), ("model-req-000101", 1)]
        assert len(listed) == 300
        # What is listed still counts by its name.
        again, priced = an_end(1000, (1, 1)), an_end(1001, (1, 1), source=UsageSource.ESTIMATE, usd=0.1)
        again.model, priced.client = "model-req-000100", "phone"
        end(state, again, priced)
        assert rows(state, by_name)[1] == ("model-req-000100", 2)
        assert ("gpt-4o-mini", 1) in rows(state, by_name)


@pytest.mark.sqlite
async def test_no_request_counts_so_much_that_sums_break(tmp_path: Path) -> None:
    """Whatever a request asks for or a provider claims, others are served and the sums stay right."""
    client = a_client(requests_per_minute=1000)
    with opened(tmp_path / "state", clock=Clock()) as state:
        huge = [a_demand(n, client, 10**19, usd=6e9) for n in range(3)]
        answers = await reserved(state, *huge, a_demand(3, client, 100))
        assert [type(answer) for answer in answers] == [list] * 4
        assert state.reader.use_by_client()[0]["web"].requests == 4
        end(state, *(an_end(n, (10, 20), usd=0.5) for n in range(4)))
        assert await used(state, client) == (Use(4, 120, 2 * NANO),) * 3
        for number in range(10, 13):
            claimed = an_end(number, (10**30, 10**30), usd=1e12)
            claimed.cached_tokens = 10**30
            end(state, claimed)
        month = state.reader.use_by_client()[2]["web"]
        assert month == Use(7, 3 * 10**12 + 120, 3 * 10**15 + 2 * NANO)
        assert rows(state, "SELECT DISTINCT typeof(cached_tokens), typeof(nano_usd) FROM usage") == [
            ("integer", "integer")
        ]


async def test_what_needs_nothing_passes_an_overshot_bound(tmp_path: Path) -> None:
    """A list of models costs no tokens, so a bound on tokens does not refuse it, nor one on money."""
    client = a_client(tokens_per_day=1000, usd_per_day=1.0, requests_per_minute=3)
    with opened(tmp_path / "state", clock=Clock()) as state:
        end(state, an_end(1, (10, 1200), usd=2.0))
        assert await state.budget.reserve(a_demand(2, client, 0))
        with pytest.raises(OverBudget):
            await state.budget.reserve(a_demand(3, client, 1))
        assert await state.budget.reserve(a_demand(4, client, 0))
        with pytest.raises(OverBudget) as caught:
            await state.budget.reserve(a_demand(5, client, 0))
        assert caught.value.standing.bound.field == "requests_per_minute"


async def test_cancelling_takes_the_reservation_back(tmp_path: Path) -> None:
    """A client that leaves while its reservation is made has reserved nothing, whichever comes first."""
    client = a_client(tokens_per_day=100)
    with opened(tmp_path / "state", clock=Clock()) as state:
        with busy_writer(state):
            waiting = asyncio.create_task(state.budget.reserve(a_demand(1, client, 100)))
            await asyncio.sleep(0)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
        assert await state.budget.reserve(a_demand(2, client, 100))


@pytest.mark.sqlite
async def test_a_disk_that_hangs_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reservation fails after a while, and nothing stays reserved when the disk is back."""
    monkeypatch.setattr("relayd.state.budget.RESERVE_TIMEOUT_S", 0.01)
    client = a_client(tokens_per_day=100)
    with opened(tmp_path / "state", clock=Clock()) as state:
        with busy_writer(state):
            with pytest.raises(StateBusy, match="did not answer within"):
                await state.budget.reserve(a_demand(1, client, 100))
            with pytest.raises(StateBusy, match="did not answer within"):
                await used(state, client)
        monkeypatch.undo()
        await settle_lost(state)
        assert await used(state, client) == (Use(),) * 3


@pytest.mark.sqlite
async def test_what_waits_for_a_disk_that_hangs_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those who gave up still count: beyond the bound the next ones are refused at once."""
    monkeypatch.setattr("relayd.state.budget._MAX_WAITING", 2)
    client = a_client(tokens_per_day=100)
    with opened(tmp_path / "state", clock=Clock()) as state:
        with busy_writer(state):
            with monkeypatch.context() as patch:
                patch.setattr("relayd.state.budget.RESERVE_TIMEOUT_S", 0.01)
                for _ in range(2):
                    with pytest.raises(StateBusy, match="did not answer within"):
                        await state.budget.reserve(a_demand(1, client))
                    with pytest.raises(StateBusy, match="did not answer within"):
                        await used(state, client)
            with pytest.raises(StateBusy, match="too many"):
                await state.budget.reserve(a_demand(2, client))
            with pytest.raises(StateBusy, match="too many"):
                await used(state, client)
        await asyncio.wrap_future(state.budget._writer.call(lambda: None))
        assert await used(state, client) == (Use(),) * 3
        assert await state.budget.reserve(a_demand(3, client))


@pytest.mark.parametrize("is_refused", [False, True])
async def test_a_reservation_that_its_request_did_not_wait_for_is_taken_back(
    tmp_path: Path, *, is_refused: bool
) -> None:
    """The request was cancelled after the commit and before the answer; the disk may refuse at first."""
    disk, client = Disk(), a_client(tokens_per_day=100)
    with opened(tmp_path / "state", clock=Clock(), disk=disk) as state:
        waiting = asyncio.create_task(state.budget.reserve(a_demand(1, client, 100)))
        await asyncio.sleep(0)
        # The event loop stands still until it is on disk.
        wait_until(lambda: bool(rows(state, "SELECT * FROM reservations")))
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        if is_refused:
            disk.full(beginning=("DELETE FROM reservations",))
            with pytest.raises(EngineError):
                await settle_lost(state)
            disk.mended()
        await settle_lost(state)
        assert await used(state, client) == (Use(),) * 3
        assert rows(state, "SELECT * FROM reservations") == []


async def test_a_request_that_the_log_has_no_room_for_is_charged(tmp_path: Path) -> None:
    """Neither the reservation stays, nor is the usage of a client without bounds lost."""
    client = a_client(tokens_per_day=1000)
    with opened(tmp_path / "state", clock=Clock()) as state:
        await state.budget.reserve(a_demand(1, client, 500))
        state.log._capacity = 0
        end(state, an_end(1, (10, 30)), an_end(2, (1, 2)), an_end(3, None, outcome=Outcome.DENIED))
        assert state.log.lost == 3
        await settle_lost(state)
        assert await used(state, client) == (Use(2, 43, 0),) * 3
        assert rows(state, "SELECT * FROM reservations") == []
        charged = "SELECT requests, prompt_tokens, completion_tokens FROM usage"
        assert rows(state, charged) == [(2, 11, 32)] * 2


async def test_a_request_that_no_disk_can_record_is_charged(tmp_path: Path) -> None:
    """Its record is lost, its reservation is not left behind."""
    client = a_client(tokens_per_day=1000)
    with opened(tmp_path / "state", clock=Clock()) as state:
        end(state, an_end(1, (1, 1)))
        await state.budget.reserve(a_demand(1, client, 500))
        # The id is in the log already.
        end(state, an_end(1, (10, 30)))
        await settle_lost(state)
        assert await used(state, client) == (Use(2, 42, 0),) * 3
        assert rows(state, "SELECT * FROM reservations") == []


async def test_a_bad_disk_refuses_and_reserves_nothing(tmp_path: Path) -> None:
    """A reservation that can't be stored is an error of the state; once the disk works again it passes."""
    disk, client = Disk(), a_client(tokens_per_day=100)
    with opened(tmp_path / "state", clock=Clock(), disk=disk) as state:
        disk.full()
        answers = await reserved(state, *(a_demand(n, client) for n in range(3)))
        assert [type(answer) for answer in answers] == [StateBusy] * 3
        disk.mended()
        assert await state.budget.reserve(a_demand(4, client))


async def test_a_settlement_is_part_of_the_end_s_transaction(tmp_path: Path) -> None:
    """A batch of ends that fails and is tried again charges each request once."""
    disk, client = Disk(), a_client(tokens_per_day=1000)
    with opened(tmp_path / "state", clock=Clock(), disk=disk) as state:
        await state.budget.reserve(a_demand(1, client, 500))
        disk.full(beginning=("COMMIT",))
        record = an_end(1, (10, 30))
        state.log.started(record)
        state.log.ended(record)
        wait_until(lambda: state.log.error is not None)
        disk.mended()
        wait_until(lambda: not state.log.queued)
        assert (await used(state, client))[1] == Use(1, 40, 0)
        assert (
            rows(state, "SELECT requests, prompt_tokens, completion_tokens FROM usage") == [(1, 10, 30)] * 2
        )


CHILD = """
import asyncio, sys, time
from pathlib import Path
from tests.state.harness import Clock, a_record, opened
from tests.state.test_budget import a_client, a_demand
async def reserve(state):
    for number in range(3):
        state.log.started(a_record(number, "boot-child"))
        await state.budget.reserve(a_demand(number, a_client(tokens_per_day=1000), 100, usd=0.5))
with opened(Path(sys.argv[1]), boot_id="boot-child", clock=Clock()) as state:
    asyncio.run(reserve(state))
    while state.log.queued:
        time.sleep(0.01)
    print("reserved", flush=True)
    time.sleep(3600)
"""


@pytest.mark.sqlite
def test_a_crash_before_settling_leaves_the_reservation_charged(tmp_path: Path) -> None:
    """After the process is killed, what it reserved is usage, marked as estimated, and charged once.

    The records of the requests, which crashed, say the same.
    """
    with subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path / "state")], stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "reserved\n"
        child.kill()
    for boot in ("boot-2", "boot-3"):
        with opened(tmp_path / "state", boot_id=boot, clock=Clock()) as state:
            assert asyncio.run(used(state, a_client()))[1] == Use(3, 300, 3 * NANO // 2)
            assert rows(state, "SELECT * FROM reservations") == []
            record = state.reader.get("req-000001")
            assert record is not None
            assert (record.outcome, record.usage_source) == (Outcome.CRASHED, UsageSource.ESTIMATE)
            assert (record.prompt_tokens, record.completion_tokens, record.cost_usd) == (10, 90, 0.5)
            used_in_all = ("web", "abcd1234", "gpt-4o-mini", 3, 30, 0, 270, 3 * NANO // 2, 3)
            assert rows(state, "SELECT * FROM usage ORDER BY period") == [
                ("2027-01", *used_in_all),
                ("2027-01-15", *used_in_all),
            ]


async def test_another_time_zone_forgets_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was used before the server moved counts on the same date in the new zone, and in its month."""
    client = a_client(tokens_per_day=100, tokens_per_month=1000)
    try:
        # 8:00 in Greenwich, midnight in California, 17:00 in Japan: one date.
        for number, zone in enumerate(("UTC0", "<-08>8", "<+09>-9")):
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            with opened(tmp_path / "state", boot_id=f"boot-{number}", clock=Clock()) as state:
                await state.budget.reserve(a_demand(number, client, 30))
                end(state, an_end(number, (10, 20)))
                assert (await used(state, client))[1:] == (Use(number + 1, 30 * (number + 1), 0),) * 2
                with pytest.raises(OverBudget) as caught:
                    await state.budget.reserve(a_demand(9, client, 99))
                ends_s = caught.value.standing.resets_at_s
                assert time.localtime(ends_s)[2:5] == (16, 0, 0)
    finally:
        monkeypatch.undo()
        time.tzset()


async def test_windows_that_are_over_are_removed(tmp_path: Path) -> None:
    """Old minutes, days and months go, however many there are; the present ones stay."""
    clock = Clock()
    with opened(tmp_path / "state", clock=clock) as state:
        end(state, *(an_end(n, (1, 1), started_s=NOON_S + 60 * n) for n in range(1200)))
        clock.now_s = NOON_S + 60 * 1199
        while state.budget._writer.call(state.budget.prune).result(30) is not None:
            pass
        kept = rows(state, 'SELECT length("window"), count(*) FROM windows GROUP BY 1 ORDER BY 1')
        assert kept[:2] == [(7, 1), (10, 2)]
        assert kept[2][1] <= 7
        clock.now_s += 100 * DAY_S
        while state.budget._writer.call(state.budget.prune).result(30) is not None:
            pass
        assert rows(state, "SELECT * FROM windows") == []
        sums = "SELECT length(period), sum(requests) FROM usage GROUP BY 1 ORDER BY 1"
        assert rows(state, sums) == [(7, 1200), (10, 1200)]
        clock.now_s += 400 * DAY_S
        state.budget._writer.call(state.budget.prune).result(30)
        assert rows(state, sums) == [(7, 1200)]
        clock.now_s += 5 * 366 * DAY_S
        state.budget._writer.call(state.budget.prune).result(30)
        assert rows(state, "SELECT * FROM usage") == []


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "end", "end unreserved", "cancel", "crash"]),
        st.integers(0, 400),
        st.integers(0, 400),
    ),
    max_size=25,
)


@pytest.mark.sqlite
@settings(max_examples=20, deadline=None)
@given(steps=STEPS)
def test_whatever_happens_the_books_balance(steps: list[tuple[str, int, int]]) -> None:
    """At any time a client's use is what ended requests used and what open ones reserved, within its bound.

    What a crash left is charged as it was reserved; every token is in the usage, once.
    """
    bound = 1000
    client = a_client(tokens_per_month=bound)
    open_tokens: dict[int, int] = {}
    charged = 0

    async def play(state: State, number: int, kind: str, tokens: int, other: int) -> None:
        nonlocal charged
        if kind == "reserve":
            fits = charged + sum(open_tokens.values()) + tokens <= bound
            (answer,) = await reserved(state, a_demand(number, client, tokens))
            assert isinstance(answer, list) is fits
            if fits:
                open_tokens[number] = tokens
        elif kind == "cancel":
            waiting = asyncio.create_task(state.budget.reserve(a_demand(number, client, tokens)))
            await asyncio.sleep(0)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            await settle_lost(state)
        elif kind == "end" and open_tokens:
            ended, _ = open_tokens.popitem()
            end(state, an_end(ended, (tokens, other)))
            charged += tokens + other
        elif kind == "end unreserved":
            end(state, an_end(number, (tokens, other)))
            charged += tokens + other
        found = (await used(state, client))[2]
        assert found.tokens == charged + sum(open_tokens.values())

    with tempfile.TemporaryDirectory() as folder:
        boots = 0
        while steps:
            boots += 1
            with opened(Path(folder) / "state", boot_id=f"boot-{boots}", clock=Clock()) as state:
                charged += sum(open_tokens.values())
                open_tokens.clear()
                while steps:
                    (kind, tokens, other), *steps = steps
                    if kind == "crash":
                        break
                    asyncio.run(play(state, 100 * boots + len(steps), kind, tokens, other))
                usage = "SELECT coalesce(sum(prompt_tokens + completion_tokens), 0) FROM usage"
                assert rows(state, f"{usage} WHERE length(period) = 7") == [(charged,)]


def test_every_bound_of_a_client_is_checked() -> None:
    """Each field that bounds requests, tokens or money over a time is one that `reserve` knows."""
    fields = {name for name in Client.__struct_fields__ if "_per_" in name}
    assert {bound.field for bound in BOUNDS} == fields
