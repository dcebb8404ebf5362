"""Text fitted to terminal cells, and lines made of styled pieces."""

from __future__ import annotations

from collections.abc import Iterable

from rich.cells import cell_len, set_cell_size
from rich.segment import Segment
from rich.style import Style
from textual.filter import ANSIToTruecolor
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

Piece = tuple[str, Style]


def fit(text: str, width: int, *, right: bool = False) -> str:
    """Return the text in exactly `width` cells; cut with an ellipsis, padded on the left with `right`."""
    if width <= 0:
        return ""
    length = len(text) if text.isascii() else cell_len(text)
    if length > width:
        return set_cell_size(text, width - 1) + "…"
    pad = " " * (width - length)
    return pad + text if right else text + pad


def width_of(pieces: Iterable[Piece]) -> int:
    """Return how many cells the pieces take."""
    return sum(cell_len(text) for text, _ in pieces)


def ground(widget: Widget) -> Style:
    """Return the background of a widget; the terminal's own in the ANSI theme."""
    if widget.app.native_ansi_color:
        return Style()
    return Style(bgcolor=widget.background_colors[1].rich_color)


def own_lines(widget: Widget, crop: Region) -> list[Strip]:
    """Do what `Widget.render_lines` does, for a widget without border, padding and links.

    Textual's own way costs as much again as drawing the rows. Its filter from ANSI to true colours has
    nothing to do: a theme has colours of one kind.
    """
    strips = [widget.render_line(y) for y in crop.line_range]
    for line_filter in widget.app.get_line_filters():
        if not isinstance(line_filter, ANSIToTruecolor):
            background = widget.background_colors[1]
            strips = [strip.apply_filter(line_filter, background) for strip in strips]
    if crop.column_span != (0, widget.size.width):
        strips = [strip.crop(*crop.column_span) for strip in strips]
    return strips


def line(pieces: Iterable[Piece], width: int, rest: Style, over: Style | None = None) -> Strip:
    """Return the pieces as one line of exactly `width` cells; `over` is laid over all of it (the cursor)."""
    merged: list[tuple[str, Style]] = []
    for text, style in pieces:
        if not text:
            continue
        if merged and merged[-1][1] == style:
            merged[-1] = (merged[-1][0] + text, style)
        else:
            merged.append((text, style))
    segments = [Segment(text, rest + style + over if over else rest + style) for text, style in merged]
    strip = Strip(segments)
    return strip.adjust_cell_length(width, rest + over if over else rest)
