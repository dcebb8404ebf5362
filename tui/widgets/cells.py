"""Text fitted to terminal cells, lines made of styled pieces, and the widget that draws such lines."""

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


def line(pieces: Iterable[Piece], width: int, rest: Style, over: Style | None = None) -> Strip:
    """Return the pieces as one line of exactly `width` cells; `over` is laid over all of it (the cursor).

    A line that is too long ends in an ellipsis, unless only blanks are cut: half a number is another number.
    """
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
    last = rest + over if over else rest
    if strip.cell_length > width > 0 and strip.crop(width, strip.cell_length).text.strip():
        strip = Strip.join([strip.crop(0, width - 1), Strip([Segment("…", last)])])
    return strip.adjust_cell_length(width, last)


class Drawn(Widget):
    """A widget without border and padding, of lines that are drawn again only where they differ."""

    ALLOW_SELECT = False

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - Textual's own name for it
        super().__init__(id=id)
        self._drawn: list[Strip] = []

    def all_lines(self, width: int, height: int) -> list[Strip]:
        """Return every line as it should look now."""
        raise NotImplementedError

    def redraw(self) -> None:
        """Draw again the lines that differ from what is on the screen."""
        width, height = self.size
        if not width or not height or len(self._drawn) != height:
            # Also while it is hidden: what was drawn before must not be what it comes back with.
            self.forget_drawn()
            return
        fresh = self.all_lines(width, height)
        changed = [y for y in range(height) if fresh[y] != self._drawn[y]]
        self._drawn = fresh
        if changed:
            self.refresh(*(Region(0, y, width, 1) for y in changed))

    def forget_drawn(self) -> None:
        """Draw everything anew: the theme, the focus or the size changed."""
        self._drawn = []
        self.refresh()

    def notify_style_update(self) -> None:
        """Draw anew after the theme changed."""
        super().notify_style_update()
        self._drawn = []

    def render_line(self, y: int) -> Strip:
        """Return one line of the widget, from the lines drawn last."""
        width, height = self.size
        if len(self._drawn) != height or (self._drawn and self._drawn[0].cell_length != width):
            self._drawn = self.all_lines(width, height)
        return self._drawn[y] if y < len(self._drawn) else Strip.blank(width)

    def render_lines(self, crop: Region) -> list[Strip]:
        """Return these lines, cut to a region, as Textual does for a widget with border and links too.

        Its own way costs as much again as drawing the rows. Its filter from ANSI to true colours has
        nothing to do: a theme has colours of one kind.
        """
        strips = [self.render_line(y) for y in crop.line_range]
        for line_filter in self.app.get_line_filters():
            if not isinstance(line_filter, ANSIToTruecolor):
                background = self.background_colors[1]
                strips = [strip.apply_filter(line_filter, background) for strip in strips]
        if crop.column_span != (0, self.size.width):
            strips = [strip.crop(*crop.column_span) for strip in strips]
        return strips
