"""Colours: of our themes, and made from those of Textual's."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.style import Style
from textual.color import Color

from tests.tui.app_harness import app_with_past
from tui.theme import ANSI, CONTRAST, Role, colours, contrast, role_styles, theme_names

# The themes of the terminal's own colours are as readable as the terminal makes them.
PAINTED = [name for name in theme_names() if colours(name)["bg"] != "default"]
GROUNDS = ("bg", "surface", "panel", "cursor")


def colour_of(style: Style, ground: str) -> tuple[Color, Color]:
    """The colours of a text, and of what is behind it."""
    assert style.color is not None
    behind = ground if style.bgcolor is None else style.bgcolor.name
    return Color.parse(style.color.name), Color.parse(behind)


@pytest.mark.parametrize("name", PAINTED)
def test_every_text_can_be_read_in_every_theme(name: str) -> None:
    """Also the quiet ones, on every background and under the cursor."""
    for role, style in role_styles(name).items():
        if role is Role.CURSOR:
            continue
        for ground in GROUNDS:
            assert contrast(*colour_of(style, colours(name)[ground])) >= CONTRAST, (role, ground)


def test_the_contrast_is_that_of_the_guidelines() -> None:
    """Black on white is 21 to 1, a colour on itself 1 to 1 (WCAG 2.2)."""
    black, white = Color.parse("#000000"), Color.parse("#ffffff")
    assert round(contrast(black, white), 2) == 21
    assert contrast(white, white) == 1


def test_themes_of_the_terminals_colours_set_none_of_their_own() -> None:
    """Whatever the terminal is set to stays."""
    assert role_styles("ansi-dark") == role_styles("ansi-light") == role_styles(ANSI)


async def test_a_theme_of_textual_is_taken_over_at_once_and_at_the_next_start(tmp_path: Path) -> None:
    """Rows and dialogs have its colours."""
    (tmp_path / "tui.json").write_text('{"theme": "nord"}')
    async with app_with_past(tmp_path) as (harness, _):
        assert harness.app.role_styles == role_styles("nord")
        assert harness.requests.rows.background_colors[1].hex == colours("nord")["bg"]
        harness.app.action_colours("gruvbox")
        await harness.idle()
        assert harness.app.role_styles == role_styles("gruvbox")
        await harness.press("question_mark")
        await harness.shows("Requests (this screen)")
