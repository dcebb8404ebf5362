"""The command palette and the help: everything can be found."""

from __future__ import annotations

import json
from pathlib import Path

from textual.binding import Binding
from textual.widgets import OptionList

from tests.tui.stage import on_stage, until
from tui.palette import commands
from tui.theme import LIGHT


async def test_every_action_of_every_screen_is_a_command(tmp_path: Path) -> None:
    """What has a key has a command too, and one that can't run now says why."""
    async with on_stage(tmp_path, readonly=True) as stage:
        for key in "12345":
            await stage.press(key)
            offered = {command.title: command.help for command in commands(stage.app)}
            bindings = type(stage.app.main.pane).BINDINGS
            assert {b.description for b in bindings if isinstance(b, Binding)} <= set(offered)
            assert "--readonly" in offered["Drain, then stop the daemon"]


async def test_colours_are_chosen_in_the_palette_and_remembered(tmp_path: Path) -> None:
    """`:` opens it, a few letters and Enter choose, the next start has the theme."""
    async with on_stage(tmp_path) as stage:
        await stage.press("colon")
        await until(lambda: len(stage.app.screen_stack) == 2)
        await stage.type("light")
        await until(lambda: "relayd-light" in stage.text(), "the command")
        await until(lambda: stage.app.screen.query_one(OptionList).highlighted == 0, "the first command")
        await stage.press("enter")
        await until(lambda: stage.app.theme == LIGHT, "the theme")
    assert json.loads((tmp_path / "tui.json").read_text())["theme"] == LIGHT


async def test_help_lists_the_keys_of_this_screen(tmp_path: Path) -> None:
    """`?` on Keys names what can be done with keys; Escape closes it."""
    async with on_stage(tmp_path, size=(100, 60)) as stage:
        await stage.press("K", "question_mark")
        await until(lambda: len(stage.app.screen_stack) == 2)
        await stage.settle()
        assert "Rotate this key" in stage.text()
        await stage.press("escape")
        assert len(stage.app.screen_stack) == 1
