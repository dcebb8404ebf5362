"""Dialogs: what all of them have, and those that ask for a yes, a time, the columns or a format."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import date, datetime, timedelta
from datetime import time as clock_time
from typing import ClassVar, Generic, TypeVar

from textual import events, on
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, VerticalScroll
from textual.geometry import Size
from textual.screen import ModalScreen
from textual.widget import Widget
from textual.widgets import Button, Input, Static

from relayd.durations import parse_duration
from relayd.printable import plural
from tui.widgets.choices import Choices
from tui.widgets.columns import COLUMN_NAMES

T = TypeVar("T")
_NARROW = 60
_LOW = 20
_CLOCK = re.compile(r"(\d{1,2}):(\d{2})(?::(\d{2}))?")
_FULL = re.compile(r"(\d{4})-(\d{2})-(\d{2})[ T](\d{1,2}):(\d{2})(?::(\d{2}))?")


class Dialog(ModalScreen[T | None], Generic[T]):
    """A window over the screen; the harmless button has the focus, and Escape does the same.

    The buttons name their keys. No dialog is opened by `y`, so the key that opens one never confirms it.

    Args:
        title: the first line.
        yes: the button that acts; none if empty.
        no: the harmless button.
        danger: draw the border in the colour of errors.
    """

    AUTO_FOCUS = "#no"
    SHOWS_SECRET: ClassVar[bool] = False
    """Whether no picture of the screen may be taken while the dialog is open."""
    YES_KEY: ClassVar[str] = "y"
    """The key of the button that acts: `Enter` in a dialog that begins in a field."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "leave", "Back", show=False),
        Binding("y", "yes", "Yes", show=False),
        Binding("left,up", "app.focus_previous", "Before", show=False),
        Binding("right,down", "app.focus_next", "Next", show=False),
    ]

    def __init__(self, title: str, *, yes: str = "", no: str = "Cancel", danger: bool = False) -> None:
        super().__init__()
        self._title = title
        self._yes = yes
        self._no = no
        self.news = ""
        """What changed since the same question was asked before; shown above the rest."""
        self.set_class(danger, "-danger")

    def compose(self) -> ComposeResult:
        """Show title, body and buttons."""
        # Not by Textual's breakpoints: what has the focus is brought into sight before they are applied.
        self._fit(self.app.size)
        with VerticalScroll(id="box", can_focus=False):
            yield Static(self._title, id="title", markup=False)
            if self.news:
                yield paragraph(self.news, id="news")
            yield from self.body()
            with Horizontal(id="buttons"):
                yield from self.buttons()

    @on(events.Resize)
    def fit_again(self, event: events.Resize) -> None:
        """Fit another size of the terminal."""
        self._fit(event.size)
        # Textual keeps a scrollbar for the lines that only its own width makes too many.
        box = self.query_one("#box")
        box.show_vertical_scrollbar = False

        def show_again() -> None:
            if box.is_attached:
                box.show_vertical_scrollbar = box.virtual_size.height > box.size.height

        self.call_after_refresh(show_again)

    def _fit(self, size: Size) -> None:
        self.set_class(size.width < _NARROW, "-narrow")
        self.set_class(size.height < _LOW, "-low")

    def body(self) -> Iterable[Widget]:
        """Return what stands between the title and the buttons."""
        return []

    def buttons(self) -> Iterable[Button]:
        """Return the buttons, the harmless one first."""
        yield Button(f"{self._no} (Esc)", id="no", compact=True)
        if self._yes:
            yield Button(f"{self._yes} ({self.YES_KEY})", id="yes", compact=True)

    def accept(self) -> None:
        """Act on Enter in a field, or on the button that acts."""

    def explain(self, fault: str) -> None:
        """Say in the line `fault` of the body why the answer can't be taken."""
        self.query_one("#fault", Static).update(fault)

    def action_leave(self) -> None:
        """Close without doing anything."""
        self.dismiss(None)

    def may_quit(self) -> bool:
        """Return whether the app may end now; if not, ask what is to become of what would be lost."""
        return True

    @on(Button.Pressed, "#no")
    def _on_no(self) -> None:
        self.action_leave()

    @on(Input.Submitted)
    @on(Choices.Submitted)
    @on(Button.Pressed, "#yes")
    def action_yes(self) -> None:
        """Act."""
        self.accept()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002 - Textual's signature
        """Return whether an action can be done: a dialog without the button that acts has no key for it."""
        return action != "yes" or bool(self._yes)


async def ask(app: App[int], dialog: Dialog[T]) -> T | None:
    """Show a dialog, unless one is open: a double click asks once."""
    if app.screen.is_modal:
        return None
    return await app.push_screen_wait(dialog)


def paragraph(text: str, *, id: str | None = None, note: bool = False) -> Static:  # noqa: A002 - Textual's name for it
    """Return a paragraph of a dialog; never markup."""
    return Static(text, id=id, classes="note" if note else "body", markup=False)


