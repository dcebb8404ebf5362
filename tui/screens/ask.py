"""Small questions: a time, the columns, the form of an export."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable

from textual import on
from textual.widget import Widget
from textual.widgets import Button, Input, Static

from relayd.durations import parse_duration
from tui.model.units import plural
from tui.screens.dialog import Dialog, words
from tui.widgets.choices import Choices
from tui.widgets.columns import COLUMN_NAMES

_CLOCK = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?")
_FULL = re.compile(r"(\d{4})-(\d{2})-(\d{2})[ T](\d{1,2}):(\d{2})(?::(\d{2}))?")
_DAY_S = 86_400


def parse_moment(text: str, now_s: float) -> float:
    """`14:30`, `14:30:05` (the last such time), `2026-01-31 14:30`, or `10m` ago, as Unix seconds.

    Raises:
        ValueError: the sentence says how times are written.
    """
    text = text.strip()
    now = time.localtime(now_s)
    short, full = _CLOCK.fullmatch(text), _FULL.fullmatch(text)
    if full is not None:
        parts = [int(part or 0) for part in full.groups()]
        return time.mktime((*parts, 0, 0, -1))  # type: ignore[arg-type]
    if short is not None:
        hour, minute, second = (int(part or 0) for part in short.groups())
        at_s = time.mktime((now.tm_year, now.tm_mon, now.tm_mday, hour, minute, second, 0, 0, -1))
        return at_s - _DAY_S if at_s > now_s else at_s
    try:
        return now_s - parse_duration(text)
    except ValueError:
        raise ValueError("Write 14:30, 14:30:05, 2026-01-31 14:30, or how long ago: 10m.") from None


class AskTime(Dialog[float | None]):
    """Where to go in time."""

    AUTO_FOCUS = "#moment"

    def __init__(self, now_s: float) -> None:
        super().__init__("Go to a time")
        self._now_s = now_s

    def body(self) -> Iterable[Widget]:
        """One line to write it in."""
        yield Input(
            placeholder="14:30, 2026-01-31 14:30, or 10m for ten minutes ago", id="moment", compact=True
        )
        yield words("", id="fault", note=True)

    def buttons(self) -> Iterable[Button]:
        """Cancel first."""
        yield Button("Cancel", id="no", compact=True)
        yield Button("Go", id="yes", compact=True)

    @on(Input.Submitted)
    @on(Button.Pressed, "#yes")
    def _sure(self) -> None:
        try:
            self.dismiss(parse_moment(self.query_one(Input).value, self._now_s))
        except (ValueError, OverflowError) as error:
            self.query_one("#fault", Static).update(str(error))


class AskColumns(Dialog[frozenset[str] | None]):
    """Which columns to show where there is room. The answer names those to hide."""

    AUTO_FOCUS = "#columns"

    def __init__(self, hidden: frozenset[str]) -> None:
        super().__init__("Columns")
        self._hidden = hidden

    def body(self) -> Iterable[Widget]:
        """One choice a column."""
        yield words("Space turns a column on or off; on a narrow screen some still give way.", note=True)
        shown = [index for index, name in enumerate(COLUMN_NAMES) if name not in self._hidden]
        yield Choices(COLUMN_NAMES, shown, id="columns", many=True)

    def buttons(self) -> Iterable[Button]:
        """Cancel first."""
        yield Button("Cancel", id="no", compact=True)
        yield Button("Show these", id="yes", compact=True)

    @on(Button.Pressed, "#yes")
    def _sure(self) -> None:
        shown = {COLUMN_NAMES[index] for index in self.query_one(Choices).chosen}
        self.dismiss(frozenset(COLUMN_NAMES) - shown)


class AskExport(Dialog[str | None]):
    """The form of an export: `ndjson` or `csv`."""

    def __init__(self, rows: int) -> None:
        super().__init__("Export what is shown")
        self._rows = rows

    def body(self) -> Iterable[Widget]:
        """What will be written."""
        yield words(
            f"{plural(self._rows, 'row')} into a new file in the directory you started from,"
            " readable by you alone. No prompt, no reply and no key is in it."
        )

    def buttons(self) -> Iterable[Button]:
        """Cancel first."""
        yield Button("Cancel", id="no", compact=True)
        yield Button("NDJSON", id="ndjson", compact=True)
        yield Button("CSV", id="csv", compact=True)

    @on(Button.Pressed, "#ndjson, #csv")
    def _sure(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id)
