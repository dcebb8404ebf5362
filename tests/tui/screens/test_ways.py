"""From one thing to what belongs to it, and back to where one was."""

from __future__ import annotations

from pathlib import Path

from msgspec.structs import replace

from relayd.admin.schema import KeyState
from tests.tui.app_harness import AppHarness, app_with_past
from tests.wire import until
from tui.screens.clients import ClientsPane

OPEN = 3
"""How many requests of the past are open."""


def place(harness: AppHarness) -> tuple[str, object, bool]:
    """Filter, row and freeze of the Requests screen."""
    view = harness.state.view
    text = "" if view.filter is None else view.filter.text
    return text, harness.requests.rows.cursor_key, harness.requests.rows.following


async def test_a_request_leads_to_its_key_and_a_key_to_its_requests_and_each_back(tmp_path: Path) -> None:
    """`o`, `f` and Escape, one key each; filter, row and what was open are as before, and so from afar."""
    async with app_with_past(tmp_path) as (harness, past):
        await harness.press("slash", *"status=200", "space", *"client=web", "enter", "up", "up")
        here = place(harness)
        chosen = harness.requests.chosen()
        assert chosen is not None
        await harness.press("o")
        await harness.shows("[4 Clients", "Esc back to Requests", f"Key {chosen.key_id} of web")
        await harness.shows("1 user in the log", "198.51.100.21")
        # Further on: all requests with the key, one of them in full, and all the way back.
        await harness.press("f")
        await harness.shows(f'key_id="{chosen.key_id}"', "Esc back to Clients")
        await harness.press("enter", "escape", "escape")
        await harness.shows("Esc back to Requests", f"Key {chosen.key_id} of web")
        await harness.press("escape")
        await until(lambda: harness.main.pane is harness.requests)
        await until(lambda: place(harness) == here)
        # Where one goes by a number there is no way back to lead astray.
        await harness.press("o", "2")
        await harness.shows("[2 In flight")
        assert "back to" not in harness.text()
        past.tell_progress(5)
        await until(lambda: len(harness.state.open_streams.streams) == OPEN)
        await harness.redraw()
        await harness.press("enter")
        await harness.shows("Esc back to In flight", "[Summary]")
        await harness.press("backspace")
        await harness.shows("[2 In flight")
        await harness.press("1")
        await until(lambda: place(harness) == here)


async def test_a_request_that_the_list_does_not_show_is_opened_and_no_other(tmp_path: Path) -> None:
    """A filter and an order that hide it give way; the way back has both again."""
    async with app_with_past(tmp_path, past_s=60) as (harness, past):
        past.tell_progress(5)
        await until(lambda: len(harness.state.open_streams.streams) == OPEN)
        await harness.press("slash", *"status=200", "enter", "s")
        hidden = harness.state.view.filter
        await harness.press("2", "enter")
        await harness.shows("Esc back to In flight")
        chosen = harness.requests.chosen()
        assert chosen is not None
        assert chosen.outcome is None
        await harness.press("escape")
        assert (harness.state.view.filter, harness.state.view.filtering) == (hidden, True)
        assert harness.state.view.sorting is not None


async def test_what_is_done_while_a_key_is_open_is_for_its_client(tmp_path: Path) -> None:
    """A key whose client is not in the list: nothing is done to the client under the cursor."""
    async with app_with_past(tmp_path) as (harness, _):
        await harness.press("K")
        pane = harness.main.pane
        assert isinstance(pane, ClientsPane)
        key = replace(harness.state.ring.keys[0], id="gone00000000", client="gone", state=KeyState.REVOKED)
        pane.show_owner("gone", key.id, key)
        await harness.shows("Key gone00000000 of gone")
        for action in ("edit", "remove", "rotate", "note", "extend", "undo"):
            hint = next(hint for hint in pane.hints() if hint.action == action)
            assert hint.reason, action
        for key_name in ("e", "d", "r", "n", "plus", "u"):
            await harness.press(key_name)
            assert harness.windows == 1, key_name
        await harness.press("f")
        await harness.shows('key_id="gone00000000"')