class Confirm(Dialog[bool]):
    """A question with two answers. True: do it."""

    def __init__(self, title: str, text: str, yes: str, *, no: str = "Cancel") -> None:
        super().__init__(title, yes=yes, no=no, danger=True)
        self._text = text

    def body(self) -> Iterable[Widget]:
        """Say what will happen."""
        yield paragraph(self._text)

    def accept(self) -> None:
        """Do it."""
        self.dismiss(True)  # noqa: FBT003 - the answer to the question


def parse_moment(text: str, now_s: float) -> float:
    """Return a time as Unix seconds.

    Where the clocks go back an hour comes twice, and its last one by now is meant; where they go forward, an
    hour is left out.

    Args:
        text: `14:30` or `14:30:05` (the last such time), `2026-01-31 14:30`, or `10m` ago.
        now_s: the time now.

    Raises:
        ValueError: the sentence says how times are written.
    """
    text = text.strip()
    short, full = _CLOCK.fullmatch(text), _FULL.fullmatch(text)
    if short is None and full is None:
        try:
            return now_s - parse_duration(text)
        except ValueError:
            raise ValueError("Write 14:30, 14:30:05, 2026-01-31 14:30, or how long ago: 10m.") from None
    try:
        if full is not None:
            year, month, day, hour, minute, second = (int(part or 0) for part in full.groups())
            days = [date(year, month, day)]
        elif short is not None:
            hour, minute, second = (int(part or 0) for part in short.groups())
            today = date.fromtimestamp(now_s)  # noqa: DTZ012 - days are local
            # By the calendar: a day on which the clocks change has not 24 hours, and one may lack this time.
            days = [today - timedelta(days=ago) for ago in range(3)]
        clock = clock_time(hour, minute, second)
        found_s = [at_s for day in days for at_s in _moments(datetime.combine(day, clock))]
    except (ValueError, OverflowError):
        found_s = []
    if not found_s:
        raise ValueError(f"There is no such time: {text}.")
    return next((at_s for at_s in found_s if at_s <= now_s), found_s[-1])


def _moments(local: datetime) -> list[float]:
    """Return when the clocks show this time, the last first: never in the hour that is left out."""
    moments_s = {local.replace(fold=fold).timestamp() for fold in (0, 1)}
    return sorted((at_s for at_s in moments_s if datetime.fromtimestamp(at_s) == local), reverse=True)  # noqa: DTZ006 - local


class AskTime(Dialog[float]):
    """Where to go in time, as Unix seconds."""

    AUTO_FOCUS = "#moment"
    YES_KEY = "Enter"

    def __init__(self, now_s: float) -> None:
        super().__init__("Go to a time", yes="Go")
        self._now_s = now_s

    def body(self) -> Iterable[Widget]:
        """Show one line to write it in."""
        yield Input(placeholder="14:30, 2026-01-31 14:30, 10m", id="moment", compact=True)
        yield paragraph("10m is ten minutes ago.", id="fault", note=True)

    def accept(self) -> None:
        """Answer with the time, if it can be understood."""
        try:
            self.dismiss(parse_moment(self.query_one(Input).value, self._now_s))
        except (ValueError, OverflowError) as error:
            self.explain(str(error))


class AskColumns(Dialog[frozenset[str]]):
    """Which columns to show where there is room. The answer names those to hide."""

    AUTO_FOCUS = "#columns"
    YES_KEY = "Enter"

    def __init__(self, hidden: frozenset[str]) -> None:
        super().__init__("Columns", yes="Show these")
        self._hidden = hidden

    def body(self) -> Iterable[Widget]:
        """Show one choice for each column."""
        yield paragraph("Space turns a column on or off; on a narrow screen some still give way.", note=True)
        shown = [index for index, name in enumerate(COLUMN_NAMES) if name not in self._hidden]
        yield Choices(COLUMN_NAMES, shown, id="columns", many=True)

    def accept(self) -> None:
        """Answer with what is left out."""
        shown = {COLUMN_NAMES[index] for index in self.query_one(Choices).chosen}
        self.dismiss(frozenset(COLUMN_NAMES) - shown)


class AskExport(Dialog[str]):
    """The format of an export: `ndjson` or `csv`."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("n", "write('ndjson')", "NDJSON", show=False),
        Binding("c", "write('csv')", "CSV", show=False),
    ]

    def __init__(self, rows: int) -> None:
        super().__init__("Export what is shown")
        self._rows = rows

    def body(self) -> Iterable[Widget]:
        """Say what will be written."""
        yield paragraph(
            f"{plural(self._rows, 'row')} into a new file in the directory you started from,"
            " readable by you alone. No prompt, no reply and no key is in it."
        )

    def buttons(self) -> Iterable[Button]:
        """Show a button for each format."""
        yield from super().buttons()
        yield Button("NDJSON (n)", id="ndjson", compact=True)
        yield Button("CSV (c)", id="csv", compact=True)

    @on(Button.Pressed, "#ndjson, #csv")
    def _on_format(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id)

    def action_write(self, form: str) -> None:
        """Answer with this format."""
        self.dismiss(form)
