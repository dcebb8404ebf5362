"""Which characters the terminal can show, by its locale, and what stands for the others.

Decided once, at the start. What replaces a character takes as many cells: the layout stays. A client's
text is written as escapes instead, where it enters the app (`tui.model.text`).
"""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field

UTF_8 = "utf-8"
_ASCII_LOCALES = frozenset({"C", "POSIX"})
_CONSOLES = {"linux": "cp437", "vt100": "ascii", "vt102": "ascii", "vt220": "ascii"}
"""Terminals that have few characters of their own, whatever the locale says."""
_STAND_INS = str.maketrans(
    {
        **dict(zip("—·…→←↑↓•●○▶▸✗⊣░▒▓", "-.~><^v**o>>x]:%#", strict=True)),
        **dict(zip("▁▂▃▄▅▆▇█", "_.-=+*%#", strict=True)),
        **dict(zip("▏▎▍▌▋▊▉▐▕▔▀", "|||||##|| '", strict=True)),
        **dict(zip("▲▼△▽◆◇■□✓", "^v^v*o#o+", strict=True)),
    }
)


@dataclass(slots=True)
class Repertoire:
    """What a terminal can show."""

    encoding: str
    """Of what is written to it."""
    glyphs: str = ""
    """The encoding that has the characters of its font, if that has fewer."""
    _table: dict[int, str] = field(default_factory=dict)

    @property
    def typed(self) -> str:
        """The encoding of what is typed; with a locale that names none, UTF-8 is as good as any."""
        return UTF_8 if self.encoding == "ascii" else self.encoding

    def adapt(self, env: Mapping[str, str], output_encoding: str) -> None:
        """Find out what the terminal can show.

        The environment's locale names the encoding, also where Python does not know that locale, or takes
        C for UTF-8 (PEP 538). Without a locale it is the encoding of the output.
        """
        names = [env.get("LC_ALL"), env.get("LC_CTYPE"), env.get("LANG")]
        if names[1] == "C.UTF-8" and names[2]:
            # Python has set this one itself, over what it takes for C.
            names[1] = None
        locale = next((name for name in names if name), "")
        encoding = "ascii" if locale in _ASCII_LOCALES else locale.partition(".")[2].partition("@")[0]
        try:
            self.encoding = codecs.lookup(encoding or output_encoding).name
        except LookupError:
            self.encoding = codecs.lookup(output_encoding).name
        self.glyphs = _CONSOLES.get(env.get("TERM", "").partition("-")[0], "")

    def can_show(self, char: str) -> bool:
        """Return whether a character reaches the terminal as itself."""
        return _encodes(self.encoding, char)

    def shown(self, text: str) -> str:
        """Return the text with what the terminal can't show replaced, cell by cell."""
        if text.isascii() or (self.encoding == UTF_8 and not self.glyphs):
            return text
        for char in {*text}:
            if ord(char) not in self._table:
                self._table[ord(char)] = self._stand_in(char)
        return text.translate(self._table)

    def escaped(self, text: str) -> str:
        r"""Return a text from outside with what the terminal can't show as escapes: `\u4e2d`."""
        if self.encoding == UTF_8 or text.isascii():
            return text
        return "".join(
            char if self.can_show(char) or ord(char) in _STAND_INS else char.encode("unicode_escape").decode()
            for char in text
        )

    def _stand_in(self, char: str) -> str:
        stand_in = _STAND_INS.get(ord(char))
        name = unicodedata.name(char, "")
        if name.startswith("BOX DRAWINGS"):
            stand_in = _box(name)
        if stand_in is None:
            stand_in = "?" * (1 + (unicodedata.east_asian_width(char) in "WF"))
        elif self.glyphs and not _encodes(self.glyphs, char):
            return str(stand_in)
        return char if self.can_show(char) else str(stand_in)


def _box(name: str) -> str:
    lies = "HORIZONTAL" in name or "LEFT" in name or "RIGHT" in name
    stands = "VERTICAL" in name or "UP" in name or "DOWN" in name
    return "+" if lies and stands else "|" if stands else "-"


def _encodes(encoding: str, char: str) -> bool:
    try:
        char.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


TERMINAL = Repertoire(UTF_8)
"""The terminal of this process; `adapt` says once what it is."""
