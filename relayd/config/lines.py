"""Where in a TOML text each key stands: the parser gives values, an error message needs lines."""

from __future__ import annotations

import re
from dataclasses import dataclass

import tomli

KeyPath = tuple[str, ...]

_FILLER = re.compile(r"(?:[ \t\r\n]+|#[^\n]*)*")
_KEY_PART = re.compile(r"""[ \t]*("(?:\\.|[^"\\\n])*"|'[^'\n]*'|[A-Za-z0-9_-]+)[ \t]*""")
# Closing quotes of the long forms may be preceded by one or two that belong to the text.
_SCALAR = re.compile(
    r'''"""(?:\\.|[^\\])*?"{3,5}|"(?:\\.|[^"\\\n])*"|'''
    r"""'''.*?'{3,5}|'[^'\n]*'|[^,\]}\#\n"'\[{]+""",
    re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class _Open:
    """An array or inline table whose end has not been read. `path` is None where keys have no path."""

    array: bool
    path: KeyPath | None


def key_lines(text: str) -> dict[KeyPath, int]:
    """Map the path of every table and key to the line (from 1) on which it first appears.

    `text` must be TOML that tomli accepts; for other text the result is incomplete. Tables inside arrays
    are not followed: their keys have no single path. `[[x]]` counts as the key `x`.
    """
    return _Scan(text).run()


class _Scan:
    """One pass over the text, without recursion: nesting is bounded by the text alone."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1
        self._lines: dict[KeyPath, int] = {}
        self._table: KeyPath | None = ()
        self._open: list[_Open] = []

    def run(self) -> dict[KeyPath, int]:
        while self._step():
            pass
        return self._lines

    def _step(self) -> bool:
        """Read one statement, value or mark; False at the end, or where the text is not TOML."""
        self._move(_FILLER)
        char = self._text[self._at : self._at + 1]
        if self._open and char and char in ",]}":
            self._at += 1
            if char != ",":
                self._open.pop()
            return True
        if self._open and self._open[-1].array:
            return self._value(None)
        if not self._open and char == "[":
            return self._header()
        return self._pair(self._open[-1].path if self._open else self._table)

    def _header(self) -> bool:
        brackets = 2 if self._text.startswith("[[", self._at) else 1
        self._at += brackets
        parts = self._key(())
        self._table = parts
        self._at += brackets
        return parts is not None

    def _pair(self, base: KeyPath | None) -> bool:
        path = self._key(base)
        if path is None or self._text[self._at : self._at + 1] != "=":
            return False
        self._at += 1
        self._move(_FILLER)
        return self._value(path if base is not None else None)

    def _key(self, base: KeyPath | None) -> KeyPath | None:
        """Read a dotted key and note it under `base`, unless that is None. None: there is no key."""
        path = base or ()
        while part := self._move(_KEY_PART):
            path += (_plain(part[1]),)
            if base is not None:
                self._lines.setdefault(path, self._line)
            if self._text[self._at : self._at + 1] != ".":
                return path
            self._at += 1
        return None

    def _value(self, path: KeyPath | None) -> bool:
        char = self._text[self._at : self._at + 1]
        if char and char in "[{":
            self._at += 1
            self._open.append(_Open(array=char == "[", path=path))
            return True
        return self._move(_SCALAR) is not None

    def _move(self, pattern: re.Pattern[str]) -> re.Match[str] | None:
        found = pattern.match(self._text, self._at)
        if found:
            self._line += self._text.count("\n", self._at, found.end())
            self._at = found.end()
        return found


def _plain(name: str) -> str:
    """A key without its quotes; one that the parser would not take stays as written."""
    if name[0] not in "\"'":
        return name
    try:
        return str(tomli.loads(f"x = {name}")["x"])
    except tomli.TOMLDecodeError:
        return name
