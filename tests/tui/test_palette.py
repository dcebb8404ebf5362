"""The command palette and the help: everything can be found."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from textual.binding import Binding
from textual.widgets import OptionList

from tests.tui.app_harness import AppHarness, app_with_past, files
from tests.wire import until
from tui.keymap import usable
from tui.palette import commands, parts
from tui.screens.help import HelpScreen
from tui.screens.key_dialogs import AskGrace, AskRevoke
from tui.screens.main import pane_class
from tui.theme import LIGHT
from tui.widgets.bars import TABS

DOCS = Path(__file__).parents[2] / "docs/tui.md"


async def choose(harness: AppHarness, *keys: str, title: str) -> None:
    """Open the palette, type, and take the first command that is found."""
    await harness.press("colon")
    await until(lambda: harness.windows == 2)
    await harness.press(*keys)
    found = harness.screen.query_one(OptionList)
    await until(lambda: bool(found.options) and title in str(found.options[0].prompt))
    await harness.press("enter")


async def test_every_action_of_every_screen_is_a_command(tmp_path: Path) -> None:
    """What has a key has a command, wherever one is; what can't run now says why."""
    async with app_with_past(tmp_path, readonly=True) as (harness, _):
        offered = {command.title: command.help for command in commands(harness.app)}
        for tab in TABS:
            bindings = [b for b in pane_class(tab.name).BINDINGS if isinstance(b, Binding)]
            assert {f"{tab.title}: {b.description}" for b in bindings} <= set(offered)
        for title in ("Drain, then stop the daemon", "Clients: Revoke a key now", "Audit: Add a note"):
            assert "--readonly" in offered[title]
        await choose(harness, *"not", "space", *"revo", title="Clients: Revoke a key now")
        await until(lambda: harness.main.pane.id == "clients")
        await harness.shows("Not now:")


async def test_an_action_is_found_by_its_key_and_done_on_its_screen(tmp_path: Path) -> None:
    """`!` finds revoke from Requests; a screenshot says where it is, and it is there."""
    async with app_with_past(tmp_path) as (harness, _):
        await choose(harness, "exclamation_mark", title="Clients: Revoke a key now")
        await harness.dialog(AskRevoke)
        await harness.press("escape")
        harness.app.action_screenshot(path=str(tmp_path))
        await harness.shows("The picture is in")
        (picture,) = files(tmp_path, "relayd-*.svg")
        assert picture.stat().st_mode & 0o777 == 0o600


async def test_a_filter_for_the_chosen_row_is_the_one_that_was_read(tmp_path: Path) -> None:
    """Not that of the row that is chosen by then; a client's brackets are no markup."""
    model = r"\[1@[/#}b/]"
    async with app_with_past(tmp_path, past_s=30) as (harness, past):
        past.end(past.begin(model=model))
        await harness.caught_up(past)
        await harness.press("colon")
        await until(lambda: harness.windows == 2)
        await harness.press(*"this model")
        await harness.shows("Requests: filter this model", f"model={model}")
        past.more(1)
        await harness.caught_up(past)
        await harness.press("enter")
        await until(lambda: harness.requests.filtered().text == f"model={model}")


async def test_keys_of_the_settings_replace_those_of_actions(tmp_path: Path) -> None:
    """The new key works, footer and help name it, the old one does nothing, and a wrong one is named.

    So is a theme that there isn't.
    """
    keys = {"clients.rotate": "f6", "requests.cancel": "D", "clients.spin": "x"}
    (tmp_path / "tui.json").write_text(json.dumps({"keys": keys, "theme": "dusk"}))
    async with app_with_past(tmp_path) as (harness, _):
        await harness.shows("clients.spin:", "main.drain.", "there is no dusk")
        await harness.press("K", "r")
        assert harness.windows == 1
        await harness.shows("f6 rotate")
        await harness.press("f6")
        await harness.dialog(AskGrace)


def test_the_documentation_lists_actions_that_there_are() -> None:
    """By the part of the app that has them."""
    documented = dict(re.findall(r"^\| `(\w+)` \| (`.*`) \|$", DOCS.read_text(), re.MULTILINE))
    for part, bindings in parts().items():
        ids = {b.id for b in bindings if isinstance(b, Binding)}
        assert {f"{part}.{name}" for name in documented[part].replace("`", "").split()} <= ids


@pytest.mark.parametrize(
    ("keys", "fault"),
    [
        ({"clients.rotate": "y"}, "y answers dialogs"),
        ({"clients.rotate": ""}, "no key is named"),
        ({"clients.rotate": "nokey"}, "nokey is not the name of a key"),
        ({"clients.rotate": "j"}, "j is list.move_next"),
        ({"clients.rotate": "e"}, "e is clients.edit"),
        ({"clients.rotate": "f6", "main.drain": "f6"}, "f6 is clients.rotate"),
    ],
)
def test_a_choice_of_keys_that_could_not_work_is_named(keys: dict[str, str], fault: str) -> None:
    """It is left out, and the others are taken."""
    taken, faults = usable(keys, parts())
    assert [fault in words for words in faults] == [True]
    assert len(taken) == len(keys) - 1


@pytest.mark.parametrize(
    "keys",
    [
        {"clients.rotate": "e", "clients.edit": "r"},
        {"requests.error_next": "ctrl+n,right_parenthesis"},
        {"main.drain": "f10"},
    ],
)
def test_keys_can_be_swapped_and_be_several(keys: dict[str, str]) -> None:
    """What one action gives up, another may take."""
    assert usable(keys, parts()) == (keys, [])


async def test_colours_are_chosen_in_the_palette_and_remembered(tmp_path: Path) -> None:
    """`:` opens it, a few letters and Enter choose, the next start has the theme."""
    async with app_with_past(tmp_path) as (harness, _):
        await choose(harness, *"light", title="Colours: relayd-light")
        await until(lambda: harness.app.theme == LIGHT)
    assert json.loads((tmp_path / "tui.json").read_text())["theme"] == LIGHT


async def test_help_has_the_keys_of_this_screen_first_and_typing_narrows_it_down(tmp_path: Path) -> None:
    """Keys of every screen and the legend, by words of group, key or meaning; Escape closes it."""
    (tmp_path / "tui.json").write_text('{"keys": {"clients.rotate": "f6"}}')
    async with app_with_past(tmp_path) as (harness, _):
        await harness.press("K", "question_mark")
        await harness.dialog(HelpScreen)
        await harness.shows("Clients (this screen)", "f6 Rotate the key")
        await harness.press(*"legend", "space", *"waiting")
        await harness.shows("░ waiting for the first token", "▒ waiting for the client to read")
        assert "Rotate" not in harness.text().split("Help", 1)[1].split("Close")[0]
        await harness.press("ctrl+u", *"requests", "space", *"curl")
        await harness.shows("Y Copy as curl")
        await harness.press("ctrl+u", "pagedown", "down")
        assert harness.screen.query_one("#help").scroll_y > 1
        await harness.press("escape")
        assert harness.windows == 1


async def test_readonly_changes_nothing(tmp_path: Path) -> None:
    """Every change is refused with the reason."""
    async with app_with_past(tmp_path, readonly=True) as (harness, _):
        for keys in (("P",), ("D",), ("K", "r"), ("exclamation_mark",), ("a",), ("e",), ("d",)):
            await harness.press(*keys)
            assert harness.windows == 1
        await harness.shows("--readonly", "r(rotate)", "!(revoke)", "a(add)", "e(edit)")
