"""What the detail shows beside the summary: when each thing happened, and the record as the log has it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

import msgspec
from rich.cells import cell_len
from rich.style import Style
from rich.text import Text
from textual import events
from textual.message import Message

from relayd.admin.schema import RequestRecord, epoch_s
from tui.model.descriptions import Part, cause, time_parts
from tui.model.units import bytes_text, clock, duration, plural, rate
from tui.theme import Role, style
from tui.widgets.bars import Bar
from tui.widgets.cells import Piece
from tui.widgets.time_bar import shares

Look = Callable[[Role], Style]
PARTS = {
    "connect": (Role.CONNECT, "·", "connect"),
    "first token": (Role.WAIT, "░", "first token"),
    "stream": (Role.STREAM, "▓", "stream"),
    "client": (Role.CLIENT, "▒", "wait for client"),
}


class DetailView(StrEnum):
    """The ways to look at one request."""

    SUMMARY = "Summary"
    TIMELINE = "Timeline"
    RAW = "Raw"


class ViewLine(Bar):
    """The names of the views; the one that is on is set off by brackets as well as by colour."""

    DEFAULT_CSS = "ViewLine { dock: top; background: $surface; }"

    @dataclass
    class Picked(Message):
        """A name was clicked."""

        view: DetailView

    def __init__(self) -> None:
        super().__init__(id="detail-views")
        self.current = DetailView.SUMMARY
        self._ends: list[tuple[int, DetailView]] = []

    def rest_style(self) -> Style:
        """Plain."""
        return style(self.app, Role.TEXT)

    def pieces(self, y: int, width: int) -> Iterable[Piece]:  # noqa: ARG002 - one line, cut where it ends
        """All names."""
        dim, on = style(self.app, Role.DIM), style(self.app, Role.TITLE) + Style(reverse=True)
        pieces: list[Piece] = []
        self._ends = []
        at = 0
        for view in DetailView:
            chosen = view is self.current
            label = f"[{view.value}]" if chosen else f" {view.value} "
            pieces.append((label, on if chosen else dim))
            at += cell_len(label)
            self._ends.append((at, view))
        return pieces

    def on_click(self, event: events.Click) -> None:
        """Pick a view."""
        for end, view in self._ends:
            if event.x < end:
                self.post_message(self.Picked(view))
                return


def timeline(record: RequestRecord, age_ms: float | None, width: int, look: Look) -> Text:
    """What happened when, and the same as bars one below the other."""
    text = Text(no_wrap=False, overflow="fold")
    began_s = epoch_s(record.started_at)
    for at_ms, what in _moments(record, age_ms):
        at_s = began_s + at_ms / 1000
        text.append(f"{clock(at_s)}.{int(at_s * 1000) % 1000:03d}", look(Role.DIM))
        text.append(f"  +{duration(at_ms):<6}", look(Role.STRONG))
        text.append(f" {what}\n", look(Role.TEXT))
    parts = time_parts(record, age_ms)
    text.append("\n")
    _staircase(text, parts, max(10, min(60, width - 18)), look)
    if record.deltas:
        text.append(f"\n{_pace(record, parts)}\n", look(Role.TEXT))
    return text


def _moments(record: RequestRecord, age_ms: float | None) -> list[tuple[float, str]]:
    """Milliseconds since the start, and what was then."""
    moments: list[tuple[float, str]] = [(0, f"came from {record.ip}")]
    if record.connect_ms is not None:
        moments.append((record.connect_ms, "connected to the provider"))
    if record.first_token_ms is not None:
        about = "first token" if record.outcome is not None else "first token, about"
        moments.append((record.first_token_ms, about))
    if record.duration_ms is not None:
        ended = record.outcome.value.replace("_", " ") if record.outcome is not None else "ended"
        moments.append((record.duration_ms, f"{ended}: {cause(record)}"))
    elif record.outcome is None and age_ms is not None:
        moments.append((age_ms, f"now: {cause(record)}"))
    return moments


def _staircase(text: Text, parts: tuple[Part, ...], width: int, look: Look) -> None:
    """Each part begins where the one before it ended."""
    total = sum(part.ms for part in parts)
    at = 0
    for part, cells in zip(parts, shares([part.ms for part in parts], width), strict=True):
        role, glyph, name = PARTS[part.name]
        text.append(f"{name:<15} ", look(Role.DIM))
        text.append(" " * at + (glyph * cells if cells or not part.ms else "▏"), look(role))
        text.append("\n")
        at += cells
    text.append(f"{'':<15} {'0':<{max(1, width - 6)}}{duration(total):>6}\n", look(Role.DIM))


def _pace(record: RequestRecord, parts: tuple[Part, ...]) -> str:
    stream_ms = sum(part.ms for part in parts if part.name in {"stream", "client"})
    told = f"{plural(record.deltas, 'delta')}, {bytes_text(record.bytes_out)}"
    if stream_ms:
        a_second = rate(1000 * record.deltas / stream_ms)
        told += f" in {duration(stream_ms)} of streaming: {a_second} deltas a second"
    if record.stalled_ms:
        told += f"; {duration(record.stalled_ms)} of it the client did not read"
    return f"{told}."


def raw(record: RequestRecord, look: Look) -> Text:
    """The record as JSON, the same as an export writes it."""
    lines = msgspec.json.format(msgspec.json.encode(record), indent=2).decode()
    return Text(lines, style=look(Role.TEXT), no_wrap=False, overflow="fold")
