"""Whose key is this: from a pasted key to its client, its requests, and its end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from textual import events
from textual.widgets import Button, Input

from relayd.admin.schema import KeyState
from tests.admin.harness import AdminHarness, admin_api, log_requests
from tests.harness import KEY
from tests.tui.app_harness import AppHarness, files, running_app
from tests.wire import until
from tui.model.app_state import Connection
from tui.screens.key_dialogs import ConfirmRevoke
from tui.screens.whose_key import WhoseKey


@asynccontextmanager
async def operator(home: Path, *, readonly: bool = False) -> AsyncIterator[tuple[AppHarness, AdminHarness]]:
    """The app on a relay whose one key is `KEY`."""
    async with admin_api(home) as api, running_app(home, api.client, readonly=readonly) as harness:
        await until(lambda: harness.state.connection is Connection.LIVE and harness.state.ring.keys)
        yield harness, api


async def paste(harness: AppHarness, text: str) -> None:
    """Press W and paste at once, as a terminal with bracketed paste sends it, then Enter."""
    await harness.pilot.press("W")
    harness.app.post_message(events.Paste(text))
    await harness.dialog(WhoseKey)
    await until(lambda: harness.screen.query_one(Input).value)
    assert text.strip() not in harness.text()
    await harness.press("enter")


def values(harness: AppHarness) -> list[str]:
    """What is in the fields of all windows."""
    return [box.value for screen in harness.app.screen_stack for box in screen.query(Input)]


async def test_a_pasted_key_is_named_and_revoked_without_its_text_going_anywhere(tmp_path: Path) -> None:
    """`W`, paste, Enter, `!`, `y`: masked, and let go of once used; the second dialog begins on Cancel."""
    async with operator(tmp_path) as (harness, api):
        key = api.state.ring.keys()[0]
        api.state.ring.record_use(key.id, "192.0.2.7")
        await paste(harness, "sk-proj-0123456789abcdef")
        await harness.shows("a provider's key (sk-…)")
        assert not any(values(harness))
        assert isinstance(harness.app.focused, Input)
        assert "Revoke (!)" not in harness.text()
        await harness.press("escape")
        await paste(harness, f"Authorization: Bearer {KEY}\n\n")
        await harness.shows(
            f"It is the key {key.id} of the client default.", f"The key {key.id} is active.", "from 192.0.2.7"
        )
        await harness.shows("0 open streams with it.")
        assert not any(values(harness))
        harness.app.action_screenshot(path=str(tmp_path))
        assert files(tmp_path, "*.svg") == []
        await harness.press("exclamation_mark")
        await harness.dialog(ConfirmRevoke)
        assert isinstance(harness.app.focused, Button)
        assert harness.app.focused.id == "no"
        await harness.press("exclamation_mark", "y")
        await harness.shows("is revoked.")
        assert api.state.ring.keys()[0].state is KeyState.REVOKED
        await paste(harness, KEY)
        await harness.shows(
            f"The key {key.id} is revoked since",
            "It can't be revoked here: it is revoked already.",
            "!(Revoke)",
        )
        await harness.press("exclamation_mark", "escape")
        await harness.closed()
        await harness.press("Q")
    assert KEY not in (tmp_path / "tui.json").read_text()


async def test_a_pasted_key_leads_to_its_requests_and_to_itself(tmp_path: Path) -> None:
    """`f` filters the requests by it, `o` opens it on Clients; Escape leads back; read-only can't revoke."""
    async with operator(tmp_path, readonly=True) as (harness, api):
        key = api.state.ring.keys()[0]
        log_requests(api.state, 1, "r", key_id=key.id, client="default")
        await until(lambda: len(harness.state.store) == 1)
        await harness.press("3")
        await paste(harness, KEY)
        await harness.shows("It can't be revoked here: read-only")
        await harness.press("f")
        await harness.shows(f'key_id="{key.id}"', "1 of 1 ", "Esc back to Stats")
        await harness.press("escape")
        await paste(harness, KEY)
        await harness.shows("is active.")
        await harness.press("o")
        await harness.shows("[4 Clients", key.id, "Esc back to Stats")
