"""The Requests screen, by keys and by mouse."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path

import pytest
from textual import events

from relayd.admin.client import AdminClient
from relayd.admin.schema import RequestRecord, UsageSource, epoch_s, utc_text
from relayd.state.directory import StateDirectory
from relayd.state.state import State
from tests.admin.harness import admin_api, log_requests
from tests.tui.app_harness import AppHarness, app_with_past, files, running_app
from tests.wire import until
from tui.export import ndjson_line
from tui.model.app_state import Connection
from tui.model.stats import is_error
from tui.model.store import MarkKind
from tui.screens.dialogs import Confirm
from tui.widgets.cause_list import CauseList
from tui.widgets.line_list import LineList
from tui.widgets.request_list import RequestList


def shown(harness: AppHarness) -> list[RequestRecord]:
    """The records of the list, in its order."""
    view = harness.state.view
    rows = [view.row_at(index) for index in range(len(view))]
    return [row for row in rows if isinstance(row, RequestRecord)]


async def test_a_new_request_appears_while_it_runs_and_changes_when_it_ends(tmp_path: Path) -> None:
    """The newest row follows the daemon: running first, then with its status."""
    async with app_with_past(tmp_path) as (harness, past):
        request = past.begin(model="the-new-one")
        await harness.shows("conn chat the-new-one")
        past.end(request, status=504)
        await until(lambda: re.search(r"504 +chat +the-new-one", harness.text()))
        assert "FOLLOW" in harness.text()


async def test_scrolling_up_freezes_and_new_rows_move_nothing(tmp_path: Path) -> None:
    """What the operator reads stays where it is; a count says how much is new; End follows again."""
    async with app_with_past(tmp_path) as (harness, past):
        await harness.press("k", "k", "pageup")
        rows = harness.main.query_one(RequestList)
        looked_at = [line[:9] for line in harness.text().splitlines()[4:22]]
        key = rows.cursor_key
        past.more(8)
        await harness.caught_up(past)
        assert [line[:9] for line in harness.text().splitlines()[4:22]] == looked_at
        assert rows.cursor_key == key
        assert "FROZEN 8 new (End)" in harness.text()
        await harness.press("end")
        assert "FOLLOW" in harness.text()
        assert rows.cursor == rows.row_count() - 1
        for word in ("FROZEN", "FOLLOW"):
            await harness.press("space")
            assert word in harness.text()


async def test_a_filter_is_previewed_kept_turned_off_and_on(tmp_path: Path) -> None:
    """Matches show while typing; a wrong filter points at the place and leaves the last good one on."""
    async with app_with_past(tmp_path) as (harness, _):
        total = len(harness.state.store)
        await harness.press("slash")
        await harness.press(*"status>=500")
        await until(lambda: not harness.state.view.scanning)
        await harness.redraw()
        matches = harness.state.view.match_count
        assert 0 < matches < total
        assert f"{matches} matches" in harness.text()
        await harness.press(*" bogus=1")
        assert "There is no field 'bogus'" in harness.text()
        kept = harness.state.view.filter
        assert kept is not None
        assert kept.text == "status>=500 bogus"
        await harness.press(*["backspace"] * 8, "enter")
        await until(lambda: harness.state.view.match_count == matches)
        await harness.redraw()
        assert f"{matches} of {total:,}" in harness.text()
        await harness.press("f")
        assert "(off; f)" in harness.text()
        assert len(harness.state.view) == total
        await harness.press("f", "g", "n")
        assert harness.state.view.is_match(int(harness.main.query_one(RequestList).cursor_key or 0))
    remembered = json.loads((tmp_path / "tui.json").read_text())
    assert remembered["filter"] == "status>=500"


async def test_escape_gives_the_filter_from_before_back(tmp_path: Path) -> None:
    """Looking for something else is no commitment."""
    async with app_with_past(tmp_path) as (harness, _):
        await harness.press("slash")
        await harness.press(*"client=ci")
        await harness.press("escape")
        assert harness.state.view.filter is None


async def test_e_goes_from_error_to_error(tmp_path: Path) -> None:
    """From the newest row the search goes up."""
    async with app_with_past(tmp_path) as (harness, _):
        pane = harness.requests
        await harness.press("e")
        first = pane.chosen()
        await harness.press("E")
        second = pane.chosen()
        assert first is not None
        assert second is not None
        assert is_error(first)
        assert is_error(second)
        assert second.seq < first.seq


async def test_the_detail_says_why_and_where_the_time_went(tmp_path: Path) -> None:
    """On a narrow screen it covers the list, and Escape gives the list back."""
    async with app_with_past(tmp_path) as (harness, _):
        await harness.press("e", "enter")
        record = harness.requests.chosen()
        assert record is not None
        assert record.error is not None
        screen = harness.text()
        assert record.error.code in screen
        assert "first token" in screen
        await harness.press("end")
        assert "upstream_request_id" in harness.detail_text()
        await harness.press("escape")
        assert "time     st" in harness.text()


@pytest.mark.parametrize("size", [(80, 24), (140, 40)])
async def test_the_detail_has_a_timeline_and_the_raw_record(tmp_path: Path, size: tuple[int, int]) -> None:
    """Right turns from the summary to what happened when, to the JSON of the log; a click goes back."""
    async with app_with_past(tmp_path, size=size) as (harness, _):
        await harness.press("e", "enter")
        record = harness.requests.chosen()
        assert record is not None
        assert "[Summary]" in harness.text()
        await harness.press("right")
        assert "[Timeline]" in harness.text()
        assert f"came from {record.ip}" in harness.text()
        await harness.press("right_square_bracket")
        assert "[Raw]" in harness.text()
        shown = harness.detail_text()
        assert json.loads(shown) == json.loads(ndjson_line(record))
        await harness.pilot.click("#detail-views", offset=(3, 0))
        await harness.idle()
        assert "[Summary]" in harness.text()


async def test_cancel_asks_first_with_the_focus_on_leave_it(tmp_path: Path) -> None:
    """Enter on the dialog as it opens does nothing; only choosing to cancel asks the daemon."""
    async with app_with_past(tmp_path) as (harness, past):
        await harness.press("x")
        await harness.dialog(Confirm)
        await harness.press("enter")
        assert [entry for entry in harness.state.audit if entry.action == "cancel"] == []
        await harness.press("x")
        await harness.dialog(Confirm)
        await harness.press("tab", "enter")
        await harness.shows("Cancel a request: not done. No open stream", f"'{past.records[-1].id}'")
        await until(lambda: harness.state.audit[0].action == "cancel")


async def test_a_request_tells_what_it_asked_for_and_what_it_cost(tmp_path: Path) -> None:
    """The list has the kind of path, and the cost where there is room; the open request has all of it."""
    async with app_with_past(tmp_path, size=(140, 40)) as (harness, past):
        tokens = {"prompt_tokens": 1200, "cached_tokens": 1024, "completion_tokens": 345}
        request = past.begin(path="/v1/responses", model="the-new-one", route="spare")
        past.end(request, **tokens, cost_usd=0.01234, usage_source=UsageSource.ESTIMATE)
        await until(lambda: re.search(r"200 +responses +the-new-one .* 0.012 ", harness.text()))
        use = "responses · 1,200 tokens in (1,024 cached), 345 out · US$ 0.012 · estimated · by route spare"
        assert use in harness.detail_text()


async def test_sorting_shows_the_slowest_first_and_escape_goes_back(tmp_path: Path) -> None:
    """Sorted is a still picture, named in the filter line; what runs has lasted until now."""
    async with app_with_past(tmp_path) as (harness, _):
        await harness.press("s")
        assert "SORTED by duration ▼" in harness.text()
        now_s = harness.app.context.now_s()
        durations = [
            1000 * (now_s - epoch_s(record.started_at)) if record.outcome is None else record.duration_ms or 0
            for record in shown(harness)
        ]
        assert durations == sorted(durations, reverse=True)
        await harness.press("S")
        await harness.shows("SORTED by duration ▲", "▲dur")
        assert (shown(harness)[0].duration_ms or 0) == min(durations)
        await harness.press("escape")
        assert "FOLLOW" in harness.text()


async def test_a_sorted_list_has_all_that_passes_the_filter_and_all_when_it_is_off(tmp_path: Path) -> None:
    """Sorted before every record was tried, it is sorted again at the end; `f` sorts what it brings."""
    async with app_with_past(tmp_path) as (harness, past):
        for key in ("slash", *"status=200", "enter", "s"):
            char = "/" if key == "slash" else key if len(key) == 1 else None
            harness.app.post_message(events.Key(key, char))
        passing = sorted((r.duration_ms or 0 for r in past.records if r.status == 200), reverse=True)
        await until(lambda: harness.state.view.sorting is not None and not harness.state.view.scanning)
        await harness.idle()
        assert [record.duration_ms for record in shown(harness)] == passing
        await harness.press("f")
        await harness.shows("(off; f)", "SORTED by duration ▼")
        assert len(shown(harness)) == len(past.records)
        await harness.press("f")
        assert [record.duration_ms for record in shown(harness)] == passing


async def test_a_time_is_gone_to(tmp_path: Path) -> None:
    """Twenty minutes back lands on the first record of that time."""
    async with app_with_past(tmp_path) as (harness, past):
        await harness.press("t", *"20m", "enter")
        record = harness.requests.chosen()
        assert record is not None
        assert record.started_at == utc_text(past.now_s - 20 * 60)


async def test_a_time_before_what_is_loaded_is_loaded_first(tmp_path: Path) -> None:
    """`t` reaches back into the log as far as the log goes."""
    async with app_with_past(tmp_path, past_s=5000, backlog=False) as (harness, past):
        oldest = past.records[0]
        assert harness.state.store.oldest_seq != oldest.seq
        await harness.press("t", *"2h", "enter")
        await until(lambda: (record := harness.requests.chosen()) and record.id == oldest.id)
        assert harness.app.feed.history.exhausted


async def test_what_is_shown_is_exported_privately(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NDJSON of the rows that were there when it was asked for, in a new file only for the operator."""
    monkeypatch.chdir(tmp_path)
    async with app_with_past(tmp_path) as (harness, past):
        asked_for = [record.id for record in shown(harness)]
        await harness.press("w")
        await until(lambda: harness.windows > 1)
        past.more(2)
        await harness.caught_up(past)
        await harness.press("tab", "enter")
        await until(lambda: files(tmp_path, "relayd-*.ndjson"))
        [path] = files(tmp_path, "relayd-*.ndjson")
        await until(lambda: path.read_text().count("\n") >= len(asked_for))
    assert path.stat().st_mode & 0o777 == 0o600
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == asked_for


