"""Keys typed faster than the app opens what they are for."""

from __future__ import annotations

from pathlib import Path

import pytest
from textual import events
from textual.widgets import Input

from tests.tui.stage import Stage, on_stage, until
from tui.screens.key_dialogs import AskRevoke
from tui.screens.requests import RequestsPane


def type_at_once(stage: Stage, *keys: str) -> None:
    """All keys in one read of the terminal, as a paste or a fast hand over a slow line sends them."""
    for key in keys:
        char = {"slash": "/", "exclamation_mark": "!", "colon": ":", "equals_sign": "="}.get(key, key)
        stage.app.post_message(events.Key(key, char if len(char) == 1 else None))


async def choose_a_running_request(stage: Stage) -> str:
    """Put the cursor on one; returns its id."""
    await stage.go_on(4)
    pane = stage.app.main.query_one(RequestsPane)
    while (record := pane.chosen()) is None or record.id not in stage.link.daemon.open:
        pane.rows.go_to(pane.rows.cursor - 1)
    return record.id


async def test_keys_right_after_slash_are_in_the_filter_and_never_reach_the_list(tmp_path: Path) -> None:
    """`/x` typed at once on a running request filters by x; nothing asks to cancel."""
    async with on_stage(tmp_path) as stage:
        await choose_a_running_request(stage)
        type_at_once(stage, "slash", "x", "x", "D", "e")
        box = stage.app.main.query_one("#filter-input", Input)
        await until(lambda: len(box.value) == 4, "the filter")
        assert box.value == "xxDe"
        assert len(stage.app.screen_stack) == 1
        assert not [worker for worker in stage.app.workers if worker.group.startswith("asks")]


async def test_a_leaked_key_is_named_in_one_go(tmp_path: Path) -> None:
    """`K`, `!` and four characters typed at once opens one dialog, with the four characters in its field."""
    async with on_stage(tmp_path) as stage:
        last = stage.app.desk.ring.keys[0].id[-4:]
        type_at_once(stage, "K", "exclamation_mark", *last)
        await until(lambda: isinstance(stage.app.screen, AskRevoke), "the dialog")
        await until(lambda: [field.value for field in stage.app.screen.query(Input)] == [last], "the name")
        assert len(stage.app.screen_stack) == 2


@pytest.mark.parametrize(
    ("opener", "screen"), [("colon", "CommandPalette"), ("question_mark", "HelpScreen"), ("t", "AskTime")]
)
async def test_keys_right_after_what_opens_a_window_wait_for_it(
    tmp_path: Path, opener: str, screen: str
) -> None:
    """The next key, which would cancel or drain, goes to the window."""
    async with on_stage(tmp_path) as stage:
        await choose_a_running_request(stage)
        type_at_once(stage, opener, "x", "D")
        await until(lambda: type(stage.app.screen).__name__ == screen, screen)
        await stage.quiet()
        assert len(stage.app.screen_stack) == 2
        fields = stage.app.screen.query(Input)
        assert [field.value for field in fields] == ["xD"] * len(fields)
        # Textual's palette asks for its own list also while the app ends beneath it, and fails the app then.
        for _ in range(2):
            if len(stage.app.screen_stack) > 1:
                await stage.pilot.press("escape")
        await until(lambda: len(stage.app.screen_stack) == 1, "the end of the window")


@pytest.mark.parametrize(("leave", "kept"), [("enter", "web"), ("escape", "")])
async def test_keys_right_after_the_filter_are_for_the_list_again(
    tmp_path: Path, leave: str, kept: str
) -> None:
    """A filter, Enter or Escape, and `P` at once: all of the filter counts, and P asks its question."""
    async with on_stage(tmp_path) as stage:
        type_at_once(stage, "slash", "w", "e", "b", leave, "P")
        await until(lambda: type(stage.app.screen).__name__ == "Confirm", "the question")
        await stage.quiet()
        chosen = stage.app.desk.view.filter
        assert (chosen.text if chosen is not None else "") == kept
        assert stage.app.settings.filter == kept


async def test_a_filter_that_is_wrong_keeps_the_keys(tmp_path: Path) -> None:
    """Enter on it does nothing, and what is typed next goes on writing it."""
    async with on_stage(tmp_path) as stage:
        type_at_once(stage, "slash", "b", "equals_sign", "x", "enter", "P")
        box = stage.app.main.query_one("#filter-input", Input)
        await until(lambda: box.value == "b=xP", "the text")
        assert len(stage.app.screen_stack) == 1


async def test_editing_keys_keep_their_place_among_what_is_typed(tmp_path: Path) -> None:
    """Typed, cleared, typed again and kept, at once: the last text is the filter."""
    async with on_stage(tmp_path) as stage:
        type_at_once(stage, "slash", "w", "e", "b", "ctrl+u", "c", "x", "backspace", "i", "enter")
        await until(lambda: stage.app.settings.filter == "ci", "the filter")
        await stage.quiet()
        assert stage.app.desk.view.filter is not None
        assert stage.app.desk.view.filter.text == "ci"
