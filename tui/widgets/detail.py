"""One request in full: in words and fields, when what happened, and as the log has it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import ClassVar

import msgspec
from rich.style import Style
from rich.text import Text
from textual import on
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static

from relayd.admin.schema import Outcome, RequestRecord, UsageSource, epoch_s
from relayd.printable import plural
from tui.model.descriptions import cause, path_kind, state_word, time_parts, where_the_time_went
from tui.model.stats import is_error
from tui.model.units import bytes_text, clock, day_clock, duration, money, rate
from tui.theme import Role, style
from tui.widgets.bars import ClickBar
from tui.widgets.cells import Piece
from tui.widgets.columns import state_role
from tui.widgets.time_bar import GLYPHS, ROLES, shares

_FIELDS = tuple(name for name in RequestRecord.__struct_fields__ if name != "error")
_LABEL_WIDTH = max(map(len, _FIELDS))
_PART_NAMES = {"client": "wait for client"}
_MAX_SIMILAR = 4


class DetailView(StrEnum):
    """The ways to look at one request."""

    SUMMARY = "Summary"
    TIMELINE = "Timeline"
    RAW = "Raw"


class ViewLine(ClickBar):
    """The names of the views; a click on one shows it."""

    DEFAULT_CSS = "ViewLine { dock: top; background: $surface; }"

    def __init__(self) -> None:
        super().__init__(id="detail-views")
        self.current = DetailView.SUMMARY

    def parts(self, width: int) -> Iterable[tuple[list[Piece], str]]:  # noqa: ARG002 - one line, cut where it ends
        """Return all names."""
        for view in DetailView:
            yield [self.choice(view.value, chosen=view is self.current)], f"show_view('{view.value}')"


class Detail(VerticalScroll, can_focus=True):
    """Shows a record. Its text can be selected with the mouse.

    Args:
        similar: returns failures of the same kind in the last hour, newest first.
        now_s: returns the time.
    """

    DEFAULT_CSS = """
    Detail { background: $surface; padding: 0 1; }
    Detail Static { width: 1fr; height: auto; }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right,right_square_bracket", "turn(1)", "Next view", show=False),
        Binding("left,left_square_bracket", "turn(-1)", "View before", show=False),
    ]

    def __init__(
        self, similar: Callable[[RequestRecord], list[RequestRecord]], now_s: Callable[[], float]
    ) -> None:
        super().__init__(ViewLine(), Static(id="detail-text", markup=False), id="detail")
        self._similar = similar
        self._now_s = now_s
        self._record: RequestRecord | None = None
        self._shown: tuple[object, ...] = ()

    def action_turn(self, step: int) -> None:
        """Show the next view, or the one before."""
        views = list(DetailView)
        current = self.query_one(ViewLine).current
        self.action_show_view(views[(views.index(current) + step) % len(views)])

    def action_show_view(self, name: str) -> None:
        """Show the view of this name."""
        line = self.query_one(ViewLine)
        line.current = DetailView(name)
        line.redraw()
        self.show(self._record)
        self.scroll_home(animate=False)

    @on(ClickBar.Clicked)
    async def _clicked(self, event: ClickBar.Clicked) -> None:
        event.stop()
        await self.run_action(event.action)

    def on_resize(self) -> None:
        """Draw the time bar as wide as the pane."""
        if self._record is not None:
            self.show(self._record)

    def show(self, record: RequestRecord | None) -> None:
        """Show this record; unchanged text is not drawn again."""
        view = self.query_one(ViewLine).current
        age_ms = None
        if record is not None and record.outcome is None:
            age_ms = max(0.0, (self._now_s() - epoch_s(record.started_at)) * 1000)
        age_s = None if age_ms is None else int(age_ms / 1000)
        stamp = (record and msgspec.json.encode(record), self.size.width, self.app.theme, age_s, view)
        if stamp == self._shown:
            return
        another = record is None or self._record is None or record.id != self._record.id
        self._shown, self._record = stamp, record
        self.query_one("#detail-text", Static).update(self._text(record, view, age_ms))
        if another:
            self.scroll_home(animate=False)

    def _look(self, role: Role) -> Style:
        return style(self.app, role)

    def _text(self, record: RequestRecord | None, view: DetailView, age_ms: float | None) -> Text:
        text = Text(no_wrap=False, overflow="fold")
        if record is None:
            text.append("No request chosen.", self._look(Role.DIM))
        elif view is DetailView.RAW:
            document = msgspec.json.format(msgspec.json.encode(record), indent=2).decode()
            text.append(document, self._look(Role.TEXT))
        elif view is DetailView.TIMELINE:
            self._add_timeline(text, record, age_ms)
        else:
            self._add_summary(text, record, age_ms)
        return text

    # Summary.

    def _add_summary(self, text: Text, record: RequestRecord, age_ms: float | None) -> None:
        text.append(f"{state_word(record)}  ", self._look(state_role(record)) + Style(bold=True))
        text.append(f"{record.model or '—'}", self._look(Role.STRONG))
        text.append(f"  {record.client or 'no client'}  {record.ip}\n", self._look(Role.TEXT))
        text.append(f"{_use(record)}\n", self._look(Role.DIM))
        text.append(f"{cause(record)}\n", self._look(Role.TEXT))
        if record.error is not None:
            text.append(f"{record.error.code}: ", self._look(Role.BAD))
            text.append(f"{record.error.message}\n", self._look(Role.TEXT))
        self._add_time(text, record, age_ms)
        similar = self._similar(record) if is_error(record) else []
        if similar:
            text.append("\nAlike in the last hour", self._look(Role.STRONG))
            text.append(f"  {plural(len(similar), 'failure')}\n", self._look(Role.TEXT))
        for other in similar[:_MAX_SIMILAR]:
            line = f"{clock(epoch_s(other.started_at))}  {other.client or '—'}  {other.ip}\n"
            text.append(line, self._look(Role.DIM))
        text.append("\nEvery field\n", self._look(Role.STRONG))
        for name in _FIELDS:
            text.append(f"{name:<{_LABEL_WIDTH}} ", self._look(Role.DIM))
            text.append(f"{_value(name, getattr(record, name))}\n", self._look(Role.TEXT))

    def _add_time(self, text: Text, record: RequestRecord, age_ms: float | None) -> None:
        running = record.outcome is None
        parts = time_parts(record, age_ms)
        total = sum(part.ms for part in parts)
        text.append("\nTime", self._look(Role.STRONG))
        text.append(f"  {duration(total)}{' so far' if running else ''}\n", self._look(Role.TEXT))
        width = max(10, min(60, self.size.width - 4))
        for part, cells in zip(parts, shares([part.ms for part in parts], width), strict=True):
            text.append(GLYPHS[part.name] * cells, self._look(ROLES[part.name]))
        text.append("\n")
        for part in parts:
            percent = round(100 * part.ms / total) if total else 0
            name = _PART_NAMES.get(part.name, part.name)
            text.append(f"{GLYPHS[part.name]} {name:<16}", self._look(ROLES[part.name]))
            text.append(f"{duration(part.ms):>6} {percent:>4}%\n", self._look(Role.TEXT))
        if not running:
            text.append(f"{where_the_time_went(record)}\n", self._look(Role.DIM))

    # Timeline.

    def _add_timeline(self, text: Text, record: RequestRecord, age_ms: float | None) -> None:
        """Add what happened when, and below it the same as bars."""
        started_s = epoch_s(record.started_at)
        for at_ms, what in _moments(record, age_ms):
            at_s = started_s + at_ms / 1000
            text.append(f"{clock(at_s)}.{int(at_s * 1000) % 1000:03d}", self._look(Role.DIM))
            text.append(f"  +{duration(at_ms):<6}", self._look(Role.STRONG))
            text.append(f" {what}\n", self._look(Role.TEXT))
        text.append("\n")
        self._add_staircase(text, record, age_ms)
        if record.deltas:
            text.append(f"\n{_pace(record, age_ms)}\n", self._look(Role.TEXT))

    def _add_staircase(self, text: Text, record: RequestRecord, age_ms: float | None) -> None:
        """Add a bar for each part, which begins where the one before it ended."""
        parts = time_parts(record, age_ms)
        width = max(10, min(60, self.size.width - 20))
        start = 0
        for part, cells in zip(parts, shares([part.ms for part in parts], width), strict=True):
            bar = GLYPHS[part.name] * cells if cells or not part.ms else "▏"
            text.append(f"{_PART_NAMES.get(part.name, part.name):<15} ", self._look(Role.DIM))
            text.append(f"{' ' * start}{bar}\n", self._look(ROLES[part.name]))
            start += cells
        total = duration(sum(part.ms for part in parts))
        text.append(f"{'':<15} {'0':<{max(1, width - 6)}}{total:>6}\n", self._look(Role.DIM))


