"""Sentences on a screen, which are asked for more often than they change."""

from __future__ import annotations

from rich.text import Text
from textual.widgets import Static

_DIGITS = str.maketrans("123456789", "0" * 9)


class Words(Static):
    """A text that is drawn again only if it changed, and laid out again only if more than digits did."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - Textual's own name for it
        super().__init__(id=id, markup=False)
        self._shown: tuple[str, str | Text] = ("", "")
        """A theme, and the text that was drawn in its colours."""

    def say(self, text: str | Text) -> None:
        """Show a text. An update lays out the whole screen, unless it takes the same room."""
        theme, before = self._shown
        if (self.app.theme, text) != (theme, before):
            self._shown = (self.app.theme, text)
            self.update(text, layout=_without_digits(text) != _without_digits(before))


def _without_digits(text: str | Text) -> str:
    """Return what decides how a text is laid out: a countdown breaks its lines nowhere else."""
    return str(text).translate(_DIGITS)
