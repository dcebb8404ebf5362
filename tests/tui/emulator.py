"""A terminal's screen, as far as the app writes to it: what an operator reads, and in which look."""

from __future__ import annotations

import re

from rich.cells import get_character_cell_size

_TOKEN = re.compile(
    r"\x1b\[([?>=]?[0-9;]*)[ -/]*([@-~])|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[^\[\]]"
    r"|[\r\n\x07]|[^\x1b\r\n\x07]+"
)
# A sequence that has not come whole.
_BEGUN = re.compile(r"\x1b(?:\[[?>=]?[0-9;]*[ -/]*|\][^\x07\x1b]*\x1b?)?\Z")
# Device status and the place of the cursor.
_ANSWERS = {"5": b"\x1b[0n", "6": b"\x1b[1;1R"}


class Emulator:
    """Acts on text, moves, looks, erasing, scrolling, modes and questions.

    Args:
        width: columns.
        height: rows.
    """

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.rows = [self._blank() for _ in range(height)]
        self._x = self._y = 0
        self._look = ""
        self._top, self._bottom = 0, height - 1
        self._held = ""
        self._answers: list[bytes] = []
        self.modes: set[str] = set()
        """What is switched on: `?1003` are reports of the mouse."""

    def _blank(self) -> list[tuple[str, str]]:
        return [(" ", "")] * self.width

    def texts(self) -> list[str]:
        """Return what can be read, row by row."""
        return ["".join(text for text, _ in row) for row in self.rows]

    def feed(self, written: str) -> list[bytes]:
        """Act on what a program writes; return the answers to what it asks."""
        written, self._held = self._held + written, ""
        if begun := _BEGUN.search(written):
            written, self._held = written[: begun.start()], begun[0]
        for token in _TOKEN.finditer(written):
            if token[2]:
                self._control(token[1], token[2])
            elif token[0] == "\n":
                self._feed_line()
            elif token[0] == "\r":
                self._x = 0
            elif token[0] == "\x1bM":
                self._feed_back()
            elif not token[0].startswith(("\x1b", "\x07")):
                self._print(token[0])
        answers, self._answers = self._answers, []
        return answers

    def _control(self, code: str, kind: str) -> None:
        if kind == "H":
            row, _, column = code.partition(";")
            self._y, self._x = int(row or 1) - 1, int(column or 1) - 1
        elif kind == "m":
            self._look = "" if code in {"", "0"} else f"{self._look};{code}".lstrip(";")
        elif kind == "K":
            self.rows[self._y][self._x :] = [(" ", self._look)] * (self.width - self._x)
        elif kind == "r":
            top, _, bottom = code.partition(";")
            self._top, self._bottom = int(top or 1) - 1, int(bottom or self.height) - 1
            self._x = self._y = 0
        elif kind == "n":
            self._answers.append(_ANSWERS[code])
        elif kind == "h":
            self.modes.add(code)
        elif kind == "l":
            self.modes.discard(code)

    def _feed_line(self) -> None:
        if self._y == self._bottom:
            del self.rows[self._top]
            self.rows.insert(self._bottom, self._blank())
        else:
            self._y += 1

    def _feed_back(self) -> None:
        if self._y == self._top:
            del self.rows[self._bottom]
            self.rows.insert(self._top, self._blank())
        else:
            self._y -= 1

    def _print(self, text: str) -> None:
        row = self.rows[self._y]
        for char in text:
            width = get_character_cell_size(char)
            cells = [(char, self._look), *[("", self._look)] * (width - 1)][: self.width - self._x]
            end = self._x + len(cells)
            # Half of a wide character can't stay.
            if cells and row[self._x][0] == "" and self._x:
                row[self._x - 1] = (" ", row[self._x - 1][1])
            if end < self.width and row[end][0] == "":
                row[end] = (" ", row[end][1])
            row[self._x : end] = cells
            self._x = end