def _use(record: RequestRecord) -> str:
    """Return what it asked for, and the tokens and money that this took."""
    words = [path_kind(record.path)]
    if record.prompt_tokens is not None or record.completion_tokens is not None:
        cached = f" ({record.cached_tokens:,} cached)" if record.cached_tokens else ""
        words.append(
            f"{record.prompt_tokens or 0:,} tokens in{cached}, {record.completion_tokens or 0:,} out"
        )
    if record.cost_usd is not None:
        words.append(f"US$ {money(record.cost_usd)}")
    if record.usage_source is UsageSource.ESTIMATE:
        words.append("estimated")
    if record.route is not None:
        words.append(f"by route {record.route}")
    return " · ".join(words)


def _value(name: str, value: object) -> str:
    """Return the value of a field as an operator reads it."""
    if value is None or value == "":
        return "—"
    if isinstance(value, int):
        if name.endswith("_ms"):
            return duration(value)
        return bytes_text(value) if name == "bytes_out" else f"{value:,}" if name != "seq" else str(value)
    if isinstance(value, float):
        return f"{value:.6f}"
    if name == "started_at":
        return f"{day_clock(epoch_s(str(value)))}  ({value})"
    return str(value)


def _moments(record: RequestRecord, age_ms: float | None) -> list[tuple[float, str]]:
    """Return milliseconds since the start, and what was then."""
    moments: list[tuple[float, str]] = [(0, f"came from {record.ip}")]
    if record.connect_ms is not None:
        moments.append((record.connect_ms, "connected to the provider"))
    if record.first_token_ms is not None:
        about = "first token" if record.outcome is not None else "first token, about"
        moments.append((record.first_token_ms, about))
    if record.duration_ms is not None:
        ended = record.outcome.value.replace("_", " ") if record.outcome is not None else "ended"
        is_said = record.outcome is Outcome.COMPLETED
        moments.append((record.duration_ms, ended if is_said else f"{ended}: {cause(record)}"))
    elif age_ms is not None:
        moments.append((age_ms, f"now: {cause(record)}"))
    return moments


def _pace(record: RequestRecord, age_ms: float | None) -> str:
    stream_ms = sum(part.ms for part in time_parts(record, age_ms) if part.name in {"stream", "client"})
    words = f"{plural(record.deltas, 'delta')}, {bytes_text(record.bytes_out)}"
    if stream_ms:
        per_second = rate(1000 * record.deltas / stream_ms)
        words += f" in {duration(stream_ms)} of streaming: {per_second} deltas a second"
    if record.stalled_ms:
        words += f"; {duration(record.stalled_ms)} of it the client did not read"
    return f"{words}."
