"""Plots of block characters: columns over time with a scale and a clock, and sparklines."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from rich.style import Style
from rich.text import Text
from textual.widget import Widget

from tui.theme import Role, style

_SCALE = 7
_FULL = "█"
_BLOCKS = " ▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True)
class Line:
    """One row of values, by the same buckets as the others of its plot."""

    name: str
    values: Sequence[float]
    role: Role
    shown: float | None = None
    """What the title says of it instead of its newest value."""


class Plot(Widget):
    """One or two lines of values. The second is drawn over the first from the same ground."""

    DEFAULT_CSS = "Plot { height: 1fr; width: 1fr; padding: 0 1; }"

    def __init__(self, *, id: str) -> None:  # noqa: A002 - Textual's own name for it
        super().__init__(id=id)
        self._title = ""
        self._lines: tuple[Line, ...] = ()
        self._times: tuple[str, str] = ("", "")
        self._unit: Callable[[float], str] = str

    def show(
        self, title: str, lines: Sequence[Line], times: tuple[str, str], unit: Callable[[float], str]
    ) -> None:
        """Draw these."""
        fresh = (title, tuple(lines), times)
        if fresh != (self._title, self._lines, self._times):
            self._title, self._lines, self._times = fresh
            self._unit = unit
            self.refresh()

    def render(self) -> Text:
        """Return title with the newest values, columns with a scale, and clock."""
        width, height = self.size
        text = self._head(with_tops=True)
        if text.cell_len > width:
            text = self._head(with_tops=False)
            text.truncate(width, overflow="ellipsis")
        room, rows = max(1, width - _SCALE), max(1, height - 2)
        top = nice_top(max((max(line.values, default=0.0) for line in self._lines), default=0.0))
        drawn = [columns(resampled(line.values, room), rows, top) for line in self._lines]
        for y in range(rows):
            text.append("\n")
            label = self._unit(top) if y == 0 else "0" if y == rows - 1 else ""
            text.append(f"{label:>{_SCALE - 2}} ", style(self.app, Role.DIM))
            text.append("┤" if label else "│", style(self.app, Role.DIM))
            self._row(text, [lines[y] for lines in drawn])
        left, right = self._times
        gap = max(1, room - len(left) - len(right))
        text.append(f"\n{' ' * _SCALE}{left}{' ' * gap}{right}", style(self.app, Role.DIM))
        return text

    def _head(self, *, with_tops: bool) -> Text:
        """Return the title with the newest values, and with the greatest ones where there is room."""
        text = Text(no_wrap=True)
        text.append(self._title, style(self.app, Role.STRONG))
        for line in self._lines:
            # The last bucket has only begun: the one before it is the newest that can be compared.
            newest = line.values[-2] if len(line.values) > 1 else 0.0
            newest = newest if line.shown is None else line.shown
            text.append(f"   {line.name} ", style(self.app, Role.DIM))
            text.append(self._unit(newest), style(self.app, line.role))
            if with_tops:
                most = max(line.values, default=0.0)
                text.append(f" (peak {self._unit(most)})", style(self.app, Role.DIM))
        return text

    def _row(self, text: Text, rows: list[str]) -> None:
        """Add one line; later values stand before earlier ones, and a cell that is part full shows both."""
        run, run_look = "", Style()
        for x in range(len(rows[0]) if rows else 0):
            shown, look = self._cell([row[x] for row in rows])
            if look != run_look:
                text.append(run, run_look)
                run, run_look = "", look
            run += shown
        text.append(run, run_look)

    def _cell(self, glyphs: list[str]) -> tuple[str, Style]:
        shown, look = glyphs[0], style(self.app, self._lines[0].role)
        for line, glyph in zip(self._lines[1:], glyphs[1:], strict=True):
            if glyph != " ":
                behind = look.color if shown == _FULL and glyph != _FULL else None
                shown, look = glyph, style(self.app, line.role) + Style(bgcolor=behind)
        return shown, Style() if shown == " " else look


def sparkline(values: Sequence[float | None], width: int, top: float | None = None) -> str:
    """Return the newest `width` values as one line of blocks; None is a blank."""
    shown = list(values)[-width:]
    known = [value for value in shown if value is not None]
    high = top if top is not None else max(known, default=0.0)
    cells = []
    for value in shown:
        if value is None or high <= 0:
            cells.append(" " if value is None else _BLOCKS[1])
            continue
        level = 1 + round(min(1.0, value / high) * 7) if value > 0 else 1
        cells.append(_BLOCKS[level])
    return "".join(cells).rjust(width)


def columns(values: Sequence[float], height: int, top: float) -> list[str]:
    """Return the values as columns of blocks, `height` lines from the top down."""
    lines = []
    for level in range(height - 1, -1, -1):
        line = ""
        for value in values:
            filled = (value / top * height if top > 0 else 0) - level
            line += _BLOCKS[max(0, min(8, round(filled * 8)))]
        lines.append(line)
    if lines:
        lines[-1] = "".join(
            "▁" if value > 0 and cell == " " else cell for value, cell in zip(values, lines[-1], strict=True)
        )
    return lines


def resampled(values: Sequence[float], width: int) -> list[float]:
    """Return the values in `width` places; where several share a place, the greatest of them."""
    count = len(values)
    if count <= width:
        return [values[place * count // width] for place in range(width)] if count else []
    return [max(values[place * count // width : (place + 1) * count // width]) for place in range(width)]


def nice_top(value: float) -> float:
    """Return the next round number at or above: 1, 1.5, 2, 3, 4, 5, 6, 8, 10 and so on."""
    if value <= 0:
        return 1.0
    power = 1.0
    while power > value:
        power /= 10
    while power * 10 <= value:
        power *= 10
    return next(step * power for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if step * power >= value - 1e-9)
