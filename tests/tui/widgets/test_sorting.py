"""Sorting by columns, with the mouse and with keys, in every list."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.tui.app_harness import AppHarness, app_with_past
from tui.model.sorting import Sorting, in_order, natural
from tui.screens.clients import ClientList
from tui.screens.inflight import InflightPane, StreamList
from tui.widgets.line_list import LineList


async def click_title(harness: AppHarness, rows: LineList, title: str) -> None:
    """Click on the title of a column."""
    x = 1
    for field in rows.fields(rows.size.width):
        if field.title == title:
            await harness.pilot.click(rows, offset=(x, 0))
            await harness.idle()
            return
        x += field.width + 1
    raise AssertionError(f"there is no column {title!r}")


async def test_a_click_on_a_title_sorts_again_reverses_and_a_third_time_ends_it(tmp_path: Path) -> None:
    """The same on every list; the title of the column has an arrow, and what has no value is last."""
    async with app_with_past(tmp_path) as (harness, past):
        past.tell_progress(3)
        requests = harness.requests.rows
        await click_title(harness, requests, "model")
        await harness.shows("SORTED by model ▲", "model▲")
        await click_title(harness, requests, "model")
        await harness.shows("SORTED by model ▼")
        await click_title(harness, requests, "model")
        await harness.shows("FOLLOW")
        await harness.press("4")
        clients = harness.main.query_one(ClientList)
        chosen = clients.cursor_key
        await click_title(harness, clients, "req/d")
        today = [client.today.requests for client in clients.items]
        assert today == sorted(today, reverse=True)
        await harness.shows("req/d▼")
        assert clients.cursor_key == chosen
        await click_title(harness, clients, "req/d")
        assert [client.today.requests for client in clients.items] == sorted(today)
        await harness.press("2")
        streams = harness.main.query_one(InflightPane).query_one(StreamList)
        before = streams.sorting
        await click_title(harness, streams, "waits for")
        assert (before, streams.sorting) == (None, Sorting("waits for", descending=False))


@pytest.mark.parametrize(
    ("descending", "found"), [(False, ["c1", "B2", "b2", "a3", "-"]), (True, ["a3", "B2", "b2", "c1", "-"])]
)
def test_rows_are_sorted_by_value_and_those_without_one_are_last(descending: bool, found: list[str]) -> None:  # noqa: FBT001 - a parameter
    """Equal rows keep their order, in both directions."""
    rows = ["-", "B2", "a3", "b2", "c1"]
    value = {"1": 1, "2": 2, "3": 3}
    assert in_order(rows, lambda row: value.get(row[-1]), descending=descending) == found


def test_texts_begin_with_a_and_numbers_with_the_largest() -> None:
    """By what the rows have; without any there is nothing to see."""
    assert natural("name", ["b", "a"], lambda row: row) == Sorting("name", descending=False)
    assert natural("age", [None, 3], lambda row: row) == Sorting("age", descending=True)
