"""The picture that the terminal should show, the one that it shows, and the bytes between the two.

Textual writes every frame whole, and a slow line cannot carry them all. Here a frame only changes what
should be shown. The difference is written a piece at a time: what answers a key first, then the rows
that have waited longest. A frame that the next one overtakes is never written.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from operator import eq

from rich.cells import get_character_cell_size

from tui.sgr import alike_on_blanks, change, on_blanks

_SEQUENCE = re.compile(r"\x1b\[([0-9;]*)([mH])")
_MIN_SCROLLED_ROWS = 6
_MAX_SCROLL = 3
_MIN_GAIN_BYTES = 100
_ROW_BYTES = 16
"""What the first change in a row costs beside its text: a move and a colour."""
_GAP_CELLS = 8
"""So many equal cells between two changes are written again: a move of the cursor is as long."""
_ERASE_CELLS = 4
_ALL = -1


class _Row:
    """The cells of one row: texts and SGR parameters. Behind a wide character is an empty text."""

    __slots__ = ("looks", "texts")

    def __init__(self, width: int) -> None:
        self.texts = [" "] * width
        self.looks = [""] * width

    def put(self, x: int, texts: list[str], look: str) -> None:
        """Write over what is there, as a terminal does: half a wide character leaves a blank."""
        texts = texts[: len(self.texts) - x]
        end = x + len(texts)
        if self.texts[x] == "":
            self.texts[x - 1] = " "
        if end < len(self.texts) and self.texts[end] == "":
            self.texts[end] = " "
        self.texts[x:end] = texts
        blank = on_blanks(look)
        self.looks[x:end] = [blank if text == " " else look for text in texts]

    def differing(self, other: _Row) -> list[int]:
        """Return the places where the rows differ."""
        pairs = zip(self.texts, other.texts, self.looks, other.looks, strict=True)
        return [x for x, (a, b, c, d) in enumerate(pairs) if a != b or c != d]

    def alike(self, other: _Row) -> int:
        """Count the cells with the same text."""
        return sum(map(eq, self.texts, other.texts))

    def copy(self) -> _Row:
        """Return a row with the same cells."""
        row = _Row(0)
        row.texts, row.looks = self.texts.copy(), self.looks.copy()
        return row

    @property
    def is_plain(self) -> bool:
        """Whether each character takes one cell for certain."""
        return all(len(text) == 1 for text in self.texts)


class ScreenBuffer:
    """Takes Textual's frames; gives what to write.

    Args:
        width: columns.
        height: rows.
    """

    def __init__(self, width: int, height: int) -> None:
        self.size = (width, height)
        self._wanted = [_Row(width) for _ in range(height)]
        self._shown: list[_Row | None] = [None] * height
        """None: it is not known what the terminal shows there."""
        self._urgent: dict[int, None] = {}
        self._waiting: dict[int, None] = {}
        """Rows that may differ, those that have waited longest first."""
        self._cursor = self._shown_cursor = (0, 0)
        self._may_scroll = False

    @property
    def is_urgent(self) -> bool:
        """Whether the next piece is the answer to a key."""
        return bool(self._urgent)

    def draw(self, frame: str, *, urgent: bool) -> None:
        """Take over a frame: texts, moves of the cursor and colours; `urgent` if it answers a key."""
        x = y = 0
        look = ""
        touched = set()
        parts = _SEQUENCE.split(frame)
        for text, code, kind in zip(parts[::3], [*parts[1::3], ""], [*parts[2::3], ""], strict=True):
            shown = text.rstrip("\r\n")
            if shown and 0 <= y < self.size[1] and 0 <= x < self.size[0]:
                cells = list(shown) if shown.isascii() else _cells(shown)
                self._wanted[y].put(x, cells, look)
                touched.add(y)
                x += len(cells)
            if kind == "H":
                row, _, column = code.partition(";")
                x, y = int(column or 1) - 1, int(row or 1) - 1
            elif code in {"", "0"}:
                look = ""
            else:
                look = f"{look};{code}" if look else code
        self._cursor = (x, y)
        self._may_scroll = True
        for y in sorted(touched):
            if urgent:
                self._waiting.pop(y, None)
                self._urgent[y] = None
            elif y not in self._urgent:
                self._waiting[y] = None

    def next_piece(self, budget: int) -> str:
        """Return what brings the terminal nearer to the picture: about `budget` bytes, empty at the end."""
        written = [self._scroll()]
        size, look = len(written[0]), ""
        while size < budget and (self._urgent or self._waiting):
            rows = self._urgent or self._waiting
            y = next(iter(rows))
            del rows[y]
            row, look = self._changes(y, look)
            size += len(row.encode())
            written.append(row)
        piece = "".join(written) + change(look, "")
        if piece or self._cursor != self._shown_cursor:
            self._shown_cursor = self._cursor
            return piece + _move(*self._cursor)
        return ""

    def _changes(self, y: int, now: str) -> tuple[str, str]:
        """Return what makes one row as it should be, and the look in force behind that."""
        wanted, shown = self._wanted[y], self._shown[y]
        width = self.size[0]
        if shown is None:
            spans = [(0, width)]
        elif not (changed := wanted.differing(shown)):
            return "", now
        elif wanted.is_plain and shown.is_plain:
            spans = list(_spans(changed, wanted.texts))
        else:
            # Terminals disagree about the width of some characters: only a whole row is certain.
            spans = [(0, width)]
        self._shown[y] = wanted.copy()
        written = []
        for start, end in spans:
            written.append(_move(start, y))
            erased = _erased_from(wanted, start) if end == width else end
            x = start
            while x < erased:
                look = wanted.looks[x]
                stop = x + 1
                while stop < erased and (wanted.looks[stop] == look or wanted.texts[stop] == ""):
                    stop += 1
                text = "".join(wanted.texts[x:stop])
                if not (text.isspace() and alike_on_blanks(now, look)):
                    written.append(change(now, look))
                    now = look
                written.append(text)
                x = stop
            if erased < end:
                written += [change(now, ""), "\x1b[K"]
                now = ""
        return "".join(written), now

    # Scrolling: a new row at the end of a list moves all others, which every terminal can do by itself.

    def _scroll(self) -> str:
        rows = sorted({*self._urgent, *self._waiting})
        if not self._may_scroll or len(rows) < _MIN_SCROLLED_ROWS:
            return ""
        self._may_scroll = False
        best, first, last, by = _MIN_GAIN_BYTES, 0, 0, 0
        still = {y: self._cost(y, y) for y in rows}
        for shift in (*range(1, _MAX_SCROLL + 1), *range(-_MAX_SCROLL, 0)):
            gain, begin = 0, rows[0]
            for y in rows:
                # The rows of a list: without one between that stays as it is.
                if gain <= 0 or y - 1 not in still:
                    gain, begin = 0, y
                gain += still[y] - self._cost(y, y + shift)
                if gain > best:
                    best, first, last, by = gain, begin, y, shift
        return self._scrolled(min(first, first + by), max(last, last + by), by) if by else ""

    def _cost(self, y: int, there: int) -> int:
        """Return about how many bytes make a row out of what the terminal shows in another."""
        shown = self._shown[there] if 0 <= there < self.size[1] else None
        differing = self.size[0] - (0 if shown is None else self._wanted[y].alike(shown))
        return differing and differing + _ROW_BYTES

    def _scrolled(self, top: int, bottom: int, by: int) -> str:
        """Move these rows of the terminal up, or down if `by` is negative; return the code for that."""
        blanks: list[_Row | None] = [_Row(self.size[0]) for _ in range(abs(by))]
        rows = self._shown[top : bottom + 1]
        self._shown[top : bottom + 1] = [*rows[by:], *blanks] if by > 0 else [*blanks, *rows[:by]]
        for y in range(top, bottom + 1):
            if y not in self._urgent:
                self._waiting[y] = None
        at, code = (bottom, "\n") if by > 0 else (top, "\x1bM")
        return f"\x1b[{top + 1};{bottom + 1}r{_move(0, at)}{code * abs(by)}\x1b[r"


def _cells(text: str) -> list[str]:
    """Return the text by cells: a wide character takes two, a combining one joins the one before."""
    cells: list[str] = []
    for char in text:
        width = get_character_cell_size(char)
        if width:
            cells += [char, *[""] * (width - 1)]
        elif cells and unicodedata.category(char).startswith("M"):
            cells[-1 if cells[-1] else -2] += char
    return cells


def _move(x: int, y: int) -> str:
    return f"\x1b[{y + 1};{x + 1}H"


def _spans(changed: list[int], texts: list[str]) -> Iterator[tuple[int, int]]:
    """Return which cells to write: whole words, and small gaps with them."""
    start = end = _ALL
    for x in changed:
        if start != _ALL and x - end > _GAP_CELLS:
            yield _word_start(start, texts), _word_end(end, texts)
            start = _ALL
        if start == _ALL:
            start = x
        end = x + 1
    yield _word_start(start, texts), _word_end(end, texts)


def _word_start(x: int, texts: list[str]) -> int:
    while x > 0 and texts[x].isalnum() and texts[x - 1].isalnum():
        x -= 1
    return x


def _word_end(x: int, texts: list[str]) -> int:
    while x < len(texts) and texts[x].isalnum() and texts[x - 1].isalnum():
        x += 1
    return x


def _erased_from(row: _Row, start: int) -> int:
    """Return where the blanks at the end begin, if they have the terminal's own colours and are worth it."""
    x = len(row.texts)
    while x > start and row.texts[x - 1] == " " and row.looks[x - 1] == "":
        x -= 1
    return x if len(row.texts) - x >= _ERASE_CELLS else len(row.texts)
