"""Times and filters as an operator types them, in a real terminal."""

from __future__ import annotations

import re
import struct
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from relayd.state.records import utc_text
from tests.admin.harness import admin_api
from tests.tui.tmux import Tmux, needs_tmux
from tui.screens.dialogs import parse_moment


def _clocks_back(home: Path) -> tuple[Path, datetime]:
    """Write a time zone (RFC 9636) where it is noon, and the clocks went back at 3:00; return midnight, too.

    That is midnight by the clocks of now: until the change they were an hour ahead.
    """
    now = datetime.now(UTC)
    ahead = timedelta(hours=12 - now.hour)
    midnight = now.replace(hour=0, minute=0, second=0, microsecond=0) - ahead
    summer, winter = midnight - timedelta(days=100), midnight + timedelta(hours=2)
    zone = home / "zone"
    zone.write_bytes(
        struct.pack(">4s16x6l", b"TZif", 0, 0, 0, 2, 2, 4)
        + struct.pack(">2l2B", int(summer.timestamp()), int(winter.timestamp()), 1, 0)
        + struct.pack(">l2B", int(ahead.total_seconds()), 0, 0)
        + struct.pack(">l2B", int(ahead.total_seconds()) + 3600, 1, 0)
        + b"XXX\0"
    )
    return zone, midnight


@needs_tmux
async def test_a_time_that_does_not_exist_and_a_filter_that_is_wrong_are_told_in_full(tmp_path: Path) -> None:
    """25:99 stays in its dialog, `↓` leads to Cancel; a time leaves a sorted list; Tab keeps a filter.

    An hour of yesterday is that of yesterday's clocks; of two of the same name, the last is meant.
    """
    zone, midnight = _clocks_back(tmp_path)
    began = [-8, -7, -6, 1.5, 2.5]
    async with admin_api(tmp_path) as api:
        for number, hours in enumerate(began):
            at = midnight + timedelta(hours=hours)
            api.log(1, f"r{number}", started_at=utc_text(at.timestamp()), duration_ms=[3, 1, 5, 4, 2][number])
        with Tmux(("--socket", str(api.socket)), tmp_path, (80, 24), zone=str(zone)) as terminal:
            await terminal.until("5 records")
            terminal.press("t")
            await terminal.until("Go to a time")
            terminal.type("25:99")
            terminal.press("Enter")
            await terminal.until("There is no such time: 25:99.")
            terminal.press("Down", "Enter")
            await terminal.until(lambda screen: "Go to a time" not in screen and "FOLLOW" in screen)
            for typed, row in (("18:00", "▶18:00:00 "), ("2:30", " 02:30:00 .*\n▶02:30:00 ")):
                terminal.press("s")
                await terminal.until("SORTED by duration")
                terminal.press("t")
                await terminal.until("Go to a time")
                terminal.type(typed)
                terminal.press("Enter")
                await terminal.until(
                    lambda screen, row=row: "SORTED" not in screen and re.search(row, screen)  # type: ignore[misc]  # the loop's own value
                )
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
    ("now", "typed", "found"),
    [
        ("10-25T11:00", "23:00", "10-24T21:00"),
        ("10-25T11:00", "11:30", "10-25T10:30"),
        ("10-25T11:00", "2026-10-24 23:00", "10-24T21:00"),
        ("10-25T11:00", "10m", "10-25T10:50"),
        ("10-25T11:00", "2:30", "10-25T01:30"),
        ("10-25T01:10", "2:30", "10-25T00:30"),
        ("10-25T01:10", "2026-10-25 02:30", "10-25T00:30"),
        ("10-25T00:10", "2:30", "10-24T00:30"),
        ("10-25T00:10", "2026-10-25 02:30", "10-25T00:30"),
        ("03-29T11:00", "2:30", "03-28T01:30"),
        ("03-30T00:10", "2:30", "03-28T01:30"),
        ("03-29T11:00", "2026-03-29 03:30", "03-29T01:30"),
    ],
)
def test_yesterday_is_a_day_of_the_calendar(
    monkeypatch: pytest.MonkeyPatch, now: str, typed: str, found: str
) -> None:
    """In Berlin the clocks went forward at 2:00 on March 29, and back at 3:00 on October 25; now is UTC."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    now_s, found_s = (datetime.fromisoformat(f"2026-{text}+00:00").timestamp() for text in (now, found))
    assert parse_moment(typed, now_s) == found_s


@pytest.mark.parametrize(
    "typed",
    [
        "25:99",
        "12:60",
        "2026-02-30 10:00",
        "2026-03-29 02:30",
        "0001-01-01 0:00",
        "9999-12-31 23:59",
        "soon",
        "",
    ],
)
def test_what_is_no_time_is_told(monkeypatch: pytest.MonkeyPatch, typed: str) -> None:
    """Every refusal is a sentence."""
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    time.tzset()
    with pytest.raises(ValueError, match=r"\.$"):
        parse_moment(typed, 1_790_000_000.0)
