"""The screens as text, at fixed sizes and a fixed time, and their colours by rule.

`UPDATE_SNAPSHOTS=1 pytest tests/tui/test_snapshots.py` writes the files anew; look at the difference.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.tui.app_harness import TRUECOLOR, AppHarness, running_app, until
from tui.screens.key_dialogs import AskGrace

SNAPSHOTS = Path(__file__).parent / "snapshots"
NARROW, WIDE = (80, 24), (140, 40)
SIXTEEN = set(range(16))


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
        await until(lambda: isinstance(harness.app.screen, AskGrace))
        await harness.settle()
        compare(harness, f"rotate-{name}")


async def test_the_ansi_theme_uses_sixteen_colours(tmp_path: Path) -> None:
    """On a terminal of 16 colours every colour is one of them, or the terminal's own."""
    async with running_app(tmp_path, env={"TERM": "xterm"}) as harness:
        await harness.go_on(5)
        for key in ("1", "e", "enter", "3", "4"):
            await harness.press(key)
            colours = {c for s in harness.styles() for c in (s.color, s.bgcolor) if c is not None}
            assert {c.name for c in colours if not c.is_default and c.number not in SIXTEEN} == set()


async def test_no_color_shows_no_colour_and_still_says_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With NO_COLOR nothing is coloured; the row under the cursor is reversed, states are words."""
    monkeypatch.setenv("NO_COLOR", "1")
    async with running_app(tmp_path, env=TRUECOLOR) as harness:
        await harness.go_on(5)
        styles = harness.styles()
        assert {s.color.name for s in styles if s.color is not None and not s.color.is_default} == set()
        assert {s.bgcolor.name for s in styles if s.bgcolor is not None and not s.bgcolor.is_default} == set()
        assert any(s.reverse for s in styles)
        assert "LIVE" in harness.text()
        assert "▶" in harness.text()


async def test_the_wide_screen_shows_more_than_the_narrow_one(tmp_path: Path) -> None:
    """At 140x40: sparklines, the detail beside the list, open streams and errors by cause below."""
    async with running_app(tmp_path, size=WIDE) as harness:
        await harness.go_on(5)
        screen = harness.text()
        for part in ("first p50", "Every field", "waits for", "errors by cause"):
            assert part in screen
