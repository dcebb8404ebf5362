"""`GET /usage`, and what the metrics and the status tell of tokens and money."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from relayd.admin.metrics import Metrics
from relayd.admin.schema import PeriodUse, UsageRow, UsageSums
from relayd.state.calendar import Window, resets_at_s
from relayd.state.errors import StateBusy
from relayd.state.reader import LogReader
from relayd.state.records import UsageSource, utc_text
from tests.admin.harness import NOON_S, AdminHarness, admin_api, new_record, raw
from tests.commands.harness import relayd
from tests.state.harness import Clock

DAY_S = 86_400


def used(api: AdminHarness, client: str, days_ago: int = 0, **fields: Any) -> None:
    """Log two requests that used tokens."""
    usage = {"prompt_tokens": 10, "cached_tokens": 4, "completion_tokens": 5, "cost_usd": 0.25}
    known = {"usage_source": UsageSource.PROVIDER, "model": "gpt-4o", "key_id": f"key-{client}"}
    started_at = utc_text(NOON_S - days_ago * DAY_S)
    usage["connect_ms"] = 5
    api.log(2, f"{client}-{days_ago}-", client=client, started_at=started_at, **{**usage, **known, **fields})


async def past(api: AdminHarness) -> None:
    """Log requests of two clients, two models and three days."""
    used(api, "web")
    used(api, "phone", days_ago=1, model="o3", cost_usd=None, usage_source=UsageSource.ESTIMATE)
    used(api, "web", days_ago=20)
    # The first event is that of the first key.
    await api.logged(13)


def sums(requests: int, **fields: float) -> dict[str, float]:
    """Return the figures of so many requests."""
    figures = {"prompt_tokens": 10.0, "cached_tokens": 4.0, "completion_tokens": 5.0, "cost_usd": 0.25}
    return {"requests": requests, **{n: v * requests for n, v in figures.items()}, "estimated": 0, **fields}


PHONE = sums(2, cost_usd=0.0, estimated=2, unpriced=2)


@pytest.mark.parametrize(
    ("query", "rows", "total"),
    [
        ({"by": "client"}, {"web": sums(2), "phone": PHONE}, sums(4, cost_usd=0.5, estimated=2, unpriced=2)),
        (
            {"by": "model", "since": "2026-01-01"},
            {"gpt-4o": sums(4), "(other)": PHONE},
            sums(6, cost_usd=1.0, estimated=2, unpriced=2),
        ),
        (
            {"by": "day", "since": "2026-12-01"},
            {"2026-12-26": sums(2), "2027-01-14": PHONE, "2027-01-15": sums(2)},
            sums(6, cost_usd=1.0, estimated=2, unpriced=2),
        ),
        ({"by": "key", "since": "2027-01-15"}, {"key-web": sums(2)}, sums(2)),
        ({"by": "key", "until": "2027-01-14"}, {"key-phone": PHONE}, PHONE),
        ({"by": "client", "client": "web", "since": "2026-01-01"}, {"web": sums(4)}, sums(4)),
        ({"by": "client", "client": "nobody"}, {}, sums(0)),
        ({"by": "model", "key": "key-phone"}, {"(other)": PHONE}, PHONE),
        ({"by": "day", "model": "gpt-4o"}, {"2027-01-15": sums(2)}, sums(2)),
        ({"by": "client", "key": "key-web", "model": "(other)"}, {}, sums(0)),
    ],
)
async def test_usage_is_summed_by_what_is_asked(
    tmp_path: Path, query: dict[str, str], rows: dict[str, Any], total: Any
) -> None:
    """Days are whole and both ends count; the largest cost comes first, days in their order."""
    async with admin_api(tmp_path, clock=Clock()) as api:
        await past(api)
        usage = await api.client.usage(**query)
        assert (usage.by, usage.until) == (query["by"], query.get("until", "2027-01-15"))
        assert usage.since == query.get("since", "2027-01-01")
        assert [(row.name, row) for row in usage.rows] == [
            (name, UsageRow(name=name, **figures)) for name, figures in rows.items()
        ]
        assert usage.total == UsageSums(**total)
        assert usage.day_ends_at == utc_text(resets_at_s(Window.DAY, NOON_S))
        assert usage.month_ends_at == utc_text(resets_at_s(Window.MONTH, NOON_S))


@pytest.mark.parametrize("query", ["by=colour", "since=yesterday", "until=2026-02-30", "by=day&x=1"])
async def test_a_wrong_question_is_refused(tmp_path: Path, query: str) -> None:
    """In words that name the parameter."""
    async with admin_api(tmp_path) as api:
        answer = await raw(api.socket, "GET", f"/usage?{query}")
        assert answer.status == 400
        assert answer.error[0] == "bad_request"


async def test_the_status_tells_what_was_used_today_and_this_month(tmp_path: Path) -> None:
    """By all clients together."""
    async with admin_api(tmp_path, clock=Clock()) as api:
        await past(api)
        status = await api.client.status()
        assert (status.today, status.month) == (PeriodUse(2, 30, 0.5), PeriodUse(4, 60, 0.5))


async def test_what_cannot_be_read_is_unknown_and_not_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of the status comes all the same, and the query takes no thread of the loop's own."""
    async with admin_api(tmp_path, clock=Clock()) as api:
        await past(api)
        threads = []

        def busy(_: LogReader) -> None:
            threads.append(threading.current_thread().name)
            raise StateBusy("The query took too long.")

        monkeypatch.setattr(LogReader, "use_in_all", busy)
        status = await api.client.status()
        assert (status.today, status.month, status.ring.active) == (None, None, 1)
        assert "unknown today, unknown this month" in (await relayd(api.socket, "status")).out
        assert all(name.startswith("admin-") for name in threads)


async def test_metrics_count_tokens_and_money_by_client(tmp_path: Path) -> None:
    """A request without usage adds nothing; beyond two hundred clients the others share a label."""
    metrics = Metrics()
    for number in range(300):
        record = new_record(f"r{number}", client=f"client-{number}")
        metrics.request_ended(record)
        record.prompt_tokens, record.completion_tokens, record.cost_usd = 10, 5, 0.5
        record.usage_source = UsageSource.PROVIDER
        metrics.request_ended(record)
    async with admin_api(tmp_path) as api:
        lines = metrics.render(await api.client.status(), 0).splitlines()
    assert 'relayd_tokens_total{client="client-7",kind="prompt"} 10.0' in lines
    assert 'relayd_tokens_total{client="(other)",kind="completion"} 500.0' in lines
    assert 'relayd_cost_usd_total{client="(other)"} 50.0' in lines
    assert sum(line.startswith("relayd_cost_usd_total{") for line in lines) == 201
