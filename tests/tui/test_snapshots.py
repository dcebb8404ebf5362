"""The screens as text, at fixed sizes and a fixed time, and their colours by rule.

`UPDATE_SNAPSHOTS=1 pytest tests/tui/test_snapshots.py` writes the files anew; look at the difference.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.tui.app_harness import AppHarness, app_with_past
from tests.tui.past import Past
from tests.wire import until
from tui.screens.clients import SIDE_BY_SIDE
from tui.screens.key_dialogs import AskGrace

SNAPSHOTS = Path(__file__).parent / "snapshots"


def compare(harness: AppHarness, past: Past, name: str) -> None:
    """Hold the screen against the file of this name; ids and fingerprints of keys differ each time."""
    path = SNAPSHOTS / f"{name}.txt"
    shown = harness.text().rstrip("\n") + "\n"
    for client, key_id in {**past.keys, "default": past.api.state.ring.keys()[0].id}.items():
        shown = shown.replace(key_id, f"{client}-key-id"[:8])
    for key in past.api.state.ring.keys():  # noqa: SIM118 - a list, not a dict
        shown = shown.replace(key.fingerprint, "01234567")
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.write_text(shown)
    assert shown == path.read_text(), f"{path.name} differs; UPDATE_SNAPSHOTS=1 writes it anew"


@pytest.mark.parametrize("size", [(80, 24), (140, 40)], ids=["80x24", "140x40"])
async def test_the_screens_look_as_they_did(tmp_path: Path, size: tuple[int, int]) -> None:
    """Requests, In flight, Clients and a dialog; at 140x40 with all that stands beside and below them."""
    name = f"{size[0]}x{size[1]}"
    async with app_with_past(tmp_path, size=size) as (harness, past):
        for age_s in (2, 3):
            past.now_s += 1
            past.tell_progress(age_s)
            await until(lambda: harness.state.open_streams.at_s == past.now_s)
        await harness.redraw()
        compare(harness, past, f"requests-{name}")
        await harness.press("2")
        compare(harness, past, f"inflight-{name}")
        await harness.press("4")
        await until(lambda: size[0] < SIDE_BY_SIDE or harness.state.usage_by_day is not None)
        await harness.redraw()
        compare(harness, past, f"clients-{name}")
        await harness.press("r")
        await harness.dialog(AskGrace)
        await harness.redraw()
        compare(harness, past, f"rotate-{name}")
