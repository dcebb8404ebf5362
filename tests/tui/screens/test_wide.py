"""Every screen uses the width of a large terminal; a narrow one leaves out what matters least."""

from __future__ import annotations

from pathlib import Path

from tests.tui.app_harness import app_with_past
from tests.wire import until
from tui.widgets.bars import TABS

_SIDE = 124
_LEAST_LINES = 3


async def test_at_200_columns_what_is_chosen_stands_beside_the_list(tmp_path: Path) -> None:
    """On every screen there is text on the right, below the header and the tabs; none is nearly blank."""
    async with app_with_past(tmp_path, size=(200, 60)) as (harness, past):
        past.now_s += 1
        past.tell_progress(2)
        await until(lambda: harness.state.open_streams.at_s == past.now_s)
        for tab in TABS:
            await harness.press(tab.key)
            # A row of Instances, which has but one here, needs the whole width.
            least = 1 if tab.name == "instances" else _LEAST_LINES

            def is_used(name: str = tab.name, least: int = least) -> bool:
                lines = harness.text().splitlines()[4:-1]
                beside = sum(1 for line in lines if line[_SIDE:].strip())
                return harness.main.pane.id == name and beside >= least

            await until(is_used)


async def test_a_narrow_header_keeps_the_errors(tmp_path: Path) -> None:
    """Beside a rotation there is no room for all figures: tokens a second go before open streams."""
    async with app_with_past(tmp_path, size=(60, 24)) as (harness, _):
        await harness.shows("OLD KEY", " err ")
        header = harness.text().splitlines()[0]
        assert " run " in header
        assert "tok/s" not in header
        assert header.rstrip().endswith("users")
