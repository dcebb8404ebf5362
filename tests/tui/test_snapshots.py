"""The screens as text, at fixed sizes and a fixed time, and their colours by rule.

`UPDATE_SNAPSHOTS=1 pytest tests/tui/test_snapshots.py` writes the files anew; look at the difference.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.tui.app_harness import AppHarness, running_app
from tui.screens.key_dialogs import AskGrace

SNAPSHOTS = Path(__file__).parent / "snapshots"
NARROW, WIDE = (80, 24), (140, 40)


def compare(harness: AppHarness, name: str) -> None:
    """Hold the screen against the file of this name."""
    path = SNAPSHOTS / f"{name}.txt"
    shown = harness.text().rstrip("\n") + "\n"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.write_text(shown)
    assert shown == path.read_text(), f"{path.name} differs; UPDATE_SNAPSHOTS=1 writes it anew"


@pytest.mark.parametrize("size", [NARROW, WIDE], ids=["80x24", "140x40"])
async def test_the_screens_look_as_they_did(tmp_path: Path, size: tuple[int, int]) -> None:
    """Requests, In flight, Keys and a dialog at both sizes."""
    name = f"{size[0]}x{size[1]}"
    async with running_app(tmp_path, size=size) as harness:
        for _ in range(6):
            await harness.go_on(1)
        compare(harness, f"requests-{name}")
        await harness.press("2")
        compare(harness, f"inflight-{name}")
        await harness.press("4")
        compare(harness, f"keys-{name}")
        await harness.press("r")
        await harness.dialog(AskGrace)
        await harness.redraw()
        compare(harness, f"rotate-{name}")


async def test_the_wide_screen_shows_more_than_the_narrow_one(tmp_path: Path) -> None:
    """At 140x40: sparklines, the detail beside the list, open streams and errors by cause below."""
    async with running_app(tmp_path, size=WIDE) as harness:
        await harness.go_on(5)
        screen = harness.text()
        for part in ("first p50", "Every field", "waits for", "errors by cause"):
            assert part in screen
