"""Parts of a list: its scrollbar with marks for what is worth finding, and what an empty one says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.style import Style
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from tui.theme import Role
from tui.widgets.cells import line


@dataclass(frozen=True, slots=True)
class Extent:
    """How many rows there are, how many are in sight, and which is the first of them."""

    count: int
    rows: int
    top: int


@dataclass
class ListMessage(Message):
    """What a list tells its parents."""

    list: Widget

    @property
    def control(self) -> Widget:
        """The list, for `@on` with a selector."""
        return self.list


def scrollbar(
    extent: Extent,
    role_of: Callable[[int, int], Role | None],
    look: Callable[[Role], Style],
    rest: Style,
) -> list[Strip]:
    """One cell a line; `role_of` gives the mark for the rows from the first to before the second."""
    count, rows = extent.count, extent.rows
    if count <= rows or not rows:
        return [line([], 1, rest)] * rows
    size = max(1, rows * rows // count)
    start = round(extent.top * (rows - size) / max(1, count - rows))
    strips = []
    for y in range(rows):
        inside = start <= y < start + size
        first = y * count // rows
        role = role_of(first, max(first + 1, (y + 1) * count // rows))
        glyph = ("┃" if inside else "│") if role is None else ("╋" if inside else "┿")
        strips.append(line([(glyph, look(role or (Role.ACCENT if inside else Role.DIM)))], 1, rest))
    return strips


def empty_lines(texts: tuple[str, ...], size: tuple[int, int], look: Style, rest: Style) -> list[Strip]:
    """Sentences in the upper middle of a space of this width and height."""
    width, height = size
    above = max(0, (height - len(texts)) // 3)
    lines = [Strip.blank(width, rest)] * above
    lines += [line([(text.center(width), look)], width, rest) for text in texts]
    lines += [Strip.blank(width, rest)] * max(0, height - len(lines))
    return lines[:height]
