"""The Requests screen, by keys and by mouse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from relayd.admin.schema import Outcome, RequestRecord
from tests.tui.stage import files, on_stage, until
from tui.model.desk import Contact
from tui.model.export import ndjson_line
from tui.model.stats import is_error
from tui.model.store import record_key
from tui.screens.confirm import Confirm
from tui.screens.requests import RequestsPane
from tui.widgets.bars import KeyBar, TabBar
from tui.widgets.detail import Detail
from tui.widgets.line_list import LineList
from tui.widgets.request_list import RequestList


async def test_a_new_request_appears_while_it_runs_and_changes_when_it_ends(tmp_path: Path) -> None:
    """The newest row follows the daemon: running first, then with its status."""
    async with on_stage(tmp_path) as stage:
        before = len(stage.app.desk.store)
        await stage.go_on(6)
        assert len(stage.app.desk.store) > before
        assert " run " in stage.text() or " wait " in stage.text() or " conn " in stage.text()
        running = [s.progress.id for s in stage.app.desk.live.streams.values()]
        await stage.go_on(90)
        ended = stage.link.daemon.find(running[0])
        assert ended is not None
        assert ended.outcome is not None
        assert "FOLLOW" in stage.text()


async def test_scrolling_up_freezes_and_new_rows_move_nothing(tmp_path: Path) -> None:
    """What the operator reads stays where it is; a count says how much is new; End follows again."""
    async with on_stage(tmp_path) as stage:
        await stage.press("k", "k", "pageup")
        rows = stage.app.main.query_one(RequestList)
        looked_at = [line[:9] for line in stage.text().splitlines()[4:22]]
        key = rows.cursor_key
        await stage.go_on(30)
        assert [line[:9] for line in stage.text().splitlines()[4:22]] == looked_at
        assert rows.cursor_key == key
        assert "FROZEN" in stage.text()
        assert f"{rows.new_count} new (End)" in stage.text()
        assert rows.new_count > 5
        await stage.press("end")
        assert "FOLLOW" in stage.text()
        assert rows.cursor == rows.row_count() - 1


async def test_space_freezes_and_follows(tmp_path: Path) -> None:
    """The footer names the key, and it works both ways."""
    async with on_stage(tmp_path) as stage:
        await stage.press("space")
        assert "FROZEN" in stage.text()
        await stage.press("space")
        assert "FOLLOW" in stage.text()


async def test_a_filter_is_previewed_kept_turned_off_and_on(tmp_path: Path) -> None:
    """Matches show while typing; a wrong filter points at the place and leaves the last good one on."""
    async with on_stage(tmp_path) as stage:
        total = len(stage.app.desk.store)
        await stage.press("slash")
        await stage.type("status>=500")
        await until(lambda: not stage.app.desk.view.scanning)
        await stage.settle()
        matches = stage.app.desk.view.match_count
        assert 0 < matches < total
        assert f"{matches} matches" in stage.text()
        await stage.type(" bogus=1")
        assert "There is no field 'bogus'" in stage.text()
        kept = stage.app.desk.view.filter
        assert kept is not None
        assert kept.text == "status>=500 bogus"
        await stage.press(*["backspace"] * 8, "enter")
        await until(lambda: stage.app.desk.view.match_count == matches)
        await stage.settle()
        assert f"{matches} of {total:,}" in stage.text()
        await stage.press("f")
        assert "(off; f)" in stage.text()
        assert len(stage.app.desk.view) == total
        await stage.press("f", "g", "n")
        assert stage.app.desk.view.is_match(int(stage.app.main.query_one(RequestList).cursor_key or 0))
    remembered = json.loads((tmp_path / "tui.json").read_text())
    assert remembered["filter"] == "status>=500"


async def test_escape_gives_the_filter_from_before_back(tmp_path: Path) -> None:
    """Looking for something else is no commitment."""
    async with on_stage(tmp_path) as stage:
        await stage.press("slash")
        await stage.type("client=ci")
        await stage.press("escape")
        assert stage.app.desk.view.filter is None


async def test_e_goes_from_error_to_error(tmp_path: Path) -> None:
    """From the newest row the search goes up."""
    async with on_stage(tmp_path) as stage:
        pane = stage.app.main.query_one(RequestsPane)
        await stage.press("e")
        first = pane.chosen()
        await stage.press("E")
        second = pane.chosen()
        assert first is not None
        assert second is not None
        assert is_error(first)
        assert is_error(second)
        assert second.seq < first.seq


async def test_the_detail_says_why_and_where_the_time_went(tmp_path: Path) -> None:
    """On a narrow screen it covers the list, and Escape gives the list back."""
    async with on_stage(tmp_path) as stage:
        await stage.press("e", "enter")
        record = stage.app.main.query_one(RequestsPane).chosen()
        assert record is not None
        assert record.error is not None
        screen = stage.text()
        assert record.error.code in screen
        assert "first token" in screen
        await stage.press("end")
        assert "upstream id" in stage.app.main.query_one(Detail).query_one("#detail-text").render().plain  # type: ignore[union-attr]
        await stage.press("escape")
        assert "time     st" in stage.text()


@pytest.mark.parametrize("size", [(80, 24), (140, 40)])
async def test_the_detail_has_a_timeline_and_the_raw_record(tmp_path: Path, size: tuple[int, int]) -> None:
    """Right turns from the summary to what happened when, to the JSON of the log; a click goes back."""
    async with on_stage(tmp_path, size=size) as stage:
        await stage.press("e", "enter")
        record = stage.app.main.query_one(RequestsPane).chosen()
        assert record is not None
        assert "[Summary]" in stage.text()
        await stage.press("right")
        assert "[Timeline]" in stage.text()
        assert f"came from {record.ip}" in stage.text()
        await stage.press("right_square_bracket")
        assert "[Raw]" in stage.text()
        shown = stage.app.main.query_one(Detail).query_one("#detail-text").render().plain  # type: ignore[union-attr]
        assert json.loads(shown) == json.loads(ndjson_line(record))
        await stage.pilot.click("#detail-views", offset=(3, 0))
        await stage.quiet()
        assert "[Summary]" in stage.text()


async def test_cancel_asks_first_with_the_focus_on_leave_it(tmp_path: Path) -> None:
    """Enter on the dialog as it opens does nothing; choosing to cancel ends the stream."""
    async with on_stage(tmp_path) as stage:
        await stage.go_on(4)
        open_ids = set(stage.link.daemon.open)
        pane = stage.app.main.query_one(RequestsPane)
        rows = stage.app.main.query_one(RequestList)
        while (record := pane.chosen()) is None or record.id not in open_ids:
            rows.go_to(rows.cursor - 1)
        await stage.press("x")
        await until(lambda: isinstance(stage.app.screen, Confirm))
        await stage.press("enter")
        assert record.id in stage.link.daemon.open
        await stage.press("x")
        await until(lambda: isinstance(stage.app.screen, Confirm))
        await stage.press("tab", "enter")
        await until(lambda: record.id not in stage.link.daemon.open)
        ended = stage.link.daemon.find(record.id)
        assert ended is not None
        assert ended.outcome is Outcome.CANCELLED


async def test_sorting_shows_the_slowest_first_and_escape_goes_back(tmp_path: Path) -> None:
    """Sorted is a still picture, named in the filter line."""
    async with on_stage(tmp_path) as stage:
        await stage.press("s")
        assert "SORTED by duration" in stage.text()
        view = stage.app.desk.view
        rows = [view.row_at(index) for index in range(5)]
        durations = [row.duration_ms or 0 for row in rows if isinstance(row, RequestRecord)]
        assert durations == sorted(durations, reverse=True)
        await stage.press("escape")
        assert "FOLLOW" in stage.text()


async def test_a_time_is_gone_to(tmp_path: Path) -> None:
    """Half an hour back lands on a record of that time."""
    async with on_stage(tmp_path) as stage:
        await stage.press("t")
        await stage.type("30m")
        await stage.press("enter")
        record = stage.app.main.query_one(RequestsPane).chosen()
        assert record is not None
        assert record.started_at.startswith("2026-09-21T13:4") or record.started_at.startswith(
            "2026-09-21T13:3"
        )


async def test_a_time_before_what_is_loaded_is_loaded_first(tmp_path: Path) -> None:
    """`t` reaches back into the log as far as the log goes."""
    (tmp_path / "tui.json").write_text(json.dumps({"backlog_records": 1}))
    async with on_stage(tmp_path, wait_live=False, history_s=5000) as stage:
        await until(lambda: stage.app.desk.contact is Contact.LIVE, "contact")
        oldest = stage.link.daemon.records[0]
        assert stage.app.desk.store.oldest_seq != oldest.seq
        await stage.press("t")
        await stage.type("2h")
        await stage.press("enter")
        rows = stage.app.main.query_one(RequestList)
        await until(lambda: rows.cursor_key == record_key(oldest.seq), "the first record of all")
        assert stage.app.feed.history.exhausted


async def test_what_is_shown_is_exported_privately(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """NDJSON of the rows on the screen, in a new file that only the operator can read."""
    monkeypatch.chdir(tmp_path)
    async with on_stage(tmp_path) as stage:
        await stage.press("w")
        await until(lambda: len(stage.app.screen_stack) > 1)
        await stage.press("tab", "enter")
        await until(lambda: files(tmp_path, "relayd-*.ndjson"))
        [path] = files(tmp_path, "relayd-*.ndjson")
        await until(lambda: path.stat().st_size > 0)
    assert path.stat().st_mode & 0o777 == 0o600
    assert all("id" in json.loads(line) for line in path.read_text().splitlines())


async def test_everything_is_reached_by_mouse(tmp_path: Path) -> None:
    """Tabs and footer are clicked, a row is chosen by a click and opened by a second one."""
    async with on_stage(tmp_path) as stage:
        for name in ("keys", "stats", "audit", "inflight", "requests"):
            tabs = stage.app.main.query_one(TabBar)
            spot = next(spot for spot in tabs.spots if f"'{name}'" in spot.action)
            await stage.pilot.click(TabBar, offset=(spot.start + 2, 0))
            await stage.quiet()
            assert stage.app.main.pane.id == name
        await stage.pilot.click("#list", offset=(10, 5), times=2)
        await stage.quiet()
        assert stage.app.main.pane.has_class("-detail")
        bar = stage.app.main.query_one(KeyBar)
        spot = next(spot for spot in bar.spots if spot.action == "app.back")
        await stage.pilot.click(KeyBar, offset=(spot.start + 1, 0))
        await stage.quiet()
        assert not stage.app.main.pane.has_class("-detail")


async def test_every_screen_survives_a_tiny_window_and_back(tmp_path: Path) -> None:
    """At 40x10 nothing fails, and at full size all is there again."""
    async with on_stage(tmp_path) as stage:
        for key in "12345":
            await stage.press(key)
            await stage.pilot.resize_terminal(40, 10)
            await stage.settle()
            await stage.pilot.resize_terminal(140, 40)
            await stage.settle()
            assert stage.app.main.query(LineList)
        await stage.press("1")
        assert "errors by cause" in stage.text()


async def test_a_filter_reaches_back_beyond_what_is_loaded(tmp_path: Path) -> None:
    """With few records in memory the daemon is asked for older matches, down to the first."""
    (tmp_path / "tui.json").write_text(json.dumps({"backlog_records": 1}))
    async with on_stage(tmp_path, wait_live=False, history_s=5000) as stage:
        await until(lambda: stage.app.desk.contact is Contact.LIVE, "contact")
        daemon, desk = stage.link.daemon, stage.app.desk
        wanted = [record.seq for record in daemon.records if is_error(record) and record.status == 502]
        assert wanted[0] < (desk.store.oldest_seq or 0)
        await stage.press("slash")
        await stage.type("status=502")
        await stage.press("enter", "g", "g")
        await until(lambda: stage.app.desk.view.asked_all, "the end of the search")
        await stage.press("g")
        await stage.settle()
        shown = [desk.view.key_at(index) >> 1 for index in range(len(desk.view))]
        assert shown == wanted
        assert f"of {desk.store.record_count:,} + {desk.view.older_count:,} older" in stage.text()
        first = daemon.records[[record.seq for record in daemon.records].index(wanted[0])]
        await stage.press("enter")
        assert first.id in stage.app.main.query_one(Detail).query_one("#detail-text").render().plain  # type: ignore[union-attr]


async def test_few_matches_are_filled_up_from_disk_unasked(tmp_path: Path) -> None:
    """Enter alone brings older matches while the screen has room for them."""
    (tmp_path / "tui.json").write_text(json.dumps({"backlog_records": 1}))
    async with on_stage(tmp_path, wait_live=False, history_s=5000) as stage:
        await until(lambda: stage.app.desk.contact is Contact.LIVE, "contact")
        oldest = stage.link.daemon.records[0]
        await stage.press("slash")
        await stage.type(f"id={oldest.id}")
        await stage.press("enter")
        await until(lambda: len(stage.app.desk.view) == 1, "the match")
        await stage.settle()
        assert "0 of 500 + 1 older" in stage.text()
