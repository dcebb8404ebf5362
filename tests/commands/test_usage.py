"""Behaviour of `relayd usage`."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path

import pytest

from relayd.state.calendar import window_names
from relayd.state.records import UsageSource, utc_text
from tests.admin.harness import AdminHarness, admin_api, log_requests
from tests.commands.harness import relayd
from tests.state.harness import Clock

USED = {
    "connect_ms": 5,
    "prompt_tokens": 1000,
    "completion_tokens": 500,
    "cost_usd": 0.25,
    "usage_source": UsageSource.PROVIDER,
}


async def past(api: AdminHarness) -> None:
    """Log requests of two clients."""
    today = utc_text(api.state.clock())
    api.log(3, "a", client="web", model="gpt-4o", started_at=today, **USED)
    api.log(1, "b", client="phone", started_at=today, connect_ms=5)
    api.log(1, "c", client="old", started_at=utc_text(api.state.clock() - 20 * 86_400), **USED)
    await api.logged(11)


async def test_a_table_with_a_total(tmp_path: Path) -> None:
    """Figures stand below each other; the largest cost comes first."""
    async with admin_api(tmp_path, clock=Clock()) as api:
        await past(api)
        ran = await relayd(api.socket, "usage", "--until", "2027-01-15", "--since", "2027-01-01")
        assert ran.lines == [
            "CLIENT  REQUESTS  PROMPT  CACHED  ANSWER     COST  ESTIMATED  UNPRICED",
            "web            3   3,000       0   1,500  $0.7500          0         0",
            "phone          1       0       0       0  $0.0000          0         0",
            "TOTAL          4   3,000       0   1,500  $0.7500          0         0",
        ]
        assert ran.err == "From 2027-01-01 to 2027-01-15.\n"
        api.log(
            1, "d", client="cheap", **{**USED, "cost_usd": 0.000_002}, started_at=utc_text(api.state.clock())
        )
        await api.logged(13)
        cheap = await relayd(api.socket, "usage", "--client", "cheap")
        assert "<$0.0001" in cheap.lines[1]
        by_model = await relayd(api.socket, "usage", "--by", "model", "--client", "phone")
        assert by_model.lines[1].startswith("(no answer)")


async def test_for_programs(tmp_path: Path) -> None:
    """JSON is the answer of the daemon, CSV has a line for each sum; both at once is wrong usage."""
    async with admin_api(tmp_path, clock=Clock()) as api:
        await past(api)
        found = json.loads((await relayd(api.socket, "usage", "--json", "--since", "2026-12-01")).out)
        assert [row["name"] for row in found["rows"]] == ["web", "old", "phone"]
        assert found["total"]["cost_usd"] == 1.0
        ran = await relayd(api.socket, "usage", "--csv")
        assert ran.lines == [
            "client,requests,prompt_tokens,cached_tokens,completion_tokens,cost_usd,estimated,unpriced",
            "web,3,3000,0,1500,0.75,0,0",
            "phone,1,0,0,0,0.0,0,0",
        ]
        assert (await relayd(api.socket, "usage", "--csv", "--json")).status == 2


@pytest.mark.parametrize(
    ("model", "cell"),
    [
        *((f"{sign}1+HYPERLINK(1)", f"'{sign}1+HYPERLINK(1)") for sign in "=+-@"),
        ("\t=1", "\\t=1"),
        ("gpt-4o=1", "gpt-4o=1"),
    ],
)
async def test_no_name_is_a_formula_for_a_spreadsheet(tmp_path: Path, model: str, cell: str) -> None:
    """A client chooses the name of its model; the operator opens the file."""
    async with admin_api(tmp_path, clock=Clock()) as api:
        log_requests(
            api.state,
            1,
            "r",
            **{**USED, "client": "web", "model": model, "started_at": utc_text(api.state.clock())},
        )
        await api.logged(3)
        ran = await relayd(api.socket, "usage", "--csv", "--by", "model")
        assert next(csv.reader(ran.lines[1:]))[0] == cell


@pytest.mark.parametrize(
    ("days", "status"),
    [
        ("--since 2027-01-15 --until 2027-01-15", 0),
        ("--since 2027-01-15 --until 2027-01-14", 2),
        ("--since 2027-01-16", 2),
        ("--until 2026-12-31 --json", 2),
    ],
)
async def test_days_in_the_wrong_order_are_wrong_usage(tmp_path: Path, days: str, status: int) -> None:
    """It is not told as if nothing was used. Without days: from the first of this month until today."""
    async with admin_api(tmp_path, clock=Clock()) as api:
        ran = await relayd(api.socket, "usage", *days.split())
        assert ran.status == status
        assert ("is after the last" in ran.err) == (status == 2)


async def test_a_span_is_that_many_days_back(tmp_path: Path) -> None:
    """`--since 7d` is the day a week ago."""
    async with admin_api(tmp_path) as api:
        before_s = time.time()
        found = json.loads((await relayd(api.socket, "usage", "--since", "7d", "--json")).out)
        days = {window_names(now_s - 7 * 86_400).day for now_s in (before_s, time.time())}
        assert found["since"] in days
        assert (await relayd(api.socket, "usage")).out.startswith("Nothing was used from")


@pytest.mark.parametrize("day", ["yesterday", "2026-13-01", "7", ""])
async def test_what_is_neither_a_day_nor_a_span_is_wrong_usage(tmp_path: Path, day: str) -> None:
    """The message says how both are written."""
    ran = await relayd(tmp_path / "none", "usage", "--since", day)
    assert ran.status == 2
    assert "write 2026-01-31 or 7d" in ran.err
