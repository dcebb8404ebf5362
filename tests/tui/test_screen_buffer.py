"""Frames of Textual as a terminal shows them, in few bytes and in a bearable order."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from rich.ansi import AnsiDecoder
from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style

from tests.tui.emulator import Emulator
from tui.screen_buffer import ScreenBuffer

WIDTH, HEIGHT = 12, 9
PIECE = 64
_COLOURS = st.sampled_from([None, "default", "red", "bright_black", "#102030", "#d3dae3"])
_STYLES = st.builds(
    Style,
    color=_COLOURS,
    bgcolor=_COLOURS,
    bold=st.booleans(),
    underline=st.booleans(),
    reverse=st.booleans(),
)
_TEXTS = st.text(st.sampled_from("ab .│▓中é"), min_size=1, max_size=6)
_PUTS = st.tuples(st.integers(0, WIDTH - 1), st.integers(0, HEIGHT - 1), _STYLES, _TEXTS)
_FRAMES = st.lists(st.one_of(_PUTS, st.integers(-2, 2)), min_size=1, max_size=6)


def put(x: int, y: int, text: str, style: Style | None = None) -> str:
    """A piece of a frame, as Textual writes it."""
    shown = (style or Style()).render(text, color_system=ColorSystem.TRUECOLOR)
    return f"\x1b[{y + 1};{x + 1}H{shown}\n"


def look(code: str) -> tuple[object, ...]:
    """What is seen of SGR parameters."""
    [line] = AnsiDecoder().decode(f"\x1b[{code}mx")
    style = Style.combine([Style(), *(part for _, part, _ in line.render(Console()) if part is not None)])
    fg, bg = (None if c is None or c.is_default else c.name for c in (style.color, style.bgcolor))
    return fg, bg, bool(style.bold), bool(style.underline), bool(style.reverse)


def picture(emulator: Emulator) -> list[tuple[object, ...]]:
    """Every cell; of a blank only its ground and lines."""
    cells: list[tuple[object, ...]] = []
    for text, code in (cell for row in emulator.rows for cell in row):
        fg, bg, bold, underline, reverse = look(code)
        lines = underline or reverse
        seen = (fg, bold) if text != " " or lines else ()
        cells.append((text, seen, bg, underline, reverse))
    return cells


def shown(buffer: ScreenBuffer, emulator: Emulator, most: int = 1000) -> int:
    """Write what is left, in at most so many pieces; return the bytes."""
    size = 0
    for _ in range(most):
        piece = buffer.next_piece(PIECE)
        if not piece:
            break
        size += len(piece.encode())
        emulator.feed(piece)
    return size


@settings(derandomize=True, deadline=None, max_examples=60)
@given(st.lists(_FRAMES, max_size=8), st.data())
def test_the_terminal_ends_with_the_picture_of_the_last_frame(
    frames: list[list[tuple[int, int, Style, str] | int]], data: st.DataObject
) -> None:
    """Whatever is drawn, moved up and down, and left unwritten meanwhile: same cells, same looks."""
    wanted, there = Emulator(WIDTH, HEIGHT), Emulator(WIDTH, HEIGHT)
    buffer = ScreenBuffer(WIDTH, HEIGHT)
    shown(buffer, there)
    for frame in frames:
        written = ""
        for part in frame:
            if isinstance(part, int):
                texts = wanted.texts()
                moved = [texts[(y + part) % HEIGHT] for y in range(HEIGHT)]
                written = "".join(put(0, y, text) for y, text in enumerate(moved))
            else:
                x, y, style, text = part
                written = put(x, y, text[: WIDTH - x], style)
            wanted.feed(written.replace("\n", ""))
            buffer.draw(written, urgent=data.draw(st.booleans()))
        shown(buffer, there, data.draw(st.integers(0, 4)))
    shown(buffer, there)
    assert picture(there) == picture(wanted)


def listed(first: int, rows: int, width: int = 80) -> str:
    """A frame of a list: a row for each request."""
    style = Style(color="#d3dae3", bgcolor="#0f1419")
    return "".join(
        put(0, y + 3, f"12:03:{first + y:02} 200  chat  gpt-{first + y} 0.4s ▓▓▓▓ client".ljust(width), style)
        for y in range(rows)
    )


def test_a_new_row_costs_one_row_not_the_whole_list() -> None:
    """The terminal scrolls the list by itself; the header above stays."""
    buffer, there = ScreenBuffer(80, 24), Emulator(80, 24)
    buffer.draw(put(0, 0, "header") + listed(10, 20), urgent=False)
    whole = shown(buffer, there)
    buffer.draw(put(0, 0, "HEADER") + listed(11, 20), urgent=False)
    assert shown(buffer, there) < whole / 8
    assert there.texts()[0].startswith("HEADER")
    assert [row[:8] for row in there.texts()[3:23]] == [f"12:03:{n}" for n in range(11, 31)]


def test_frames_that_are_overtaken_are_never_written() -> None:
    """While nothing can be written, a hundred frames leave no more to write than the last one."""
    buffer, there = ScreenBuffer(80, 24), Emulator(80, 24)
    shown(buffer, there)
    for number in range(100):
        buffer.draw(listed(number % 40 + 10, 20), urgent=False)
    once, first = ScreenBuffer(80, 24), Emulator(80, 24)
    shown(once, first)
    once.draw(listed(29, 20), urgent=False)
    assert shown(buffer, there) == shown(once, first)
    assert there.texts()[3].startswith("12:03:29")  # the first row of the last frame


def test_the_answer_to_a_key_is_in_the_next_piece() -> None:
    """Rows that changed by themselves wait, those that have waited longest come first of them."""
    buffer, there = ScreenBuffer(80, 24), Emulator(80, 24)
    shown(buffer, there)
    buffer.draw("".join(put(0, y, chr(97 + y) * 60) for y in range(20)), urgent=False)
    there.feed(buffer.next_piece(PIECE))
    buffer.draw(put(0, 21, "the cursor is here"), urgent=True)
    there.feed(buffer.next_piece(PIECE))
    assert there.texts()[21].startswith("the cursor is here")
    buffer.draw(put(0, 0, "again"), urgent=False)
    there.feed(buffer.next_piece(PIECE))
    assert [row[0] for row in there.texts()[:4]] == ["a", "b", "c", " "]
    shown(buffer, there)
    assert there.texts()[0].startswith("again")


def test_a_changed_word_is_written_whole() -> None:
    """What reads the line itself, such as a screen reader, gets words and not letters."""
    buffer, there = ScreenBuffer(80, 24), Emulator(80, 24)
    buffer.draw(put(0, 1, "37 of 12,481  FOLLOW"), urgent=False)
    shown(buffer, there)
    buffer.draw(put(0, 1, "37 of 12,481  FROZEN"), urgent=False)
    piece = buffer.next_piece(PIECE)
    assert "FROZEN" in piece
    assert "37 of" not in piece


def test_a_row_takes_less_than_two_thirds_of_its_bytes() -> None:
    """Pieces of one background, blanks between them: the background is said once."""
    colours = ("#7f8b99", "#d3dae3", "#86c98a", "#d3dae3")
    texts = ("12:03:07", " ", "200 ", "gpt-4o")
    row = "".join(
        Style(color=colour, bgcolor="#0f1419").render(text, color_system=ColorSystem.TRUECOLOR)
        for colour, text in zip(colours, texts, strict=True)
    )
    buffer = ScreenBuffer(80, 1)
    buffer.draw(f"\x1b[1;1H{row * 4}", urgent=False)
    assert len(buffer.next_piece(4000)) * 3 < len(row * 4) * 2
