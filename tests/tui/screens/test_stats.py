"""The Stats screen."""

from __future__ import annotations

from pathlib import Path

from tests.tui.app_harness import app_with_past


async def test_each_window_says_when_it_begins_and_what_it_counts(tmp_path: Path) -> None:
    """By the clock within a day, else by how long ago; 25 minutes of requests are all in the hour."""
    async with app_with_past(tmp_path, size=(140, 40)) as (harness, past):
        ended = sum(record.outcome is not None for record in past.records)
        for key, begins in (("3", "14:08"), ("right", "13:13"), ("right", "24 h ago"), ("right", "7 d ago")):
            await harness.press(key)
            await harness.shows(begins)
            if key == "right":
                await harness.shows(f"{ended} requests")
        await harness.press("left", "left")
        await harness.shows("[1 h]")
