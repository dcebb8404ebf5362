"""Colours in fewer bytes, the same picture."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.color import ColorSystem
from rich.style import Style

from tui.sgr import squeezed

_TOKEN = re.compile(r"\x1b\[([0-9;]*)([mH])|(.)", re.DOTALL)
_OFF = {"22": {"1", "2"}, "23": {"3"}, "24": {"4"}, "27": {"7"}, "29": {"9"}}
_FLAGS = {"1", "2", "3", "4", "7", "9"}
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


class Paper:
    """A terminal that keeps every character with the attributes it was printed with."""

    def __init__(self) -> None:
        self.fg = self.bg = ""
        self.flags: set[str] = set()
        self.cells: list[tuple[str, str, str, frozenset[str]]] = []

    def print(self, text: str) -> None:
        """Take in a stream."""
        for codes, kind, char in _TOKEN.findall(text):
            if kind == "m":
                self._set(codes.split(";"))
            elif kind == "H":
                self.cells.append((f"move {codes}", "", "", frozenset()))
            else:
                self._cell(char)

    def _cell(self, char: str) -> None:
        seen = self.flags & {"4", "7", "9"}
        if char == " " and not seen:
            self.cells.append((char, "", self.bg, frozenset()))
        elif char in "\r\n":
            self.cells.append((char, "", "", frozenset()))
        else:
            self.cells.append((char, self.fg, self.bg, frozenset(self.flags)))

    def _set(self, codes: list[str]) -> None:
        while codes:
            code = codes.pop(0)
            if code in {"", "0"}:
                self.fg = self.bg = ""
                self.flags = set()
            elif code in {"38", "48"}:
                size = 4 if codes[0] == "2" else 2
                colour = ";".join([code, *codes[:size]])
                del codes[:size]
                self.fg, self.bg = (colour, self.bg) if code == "38" else (self.fg, colour)
            elif code in _FLAGS:
                self.flags.add(code)
            elif code in _OFF:
                self.flags -= _OFF[code]
            elif code[0] in "39" and len(code) == 2:
                self.fg = "" if code == "39" else code
            else:
                self.bg = "" if code == "49" else code


def picture(stream: str) -> tuple[list[tuple[str, str, str, frozenset[str]]], str, str, set[str]]:
    """What the terminal shows, and what is set at the end."""
    paper = Paper()
    paper.print(stream)
    return paper.cells, paper.fg, paper.bg, paper.flags


@settings(derandomize=True, deadline=None, max_examples=300)
@given(st.lists(st.one_of(st.tuples(_STYLES, _TEXTS), _MOVES), max_size=12))
def test_the_picture_is_the_same_in_no_more_bytes(parts: list[tuple[Style, str] | str]) -> None:
    """Whatever styles follow each other, with moves between them: same cells, same end, not longer."""
    stream = "".join(
        part if isinstance(part, str) else part[0].render(part[1], color_system=ColorSystem.TRUECOLOR)
        for part in parts
    )
    short = squeezed(stream)
    assert picture(short) == picture(stream)
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
