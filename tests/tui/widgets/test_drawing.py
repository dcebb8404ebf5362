"""Pieces that screens are made of."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.style import Style
from textual.app import App, ComposeResult

from tests.tui.samples import a_record, an_open
from tui.model.text import printable_text
from tui.widgets.bars import TABS, Bar, tab_labels
from tui.widgets.cells import Piece, fit, line
from tui.widgets.columns import COLUMN_NAMES, fitted, row
from tui.widgets.plot import columns, nice_top, resampled, sparkline
from tui.widgets.time_bar import length, shares, time_bar


@given(st.text(max_size=30), st.integers(0, 40), st.booleans())
@settings(max_examples=200, derandomize=True)
def test_fitted_text_takes_exactly_its_cells(text: str, width: int, right: bool) -> None:  # noqa: FBT001 - drawn by hypothesis
    """Wide characters and cuts included."""
    assert cell_len(fit(printable_text(text), width, right=right)) == width


@given(st.lists(st.integers(0, 10_000), min_size=4, max_size=4), st.integers(0, 40))
@settings(max_examples=200, derandomize=True)
def test_shares_use_every_cell(parts: list[int], cells: int) -> None:
    """The cells of a bar are shared out whole."""
    assert sum(shares(parts, cells)) == (cells if sum(parts) else 0)


def test_a_longer_request_has_a_longer_bar() -> None:
    """From one cell to all of them, never shrinking."""
    lengths = [length(ms, 20) for ms in (0, 50, 500, 5000, 50_000, 120_000, 10**7)]
    assert lengths == sorted(lengths)
    assert (lengths[0], lengths[-1]) == (1, 20)


@pytest.mark.parametrize("width", [40, 60, 78, 100, 139, 250])
def test_a_row_fits_its_width(width: int) -> None:
    """Whatever the width, a row is never wider; time, status, model, duration and client stay."""
    chosen = fitted(width)
    for record, age_ms in ((a_record(1), None), (an_open(1), 900.0)):
        pieces = row(record, age_ms, chosen, lambda _: Style())
        assert sum(cell_len(text) for text, _ in pieces) <= max(width, 43) + 1
    assert {"time", "status", "model", "duration", "client"} <= {f.column.name for f in chosen}


def test_hidden_columns_are_left_out() -> None:
    """What the operator hid is not shown, however wide the screen."""
    assert {f.column.name for f in fitted(250, frozenset({"agent", "ip"}))} == set(COLUMN_NAMES) - {
        "agent",
        "ip",
    }


def test_a_bar_reads_without_colour() -> None:
    """Every part and every end has its own glyph."""
    record = a_record(1, connect_ms=600, first_token_ms=1200, stalled_ms=600)
    bar = "".join(text for text, _ in time_bar(record, None, 20, lambda _: Style()))
    assert set(bar) == set("·░▓▒")
    assert time_bar(an_open(1), 900, 20, lambda _: Style())[-1][0] == "▸"


@pytest.mark.parametrize("width", [30, 40, 80, 100, 200])
def test_no_tab_is_cut_off(width: int) -> None:
    """With every badge, all tabs fit: whole titles from 100 columns, short ones from 80, keys from 40."""
    badges = {"inflight": "1000", "clients": "!"}
    shown = [(tab, badges.get(tab.name, "")) for tab in TABS]
    labels, gap = tab_labels(shown, width)
    assert len(gap.join(f" {label} " for label in labels).rstrip()) <= max(width, 40)
    assert [label.split()[0] for label in labels] == [tab.key for tab in TABS]
    assert [labels[1].split()[-1], labels[3].split()[-1]] == ["1000", "!"]
    if width >= 80:
        assert all(
            tab.short in label or tab.title in label for (tab, _), label in zip(shown, labels, strict=True)
        )
    if width >= 100:
        assert all(tab.title in label for (tab, _), label in zip(shown, labels, strict=True))


def test_plots_are_drawn_to_scale() -> None:
    """Half of the top is half of the height; a small value is never nothing."""
    assert columns([8, 4, 0.01], 2, 8) == ["█  ", "██▁"]
    assert sparkline([0, 1, None, 8], 4) == "▁▂ █"
    assert [nice_top(value) for value in (0, 0.7, 3, 240, 1001)] == [1, 0.8, 3, 300, 1500]
    assert resampled([1, 2, 3, 4], 2) == [2, 4]


async def test_a_line_that_changed_while_it_was_hidden_comes_back_with_the_new_text() -> None:
    """A screen that is shown again does not show what was true when it was left."""

    class Word(Bar):
        text = "before"

        def pieces(self, y: int, width: int) -> Iterable[Piece]:  # noqa: ARG002 - one short line
            return [(self.text, Style())]

    class OneWord(App[None]):
        def compose(self) -> ComposeResult:
            yield Word()

    async with OneWord().run_test() as pilot:
        word = pilot.app.query_one(Word)
        assert word.render_line(0).text.strip() == "before"
        word.display = False
        await pilot.pause()
        word.text = "after"
        word.redraw()
        word.display = True
        await pilot.pause()
        assert word.render_line(0).text.strip() == "after"


@pytest.mark.parametrize(
    ("texts", "shown"),
    [(("tokens ", "957"), "tokens …"), (("tok", "  "), "tok     "), (("12345678", "  "), "12345678")],
)
def test_a_line_that_is_cut_says_so(texts: tuple[str, ...], shown: str) -> None:
    """Half a number would be another number; blanks at the end are no loss."""
    assert line([(text, Style()) for text in texts], 8, Style()).text == shown
