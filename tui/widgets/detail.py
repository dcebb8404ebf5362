"""One request in full: in words, where its time went, every field; when what happened; as the log has it."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import msgspec
from rich.style import Style
from rich.text import Text
from textual import on
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.widgets import Static

from relayd.admin.schema import RequestRecord, epoch_s
from tui.model.descriptions import cause, state_word, time_parts, where_the_time_went
from tui.model.stats import is_error
from tui.model.units import bytes_text, clock, day_clock, duration, plural
from tui.theme import Role, style
from tui.widgets.columns import state_role
from tui.widgets.detail_views import PARTS, DetailView, ViewLine, raw, timeline
from tui.widgets.time_bar import shares

_LABEL = 15


class Detail(VerticalScroll, can_focus=True):
    """Shows a record. Its text can be selected with the mouse."""

    DEFAULT_CSS = """
    Detail { background: $surface; padding: 0 1; }
    Detail Static { width: 1fr; height: auto; }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right,right_square_bracket", "turn(1)", "Next view", show=False),
        Binding("left,left_square_bracket", "turn(-1)", "View before", show=False),
    ]

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002 - Textual's own name for it
        super().__init__(ViewLine(), Static(id="detail-text", markup=False), id=id)
        self.record: RequestRecord | None = None
        self._shown: tuple[object, ...] = ()
        self._similar: Callable[[RequestRecord], list[RequestRecord]] = lambda _: []
        self._now_s = 0.0

    @property
    def view(self) -> DetailView:
        """Which view is on."""
        return self.query_one(ViewLine).current

    def action_turn(self, step: int) -> None:
        """The next view, or the one before."""
        views = list(DetailView)
        self.turn_to(views[(views.index(self.view) + step) % len(views)])

    def turn_to(self, view: DetailView) -> None:
        """Show this view."""
        line = self.query_one(ViewLine)
        line.current = view
        line.redraw()
        self.show(self.record, self._similar, self._now_s)
        self.scroll_home(animate=False)

    @on(ViewLine.Picked)
    def _picked(self, event: ViewLine.Picked) -> None:
        event.stop()
        self.turn_to(event.view)

    def on_resize(self) -> None:
        """The time bar is as wide as the pane."""
        if self.record is not None:
            self.show(self.record, self._similar, self._now_s)

    def show(
        self,
        record: RequestRecord | None,
        similar: Callable[[RequestRecord], list[RequestRecord]],
        now_s: float,
    ) -> None:
        """Show this record; `similar` finds failures of the same kind in the last hour."""
        self._similar, self._now_s = similar, now_s
        fresh = record is None or self.record is None or record.id != self.record.id
        stamp = (
            record and msgspec.json.encode(record),
            self.size.width,
            self.app.theme,
            record and not record.outcome and int(now_s),
            self.view,
        )
        self.record = record
        if stamp == self._shown:
            return
        self._shown = stamp
        text = self.query_one("#detail-text", Static)
        if record is None:
            text.update(Text("No request chosen.", style=self._look(Role.DIM)))
            return
        if self.view is DetailView.RAW:
            text.update(raw(record, self._look))
        elif self.view is DetailView.TIMELINE:
            text.update(timeline(record, self._age_ms(record, now_s), self.size.width - 2, self._look))
        else:
            text.update(self._text(record, similar(record) if is_error(record) else [], now_s))
        if fresh:
            self.scroll_home(animate=False)

    def _look(self, role: Role) -> Style:
        return style(self.app, role)

    def _text(self, record: RequestRecord, similar: list[RequestRecord], now_s: float) -> Text:
        text = Text(no_wrap=False, overflow="fold")
        role = state_role(record)
        word = state_word(record)
        text.append(f"{word}  ", self._look(role) + Style(bold=True))
        text.append(f"{record.model or '—'}", self._look(Role.TITLE))
        text.append(f"  {record.client or 'no client'}  {record.ip}\n", self._look(Role.TEXT))
        text.append(f"{cause(record)}\n", self._look(Role.TEXT))
        if record.error is not None:
            text.append(f"{record.error.code}: ", self._look(Role.BAD))
            text.append(f"{record.error.message}\n", self._look(Role.TEXT))
        self._timeline(text, record, now_s)
        if similar:
            self._alike(text, similar)
        self._fields(text, record)
        return text

    def _age_ms(self, record: RequestRecord, now_s: float) -> float | None:
        return None if record.outcome else max(0.0, (now_s - epoch_s(record.started_at)) * 1000)

    def _timeline(self, text: Text, record: RequestRecord, now_s: float) -> None:
        running = record.outcome is None
        parts = time_parts(record, self._age_ms(record, now_s))
        total = sum(part.ms for part in parts)
        text.append("\nTime", self._look(Role.TITLE))
        text.append(f"  {duration(total)}{' so far' if running else ''}\n", self._look(Role.TEXT))
        width = max(10, min(60, self.size.width - 4))
        for part, cells in zip(parts, shares([part.ms for part in parts], width), strict=True):
            role, glyph, _ = PARTS[part.name]
            text.append(glyph * cells, self._look(role))
        text.append("\n")
        for part in parts:
            role, glyph, name = PARTS[part.name]
            percent = round(100 * part.ms / total) if total else 0
            text.append(f"{glyph} {name:<16}", self._look(role))
            text.append(f"{duration(part.ms):>6} {percent:>4}%\n", self._look(Role.TEXT))
        if not running:
            text.append(f"{where_the_time_went(record)}\n", self._look(Role.DIM))

    def _alike(self, text: Text, similar: list[RequestRecord]) -> None:
        text.append("\nAlike in the last hour", self._look(Role.TITLE))
        text.append(f"  {plural(len(similar), 'failure')}\n", self._look(Role.TEXT))
        for record in similar[:4]:
            text.append(
                f"{clock(epoch_s(record.started_at))}  {record.client or '—'}  {record.ip}\n",
                self._look(Role.DIM),
            )

    def _fields(self, text: Text, record: RequestRecord) -> None:
        text.append("\nEvery field\n", self._look(Role.TITLE))
        for name, value in self._values(record):
            text.append(f"{name:<{_LABEL}} ", self._look(Role.DIM))
            text.append(f"{value}\n", self._look(Role.TEXT))

    def _values(self, record: RequestRecord) -> list[tuple[str, str]]:
        def shown(value: object) -> str:
            return "—" if value is None or value == "" else str(value)

        return [
            ("id", record.id),
            ("started", f"{day_clock(epoch_s(record.started_at))}  ({record.started_at})"),
            ("outcome", shown(record.outcome and record.outcome.value)),
            ("status", shown(record.status)),
            ("phase", record.phase.value),
            ("client", shown(record.client)),
            ("key", shown(record.key_id)),
            ("address", shown(record.ip)),
            ("origin", shown(record.origin)),
            ("user agent", shown(record.user_agent)),
            ("path", shown(record.path)),
            ("model", shown(record.model)),
            ("connect", duration(record.connect_ms)),
            ("first token", duration(record.first_token_ms)),
            ("duration", duration(record.duration_ms)),
            ("stalled", duration(record.stalled_ms)),
            ("deltas", f"{record.deltas:,}"),
            ("sent", bytes_text(record.bytes_out)),
            ("prompt tokens", shown(record.prompt_tokens)),
            ("answer tokens", shown(record.completion_tokens)),
            ("finish reason", shown(record.finish_reason)),
            ("upstream id", shown(record.upstream_request_id)),
            ("log seq", str(record.seq)),
            ("boot", record.boot_id),
        ]
