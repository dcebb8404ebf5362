"""Times and filters as an operator types them, in a real terminal."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.admin.harness import admin_api
from tests.tui.tmux import Tmux, needs_tmux
from tui.screens.dialogs import parse_moment


@needs_tmux
async def test_a_time_that_does_not_exist_and_a_filter_that_is_wrong_are_told_in_full(tmp_path: Path) -> None:
    """25:99 stays in its dialog, `↓` leads to Cancel; a time leaves a sorted list; Tab keeps a filter."""
    async with admin_api(tmp_path) as api:
        api.log(5)
        with Tmux(("--socket", str(api.socket)), tmp_path, (80, 24)) as terminal:
            await terminal.until("5 records")
            terminal.press("s")
            await terminal.until("SORTED by duration")
            terminal.press("t")
            await terminal.until("Go to a time")
            terminal.type("25:99")
            terminal.press("Enter")
            await terminal.until("There is no such time: 25:99.")
            terminal.press("Down", "Enter")
            await terminal.until(lambda screen: "Go to a time" not in screen and "SORTED" in screen)
            terminal.press("t")
            await terminal.until("Go to a time")
            terminal.type("1h")
            terminal.press("Enter")
            await terminal.until(lambda screen: "Go to a time" not in screen and "SORTED" not in screen)
            terminal.press("/")
            await terminal.until("Enter keeps it")
            terminal.type("model~gpt status>=500 client=web qqqq=1")
            await terminal.until("to search for it.")
            terminal.press("Tab")
            terminal.press("C-u")
            terminal.type("model~none")
            await terminal.until("0 matches")
            terminal.press("Tab")
            await terminal.until("0 of 5 ")
            terminal.press("Q")
            assert await terminal.ended() in {"0", ""}


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("23:00", datetime(2026, 10, 24, 21, tzinfo=UTC)),
        ("11:30", datetime(2026, 10, 25, 10, 30, tzinfo=UTC)),
        ("2026-10-24 23:00", datetime(2026, 10, 24, 21, tzinfo=UTC)),
        ("10m", datetime(2026, 10, 25, 10, 50, tzinfo=UTC)),
    ],
)
def test_yesterday_is_a_day_of_the_calendar(
    monkeypatch: pytest.MonkeyPatch, typed: str, found: datetime
) -> None:
    """The clocks went back at 3:00 today, at noon in Berlin: the day has 25 hours."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    now = datetime(2026, 10, 25, 11, tzinfo=UTC)
    assert parse_moment(typed, now.timestamp()) == found.timestamp()


@pytest.mark.parametrize("typed", ["25:99", "12:60", "2026-02-30 10:00", "soon", ""])
def test_what_is_no_time_is_told(typed: str) -> None:
    """Every refusal is a sentence."""
    with pytest.raises(ValueError, match=r"\.$"):
        parse_moment(typed, 1_790_000_000.0)
