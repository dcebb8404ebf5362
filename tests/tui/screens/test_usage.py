"""The Usage screen."""

from __future__ import annotations

from pathlib import Path

import pytest

from relayd.admin.client import AdminClientError
from tests.tui.app_harness import app_with_past
from tests.wire import until
from tui.feed import Feed
from tui.screens.usage import UsageList


async def _refuse(*_: object, **_names: object) -> None:
    raise AdminClientError("No answer.")


async def test_usage_by_client_key_model_and_day_leads_to_the_requests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Today beside the month, bounds with their ends, an unknown cost marked."""
    async with app_with_past(tmp_path, size=(140, 40)) as (harness, past):
        past.end(past.begin(model="local-llm", client="web"), cost_usd=None)
        await harness.caught_up(past)
        await harness.press("7")
        await harness.shows("[c client]", "/d today /m this month", "by model req", "by key req")
        rows = harness.main.query_one(UsageList)
        await until(lambda: rows.row_count() == 6)
        await harness.idle()
        total = next(line for line in harness.text().splitlines() if line.startswith("▶all"))
        ended = [record for record in past.records if record.outcome is not None]
        assert total.split()[1] == total.split()[4] == f"{len(ended)}"
        assert "+" in total
        # The bound of the chosen client, and when its month ends.
        rows.go_to(rows.index_of("=web") or 0)
        await harness.shows("US$ this month", "/5", "h left", "web: tokens, 30 days in")
        await harness.pilot.resize_terminal(80, 20)
        await harness.shows("tokens, 30 days in", " 0 ┤")
        await harness.pilot.resize_terminal(140, 40)
        # The total stays on top, however the rows are sorted.
        await harness.press("s")
        today = [item.today.requests for item in rows.items]
        assert rows.items[0].is_total
        assert today == sorted(today, reverse=True)
        await harness.press("m")
        await harness.shows("[m model]", "by client req")
        await until(lambda: rows.index_of("=local-llm") is not None)
        await harness.idle()
        unpriced = next(line for line in harness.text().splitlines() if " local-llm" in line)
        assert unpriced.split()[3] == unpriced.split()[8] == "—"
        await harness.press("i")
        await until(lambda: rows.index_of(f"={past.keys['laptop']}") is not None)
        await harness.press("d", "left")
        await harness.shows("[d day]", "August 2026 →")
        # Figures keep the name of their month while another one is not known.
        with monkeypatch.context() as patch:
            patch.setattr(Feed, "usage", _refuse)
            await harness.press("left")
            await harness.shows("August 2026 →", "No answer.")
        await harness.press("right", "right", "c")
        await until(lambda: rows.index_of("=laptop") is not None)
        rows.go_to(rows.index_of("=laptop") or 0)
        await harness.press("enter")
        await harness.shows('client="laptop"')
        # On a small screen all columns are there, and the plots and the bounds below them.
        await harness.press("7")
        await harness.pilot.resize_terminal(80, 24)
        await harness.idle()
        await harness.shows("US$/d", "US$/m", "tokens, 30 days in", "US$ this month", "resets in")
