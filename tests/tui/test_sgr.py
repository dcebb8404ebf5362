"""Colours in fewer bytes, the same picture."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.ansi import AnsiDecoder
from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style

from tui.sgr import squeezed

_COLOURS = st.sampled_from([None, "default", "red", "bright_black", "color(200)", "#102030", "#d3dae3"])
_STYLES = st.builds(
    Style,
    color=_COLOURS,
    bgcolor=_COLOURS,
    bold=st.booleans(),
    dim=st.booleans(),
    underline=st.booleans(),
    reverse=st.booleans(),
)
_TEXTS = st.sampled_from(["a", "word", " ", "   ", "─┃", "x y"])
_MOVES = st.sampled_from(["\x1b[3;1H", "\r\n\x1b[4;1H", "\r\n"])


def picture(stream: str) -> list[tuple[object, ...]]:
    """Every character with what is seen of its style: on a blank only its ground and lines."""
    cells: list[tuple[object, ...]] = []
    for line in AnsiDecoder().decode(stream.replace("\r", "")):
        for text, style, _ in line.render(Console()):
            look = style or Style()
            fg, bg = (None if c is None or c.is_default else c.name for c in (look.color, look.bgcolor))
            lines = (bool(look.underline), bool(look.reverse), bool(look.strike))
            shape = (fg, bool(look.bold), bool(look.dim), bool(look.italic))
            cells += [(char, bg, lines, shape if char != " " or any(lines) else None) for char in text]
    return cells


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.lists(st.one_of(st.tuples(_STYLES, _TEXTS), _MOVES), max_size=12))
def test_the_picture_is_the_same_in_no_more_bytes(parts: list[tuple[Style, str] | str]) -> None:
    """Whatever styles follow each other, with moves between them: same cells, same end, not longer."""
    stream = "".join(
        part if isinstance(part, str) else part[0].render(part[1], color_system=ColorSystem.TRUECOLOR)
        for part in parts
    )
    short = squeezed(stream)
    assert picture(f"{short}x") == picture(f"{stream}x")
    assert len(short) <= len(stream)


def test_a_row_takes_less_than_two_thirds_of_its_bytes() -> None:
    """Pieces of one background, blanks between them: the background is said once."""
    look = [Style(color=colour, bgcolor="#0f1419") for colour in ("#7f8b99", "#d3dae3", "#86c98a", "#d3dae3")]
    texts = ["12:03:07", " ", "200 ", "gpt-4o"]
    row = "".join(s.render(t, color_system=ColorSystem.TRUECOLOR) for s, t in zip(look, texts, strict=True))
    assert len(squeezed(row * 5)) * 3 < len(row * 5) * 2


def test_codes_that_are_not_known_stay_as_they_are() -> None:
    """An overline is neither lost nor left on."""
    stream = "\x1b[53;31ma\x1b[0m\x1b[31mb\x1b[0m"
    assert squeezed(stream) == "\x1b[53;31ma\x1b[0;31mb\x1b[0m"