async def test_every_screen_survives_a_tiny_window_and_back(tmp_path: Path) -> None:
    """At 40x10 nothing fails, and at full size all is there again."""
    async with app_with_past(tmp_path) as (harness, _):
        for key in "12345":
            await harness.press(key)
            await harness.pilot.resize_terminal(40, 10)
            await harness.redraw()
            await harness.pilot.resize_terminal(140, 40)
            await harness.redraw()
            assert harness.main.query(LineList)
        await harness.press("1")
        assert "errors, 1 h" in harness.text()


async def test_a_filter_reaches_back_beyond_what_is_loaded(tmp_path: Path) -> None:
    """With few records in memory the daemon is asked for older matches, down to the first."""
    async with app_with_past(tmp_path, past_s=5000, backlog=False) as (harness, past):
        state = harness.state
        wanted = [record.id for record in past.records if record.status == 502]
        await harness.press("slash", *"status=502", "enter", "g", "g")
        await until(lambda: state.view.asked_all)
        await harness.press("g")
        await harness.redraw()
        assert [record.id for record in shown(harness)] == wanted
        assert f"of {state.store.record_count:,} + {state.view.older_count:,} older" in harness.text()
        await harness.press("enter")
        assert wanted[0] in harness.detail_text()


async def test_few_matches_are_filled_up_from_disk_unasked(tmp_path: Path) -> None:
    """Enter alone brings older matches while the screen has room for them."""
    async with app_with_past(tmp_path, past_s=5000, backlog=False) as (harness, past):
        await harness.press("slash", *f"id={past.records[0].id}", "enter")
        await until(lambda: len(harness.state.view) == 1)
        await harness.shows("0 of 500 + 1 older")


