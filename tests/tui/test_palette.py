"""The command palette and the help: everything can be found."""

from __future__ import annotations

import json
from pathlib import Path

from textual.binding import Binding
from textual.widgets import OptionList

from tests.tui.app_harness import app_with_past
from tests.wire import until
from tui.theme import LIGHT


async def test_every_action_of_every_screen_is_a_command(tmp_path: Path) -> None:
    """What has a key has a command too, and one that can't run now says why."""
    async with app_with_past(tmp_path, readonly=True) as (harness, _):
        for key in "1234578":
            await harness.press(key)
            offered = {c.title: c.help for c in harness.app.get_system_commands(harness.screen)}
            bindings = type(harness.main.pane).BINDINGS
            assert {b.description for b in bindings if isinstance(b, Binding)} <= set(offered)
            assert "--readonly" in offered["Drain, then stop the daemon"]


async def test_colours_are_chosen_in_the_palette_and_remembered(tmp_path: Path) -> None:
    """`:` opens it, a few letters and Enter choose, the next start has the theme."""
    async with app_with_past(tmp_path) as (harness, _):
        await harness.press("colon")
        await until(lambda: harness.windows == 2)
        await harness.press(*"light")
        await until(lambda: "relayd-light" in harness.text())
        await until(lambda: harness.screen.query_one(OptionList).highlighted == 0)
        await harness.press("enter")
        await until(lambda: harness.app.theme == LIGHT)
    assert json.loads((tmp_path / "tui.json").read_text())["theme"] == LIGHT


async def test_help_lists_the_keys_of_this_screen(tmp_path: Path) -> None:
    """`?` on Clients names what can be done with keys; Escape closes it."""
    async with app_with_past(tmp_path, size=(100, 60)) as (harness, _):
        await harness.press("K", "question_mark")
        await until(lambda: harness.windows == 2)
        await harness.redraw()
        assert "Rotate the key" in harness.text()
        await harness.press("escape")
        assert harness.windows == 1


async def test_readonly_changes_nothing(tmp_path: Path) -> None:
    """Every change is refused with the reason."""
    async with app_with_past(tmp_path, readonly=True) as (harness, _):
        for keys in (("P",), ("D",), ("K", "r"), ("exclamation_mark",), ("a",), ("e",), ("d",)):
            await harness.press(*keys)
            assert harness.windows == 1
        await harness.shows("--readonly", "r(rotate)", "!(revoke)", "a(add)", "e(edit)")
