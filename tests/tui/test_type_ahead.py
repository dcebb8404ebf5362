"""Keys typed faster than the app opens what they are for."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual import events
from textual.widgets import Input

from relayd.state.keys import digest
from tests.harness import KEY
from tests.tui.app_harness import AppHarness, app_with_past
from tests.wire import until
from tui.screens.dialogs import AskTime
from tui.screens.key_dialogs import AskRevoke
from tui.screens.whose_key import WhoseKey


def type_at_once(harness: AppHarness, *keys: str) -> None:
    """All keys in one read of the terminal, as a paste or a fast hand over a slow line sends them."""
    for key in keys:
        char = {"slash": "/", "exclamation_mark": "!", "colon": ":", "equals_sign": "=", "space": " "}.get(
            key, key
        )
        harness.app.post_message(events.Key(key, char if len(char) == 1 else None))


async def test_keys_right_after_slash_are_in_the_filter_and_never_reach_the_list(tmp_path: Path) -> None:
    """`/x` typed at once on a running request filters by x; nothing asks to cancel. Pastes come whole."""
    async with app_with_past(tmp_path) as (harness, _):
        await harness.shows(" wait ")
        type_at_once(harness, "slash", "x", "x", "D", "e")
        box = harness.main.query_one("#filter-input", Input)
        await until(lambda: len(box.value) == 4)
        assert box.value == "xxDe"
        assert harness.windows == 1
        assert not [worker for worker in harness.app.workers if worker.group.startswith("asks")]
        harness.app.post_message(events.Paste(" client=web\r\nstatus>=500\n"))
        await until(lambda: box.value == "xxDeclient=web status>=500")


async def test_a_leaked_key_is_named_in_one_go(tmp_path: Path) -> None:
    """`K`, `!` and four characters typed at once opens one dialog, with the four characters in its field."""
    async with app_with_past(tmp_path) as (harness, _):
        last = harness.state.ring.keys[0].id[-4:]
        type_at_once(harness, "K", "exclamation_mark", *last)
        await harness.dialog(AskRevoke)
        await until(lambda: [field.value for field in harness.screen.query(Input)] == [last])
        assert harness.windows == 2


@pytest.mark.parametrize(
    ("opener", "screen"), [("colon", "CommandPalette"), ("question_mark", "HelpScreen"), ("t", "AskTime")]
)
async def test_keys_right_after_what_opens_a_window_wait_for_it(
    tmp_path: Path, opener: str, screen: str
) -> None:
    """The next key, which would cancel or drain, goes to the window."""
    async with app_with_past(tmp_path) as (harness, _):
        await harness.shows(" wait ")
        type_at_once(harness, opener, "x", "D")
        await until(lambda: type(harness.screen).__name__ == screen)
        await harness.idle()
        assert harness.windows == 2
        fields = harness.screen.query(Input)
        assert [field.value for field in fields] == ["xD"] * len(fields)
        # Textual's palette asks for its own list also while the app ends beneath it, and fails the app then.
        for _ in range(2):
            if harness.windows > 1:
                await harness.pilot.press("escape")
        await harness.closed()


@pytest.mark.parametrize(("leave", "kept"), [("enter", "web"), ("escape", "")])
async def test_keys_right_after_the_filter_are_for_the_list_again(
    tmp_path: Path, leave: str, kept: str
) -> None:
    """A filter, Enter or Escape, and `P` at once: all of the filter counts, and P asks its question."""
    async with app_with_past(tmp_path) as (harness, _):
        type_at_once(harness, "slash", "w", "e", "b", leave, "P")
        await until(lambda: type(harness.screen).__name__ == "Confirm")
        await harness.idle()
        chosen = harness.state.view.filter
        assert (chosen.text if chosen is not None else "") == kept
        assert harness.app.context.settings_file.settings.filter == kept


async def test_a_filter_that_is_wrong_keeps_the_keys(tmp_path: Path) -> None:
    """Enter on it does nothing, and what is typed next goes on writing it."""
    async with app_with_past(tmp_path) as (harness, _):
        type_at_once(harness, "slash", "b", "equals_sign", "x", "enter", *"P" * 100)
        box = harness.main.query_one("#filter-input", Input)
        await until(lambda: box.value == "b=x" + "P" * 100)
        assert harness.windows == 1


async def test_editing_keys_keep_their_place_among_what_is_typed(tmp_path: Path) -> None:
    """Typed, cleared, typed again and kept, at once: the last text is the filter."""
    async with app_with_past(tmp_path) as (harness, _):
        type_at_once(harness, "slash", "w", "e", "b", "ctrl+u", "c", "x", "backspace", "i", "enter")
        await until(lambda: harness.app.context.settings_file.settings.filter == "ci")
        await harness.idle()
        assert harness.state.view.filter is not None
        assert harness.state.view.filter.text == "ci"


async def test_keys_right_after_a_way_are_for_where_it_leads(tmp_path: Path) -> None:
    """`o`, then `!`; Enter and `f`, then `t`; all at once: they mean what was led to, not what was left."""
    async with app_with_past(tmp_path) as (harness, _):
        chosen = harness.requests.chosen()
        assert chosen is not None
        assert chosen.key_id is not None
        last = chosen.key_id[-4:]
        type_at_once(harness, "o", "exclamation_mark", *last)
        await harness.dialog(AskRevoke)
        await until(lambda: [box.value for box in harness.screen.query(Input)] == [last])
        assert harness.main.pane.id == "clients"
        await harness.press("escape")
        await harness.closed()
        type_at_once(harness, "escape", "K", "enter", "enter", "f", "t")
        await harness.dialog(AskTime)
        assert harness.main.pane is harness.requests
        assert harness.state.view.filter is not None
        assert harness.state.view.filter.text.startswith("key_id=")


async def test_a_key_that_does_nothing_here_does_nothing_on_the_next_screen_either(tmp_path: Path) -> None:
    """`o` is no key of an open key; typed at once with `f`, it must not lead back from the requests."""
    async with app_with_past(tmp_path) as (harness, _):
        type_at_once(harness, "K", "enter", "enter", "o", "f")
        await until(lambda: harness.app.type_ahead.idle and harness.main.pane is harness.requests)
        await harness.idle()
        assert harness.main.pane is harness.requests
        assert harness.state.view.filter is not None
        assert harness.state.view.filter.text.startswith("key_id=")


async def test_keys_right_after_a_command_of_the_palette_are_for_what_it_opens(tmp_path: Path) -> None:
    """A command and Enter, then what is to be written into its dialog, at once."""
    async with app_with_past(tmp_path) as (harness, _):
        type_at_once(harness, "K", "colon", *"go", "space", *"time", "enter", "5", "x")
        await harness.dialog(AskTime)
        await until(lambda: [box.value for box in harness.screen.query(Input)] == ["5x"])
        assert harness.main.pane is harness.requests


async def test_keys_right_after_a_pasted_key_are_for_where_it_leads(tmp_path: Path) -> None:
    """`o` in the dialog and `!` at once: the key that was found is named, not one of the screen below."""
    async with app_with_past(tmp_path) as (harness, past):
        await harness.press("3", "W")
        await harness.dialog(WhoseKey)
        harness.app.post_message(events.Paste(KEY))
        type_at_once(harness, "enter")
        await harness.shows("It is the key")
        found = past.api.state.ring.find(digest(KEY.encode()))
        assert found is not None
        type_at_once(harness, "o", "exclamation_mark", *found.id[-4:])
        await harness.dialog(AskRevoke)
        await until(lambda: [box.value for box in harness.screen.query(Input)] == [found.id[-4:]])
        await harness.press("escape")
        await harness.closed()
        assert harness.main.pane.id == "clients"