async def test_a_long_absence_leaves_a_gap_that_enter_fills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too much to replay is not replayed: a row says so, and loads it when asked."""
    monkeypatch.setattr("tui.feed.SKIP_EVENTS", 100)
    monkeypatch.setattr("tui.feed.PAGE", 20)
    async with running_app(tmp_path, AdminClient(tmp_path / "state" / "admin.sock")) as harness:
        async with admin_api(tmp_path) as api:
            api.log(5)
            await until(lambda: len(shown(harness)) == 5)
        await until(lambda: harness.state.connection is not Connection.LIVE)
        state = State.open(
            StateDirectory(tmp_path / "state"),
            boot_id="away",
            keep_days=30,
            max_mib=512,
            on_commit=lambda _: None,
        )
        log_requests(state, 75, "away")
        assert await asyncio.to_thread(state.close)
        async with admin_api(tmp_path, boot_id="next") as api:
            harness.app.feed.retry_now()
            await until(lambda: harness.state.store.marks(MarkKind.GAP))
            [(key, _)] = harness.state.store.marks(MarkKind.GAP)
            await harness.redraw()
            harness.requests.rows.go_to(harness.state.view.index_of(key))
            await harness.shows("Enter loads them")
            await harness.press("enter")
            await until(lambda: not harness.state.store.marks(MarkKind.GAP))
            logged = (await api.client.requests(limit=1000)).records
            assert [record.id for record in shown(harness)] == [record.id for record in reversed(logged)]


async def test_an_error_cause_filters_the_list(tmp_path: Path) -> None:
    """Enter on a cause shows its failures, Esc leads back; a cause says when it was seen and whom it hit."""
    async with app_with_past(tmp_path, size=(140, 40)) as (harness, past):
        await harness.shows("errors, 1 h count first last clients", "upstream_failed 25 24m 45s web, ci")
        harness.requests.focus_now(harness.requests.query_one(CauseList))
        await harness.press("enter")
        await until(lambda: harness.state.view.filter is not None and not harness.state.view.scanning)
        failed = [record.id for record in past.records if record.status == 502]
        assert [record.id for record in shown(harness)] == failed
        await harness.press("escape")
        assert harness.state.view.filter is None
        await harness.press("3", "c", "c", "enter")
        await harness.shows('error="upstream_failed"', "Esc back to Stats")


async def test_an_app_that_finds_no_room_says_so_and_is_let_in_when_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many programs follow the events already: the app asks again, and is live once one has left.

    Its list is empty then, and says what to press; a key that can't act says why.
    """
    async with admin_api(tmp_path) as api:
        with monkeypatch.context() as full:
            full.setattr("relayd.admin.log_handlers.MAX_FOLLOWERS", 0)
            async with running_app(tmp_path, api.client) as harness:
                await harness.shows("CONNECTING: 0 programs already follow the events; close one")
                full.undo()
                await harness.shows("● LIVE", "K shows the clients", "Enter(open)")
                await harness.press("x")
                await harness.shows("No request is chosen.")
                await harness.press("enter")
                await until(lambda: harness.text().count("No requests yet.") > 1)
