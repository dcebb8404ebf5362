"""Open streams, and errors by cause: as parts of the Requests screen and as lists of their own."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rich.style import Style

from relayd.admin.schema import Phase
from tui.model.app_state import AppState, Connection
from tui.model.open_streams import OpenStream
from tui.model.stats import WINDOWS
from tui.model.units import count, duration, rate
from tui.theme import Role, style
from tui.widgets.cells import Piece, fit
from tui.widgets.line_list import Key, LineList

_STALE_MS = 3000
_PHASE_WORDS = {Phase.CONNECTING: "connecting", Phase.WAITING: "waiting", Phase.STREAMING: "streaming"}


class StreamList(LineList):
    """Open streams, the oldest first."""

    def __init__(
        self,
        state: AppState,
        now_s: Callable[[], float],
        *,
        id: str,  # noqa: A002 - Textual's own name for it
        brief: bool = False,
    ) -> None:
        super().__init__(id=id)
        self.state = state
        self._now_s = now_s
        self._brief = brief
        self._ids: list[str] = []

    @property
    def cursor_shown(self) -> bool:
        """In the overview only with the focus."""
        return not self._brief or self.has_focus

    def rows_changed(self) -> None:
        """Take the streams in the order they began."""
        streams = self.state.open_streams.streams
        self._ids = sorted(streams, key=lambda key: (streams[key].started_s, key))
        super().rows_changed()

    def row_count(self) -> int:
        """Open streams."""
        return len(self._ids)

    def row_key(self, index: int) -> Key:
        """The request's id."""
        return self._ids[index]

    def _look(self, role: Role) -> Style:
        return style(self.app, role)

    def head_pieces(self, width: int) -> Iterable[Piece] | None:
        """Column names."""
        names = self._layout(width)
        title = " ".join(fit(name, size, right=right) for name, size, right in names)
        return [(" ", self._look(Role.DIM)), (title, self._look(Role.DIM))]

    def _layout(self, width: int) -> list[tuple[str, int, bool]]:
        """Name, width, right-aligned."""
        fixed = [("phase", 10, False), ("age", 6, True), ("tokens", 6, True), ("tok/s", 5, True)]
        fixed += [("last", 5, True), ("waits for", 9, False)]
        left = max(8, width - 2 - sum(size + 1 for _, size, _ in fixed))
        client = min(20, max(8, left // 3))
        names = [("client", client, False), ("model", min(16, max(6, left - client - 1)), False)]
        spare = left - client - names[1][1] - 2
        if spare > 12 and not self._brief:  # noqa: PLR2004 - room for an address
            names.append(("address", min(24, spare), False))
            spare -= names[-1][1] + 1
        if spare > 16 and not self._brief:  # noqa: PLR2004 - room for an id
            fixed.append(("id", min(26, spare), False))
        return names + fixed

    def row_pieces(self, index: int, width: int, *, selected: bool) -> Iterable[Piece]:
        """One stream."""
        stream = self.state.open_streams.streams.get(self._ids[index])
        if stream is None:
            return []
        cells = self._cells(stream)
        lead = "▶" if selected and self.cursor_shown else " "
        pieces: list[Piece] = [(lead, self._look(Role.ACCENT))]
        for name, size, right in self._layout(width + 1):
            text, role = cells[name]
            pieces.append((fit(text, size, right=right) + " ", self._look(role)))
        return pieces

    def _cells(self, stream: OpenStream) -> dict[str, tuple[str, Role]]:
        told = stream.progress
        late_ms = (
            max(0.0, (self._now_s() - stream.at_s) * 1000)
            if self.state.connection is Connection.LIVE
            else 0.0
        )
        last_ms = None if told.last_delta_ms is None else told.last_delta_ms + late_ms
        stale = last_ms is not None and last_ms > _STALE_MS
        slow_reader = told.waiting_for == "client"
        return {
            "client": (told.client or "—", Role.STRONG),
            "model": (told.model or "—", Role.TEXT),
            "address": (told.ip, Role.DIM),
            "phase": (_PHASE_WORDS.get(told.phase, told.phase.value), Role.RUN if told.deltas else Role.WAIT),
            "age": (duration(told.age_ms + late_ms), Role.TEXT),
            "tokens": (count(told.deltas), Role.TEXT),
            "tok/s": (rate(stream.deltas_per_s) if told.deltas else "—", Role.STREAM),
            "last": (duration(last_ms), Role.WARN if stale else Role.DIM),
            "waits for": (told.waiting_for, Role.CLIENT if slow_reader else Role.DIM),
            "id": (told.id, Role.DIM),
        }

    def empty_text(self) -> tuple[str, ...]:
        """All quiet, or no news."""
        if self.state.connection is Connection.LIVE:
            return ("Nothing is in flight.",)
        return ("What is in flight is not known without the daemon.",)


class CauseList(LineList):
    """Errors of the last hour by cause; Enter filters by it."""

    def __init__(self, state: AppState, now_s: Callable[[], float], *, id: str) -> None:  # noqa: A002 - as above
        super().__init__(id=id)
        self.state = state
        self._now_s = now_s
        self._causes: list[tuple[str, int]] = []

    @property
    def cursor_shown(self) -> bool:
        """Only with the focus."""
        return self.has_focus

    def rows_changed(self) -> None:
        """Count again."""
        causes: dict[str, int] = {}
        for bucket in self.state.stats.series[WINDOWS[1].name].last(self._now_s()):
            for cause, number in bucket.causes.items():
                causes[cause] = causes.get(cause, 0) + number
        self._causes = sorted(causes.items(), key=lambda item: (-item[1], item[0]))
        super().rows_changed()

    def row_count(self) -> int:
        """Causes."""
        return len(self._causes)

    def row_key(self, index: int) -> Key:
        """The code."""
        return self._causes[index][0]

    def head_pieces(self, width: int) -> Iterable[Piece] | None:  # noqa: ARG002 - one short title
        """The title."""
        return [(" errors by cause, last hour · Enter filters", style(self.app, Role.DIM))]

    def row_pieces(self, index: int, width: int, *, selected: bool) -> Iterable[Piece]:
        """A cause with its number as a bar."""
        cause, number = self._causes[index]
        most = self._causes[0][1]
        name = min(22, max(10, width // 3))
        bar = max(1, round(number / most * max(1, width - name - 9)))
        lead = "▶" if selected and self.cursor_shown else " "
        return [
            (lead, style(self.app, Role.ACCENT)),
            (fit(cause, name), style(self.app, Role.TEXT)),
            (fit(f"{number:,}", 6, right=True) + " ", style(self.app, Role.STRONG)),
            ("▇" * bar, style(self.app, Role.BAD)),
        ]

    def empty_text(self) -> tuple[str, ...]:
        """All well."""
        return ("No errors in the last hour.",)
