"""Filters on every list, by keys: written, completed, recalled, named, and explained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from textual import events
from textual.widgets import Input

from tests.admin.harness import admin_api
from tests.tui.app_harness import AppHarness, app_with_past, files
from tests.wire import until
from tui.history import History
from tui.model.app_state import AppState
from tui.palette import commands
from tui.screens.audit import AuditPane
from tui.screens.dialogs import AskExport
from tui.screens.filter_dialogs import ChooseField, ChooseFilter
from tui.screens.filtered import FilteredPane
from tui.screens.notes import AskNote


def box(harness: AppHarness) -> Input:
    """The text box of the screen that is on."""
    return harness.main.pane.query_one("#filter-input", Input)


async def write(harness: AppHarness, text: str, *keys: str) -> None:
    """Type a text at once, then press keys."""
    for char in text:
        harness.app.post_message(events.Key(char, char))
    await harness.idle()
    await harness.press(*keys)


async def choose_filter(harness: AppHarness, *keys: str) -> None:
    """Open the filters by name, and press keys that close them."""
    await harness.press("F")
    await harness.dialog(ChooseFilter)
    await harness.press(*keys)
    await harness.closed()


async def exported(harness: AppHarness, directory: Path) -> list[dict[str, Any]]:
    """Export what is shown as NDJSON, and read it."""
    await harness.press("w")
    await harness.dialog(AskExport)
    await harness.press("n")
    await until(lambda: any(path.read_text().endswith("\n") for path in files(directory, "relayd-*.ndjson")))
    [path] = files(directory, "relayd-*.ndjson")
    return [json.loads(line) for line in path.read_text().splitlines()]


def filter_on(harness: AppHarness) -> str:
    """The filter that is on."""
    pane = harness.main.pane
    assert isinstance(pane, FilteredPane)
    return pane.filtered().text


async def test_a_filter_is_completed_recalled_named_and_explained(tmp_path: Path) -> None:
    """Tab and right complete, up recalls, F1 lists the fields, F chooses by name; a key is never kept."""
    async with app_with_past(tmp_path) as (harness, past):
        await harness.press("slash")
        await write(harness, "cl")
        await harness.shows("Tab client")
        await harness.press("tab", "tab")
        assert box(harness).value == "client="
        await harness.shows("Tab web · ")
        await write(harness, "sup", "right")
        assert box(harness).value == "client=support-bot"
        await harness.press("tab")
        assert filter_on(harness) == "client=support-bot"

        # A key that was pasted filters, and is forgotten.
        await harness.press("slash")
        await write(harness, "sk-proj-abcdef123456", "enter")
        assert filter_on(harness) == "sk-proj-abcdef123456"
        # All of the filter is selected, and the next character replaces it.
        await harness.press("slash")
        await write(harness, "status=502", "enter")
        await harness.press("slash", "up")
        assert box(harness).value == "client=support-bot"
        await harness.press("down", "down")
        assert box(harness).value == "status=502"
        await harness.press("ctrl+u", "enter", "slash", "enter")
        assert filter_on(harness) == "status=502"

        await harness.press("F")
        await harness.dialog(ChooseFilter)
        await harness.press("tab")
        await write(harness, "bad gateway", "enter")
        await harness.closed()
        await harness.press("k", "F")
        await harness.dialog(ChooseFilter)
        await harness.shows("bad gateway status=502", "slow first token", "this client")
        await harness.press("j", "enter")
        await harness.closed()
        assert filter_on(harness) == "outcome!=completed outcome!=client_closed phase=done"
        failed = [record for record in past.records if record.status in {429, 502}]
        await until(lambda: len(harness.state.view) == len(failed))

        await harness.press("slash", "ctrl+u", "f1")
        await harness.dialog(ChooseField)
        await harness.shows("status the HTTP status")
        await harness.press("j", "enter")
        await harness.closed()
        await write(harness, "=502", "enter")
        assert filter_on(harness) == "status=502"
        in_palette = {command.title: command for command in commands(harness.app)}
        assert in_palette["Requests: filter bad gateway"].help == "status=502"
        in_palette["Clients: filter near a bound"].run()
        await harness.shows("[4 Clients !]", "2 of 6 clients")
    saved = (tmp_path / "tui.json").read_text()
    assert "sk-proj" not in saved
    assert json.loads(saved)["saved_filters"]["requests"] == {"bad gateway": "status=502"}


@pytest.mark.parametrize(
    ("file", "said"), [("{}", "Saved as bad gateway; F chooses it."), ('{"filter": 3}', "nothing is saved")]
)
async def test_only_what_was_saved_is_called_saved(tmp_path: Path, file: str, said: str) -> None:
    """With a tui.json that can't be read, a filter has its name in this run alone."""
    (tmp_path / "tui.json").write_text(file)
    async with app_with_past(tmp_path) as (harness, _):
        await harness.press("slash")
        await write(harness, "status=502", "enter")
        await harness.press("F", "tab")
        await write(harness, "bad gateway", "enter")
        await harness.closed()
        await harness.shows(said)
        assert ("Saved as" in harness.text()) == ("Saved" in said)


async def test_the_other_lists_are_filtered_alike_and_the_audit_takes_notes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One grammar on Clients, In flight and Audit; Esc shows all; `n` writes a note, `w` exports."""
    monkeypatch.chdir(tmp_path)
    async with app_with_past(tmp_path) as (harness, past):
        await harness.press("K", "slash")
        await write(harness, "used_percent>=80", "enter")
        await harness.shows("used_percent>=80", "2 of 6 clients", "100% of tok/day")
        assert "support-bot" not in harness.text()
        await harness.press("slash")
        await write(harness, "status=1")
        await harness.shows("There is no field 'status'")
        await harness.press("escape", "escape")
        await harness.shows("6 clients", "support-bot")
        await harness.press("n")
        await harness.dialog(AskNote)
        await write(harness, "told ci", "enter")
        await harness.shows("Noted; Audit has it.")

        await harness.press("2", "slash")
        await write(harness, "client=laptop", "enter")
        await harness.shows("1 of 3 streams")
        await harness.press("f")
        await harness.shows("(off; f)", "web gpt")
        await harness.press("slash")
        await write(harness, "client=nobody", "enter")
        await harness.shows("0 of 3 streams", "Nothing passes this filter.")

        await harness.press("5", "slash")
        await write(harness, "action=rotate", "enter")
        await harness.shows("1 of 11 audit entries", "rotate: done for client web")
        await harness.press("n")
        await harness.dialog(AskNote)
        await write(harness, f"it was {past.keys['web']}", "ctrl+u")
        await write(harness, "rly_Ab12Cd34_abcdef", "enter")
        await harness.shows("This looks like a key.")
        await harness.press("ctrl+u")
        await write(harness, "told web, Tuesday", "enter")
        await harness.closed()
        await until(lambda: harness.state.audit[0].action == "note")
        note = harness.state.audit[0]
        assert (note.client, note.detail) == ("web", "told web, Tuesday")
        assert set(note.key_ids) == {past.keys["web"], past.keys["old"]}
        await choose_filter(harness, "enter")
        await harness.shows("action=note", "2 of 12 audit entries", "note: done for client web")
        await harness.press("enter")
        await harness.shows("[4 Clients !]", "note: told web, Tuesday")
        await harness.press("escape")
        await harness.shows("[5 Audit]", "2 of 12 audit entries")

        notes = await exported(harness, tmp_path)
        # A client that the daemon has not told of yet is not one that is gone.
        harness.state.clients, harness.state.clients_known = {}, False
        [owner] = [hint for hint in harness.main.pane.hints() if hint.action == "owner"]
        assert owner.reason == "the clients are not known"
    assert [note["detail"] for note in notes] == ["told web, Tuesday", "told ci"]


async def test_a_saved_filter_is_forgotten_and_notes_are_refused_with_readonly(tmp_path: Path) -> None:
    """Del forgets what was saved, and no filter of the app; `n` says why it can't be, and asks nothing."""
    saved = {"requests": {"mine": "status=418"}}
    (tmp_path / "tui.json").write_text(json.dumps({"saved_filters": saved}))
    async with app_with_past(tmp_path, readonly=True, past_s=30) as (harness, _):
        await harness.press("F")
        await harness.dialog(ChooseFilter)
        await harness.shows("mine status=418", "A filter that is on can be saved here.")
        await harness.press("delete", "delete")
        await harness.shows("It comes with the app, and stays.")
        assert "status=418" not in harness.text()
        await harness.press("escape")
        await harness.closed()
        await until(lambda: "mine" not in (tmp_path / "tui.json").read_text())
        await harness.press("5", "n")
        await harness.shows("n(note)", "Not now: read-only")
        assert isinstance(harness.main.pane, AuditPane)
        assert harness.windows == 1


async def test_older_entries_are_loaded_a_page_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first page is the newest; each further one follows it without a gap, down to the first entry."""
    monkeypatch.setattr("tui.history.PAGE", 4)
    state = AppState(1000)
    async with admin_api(tmp_path) as api:
        for number in range(9):
            await api.client.note(f"note {number}", idempotency_key=str(number))
        history = History(state, lambda: api.client, lambda: None)
        state.set_audit(await api.client.audit(limit=3))
        seen = [len(state.audit)]
        while not state.audit_complete:
            await history.load_older_audit()
            seen.append(len(state.audit))
        logged = (await api.client.audit()).entries
        assert (seen, list(state.audit)) == ([3, 7, 10], logged)

        # The newest page is loaded again with each connection: what is older stays if nothing is missing.
        await api.client.note("after a break", idempotency_key="9")
        state.set_audit(await api.client.audit(limit=3))
        assert list(state.audit) == (await api.client.audit()).entries
        for number in range(10, 14):
            await api.client.note("too many", idempotency_key=str(number))
        state.set_audit(await api.client.audit(limit=3))
        assert (len(state.audit), state.audit_complete) == (3, False)


async def test_enter_on_a_filter_that_is_wrong_says_what_is(tmp_path: Path) -> None:
    """What could still be completed is not the reason, and hides none that stands before it."""
    async with app_with_past(tmp_path, past_s=30) as (harness, _):
        await harness.press("slash")
        await write(harness, "status=")
        await harness.shows("Tab 200")
        await harness.press("enter")
        await harness.shows("A value is missing after '='.")
        await write(harness, "2")
        await harness.shows("Tab 200")
        await harness.press("ctrl+u")
        await write(harness, "statsu=200 cl")
        await harness.shows("There is no field 'statsu'")
        # The mark is below the place, whatever the width of what stands before it.
        await harness.press("ctrl+u")
        await write(harness, '"中文" x=1')
        await harness.shows("There is no field 'x'")
        lines = harness.text().splitlines()
        typed = next(number for number, line in enumerate(lines) if "x=1" in line)
        assert lines[typed + 1].index("^") == len('"----" ')
